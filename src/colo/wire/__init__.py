"""Fewer bytes between two colos: the stream is coded on one host, and is the same on the other."""
