"""Fault tolerance for QEMU virtual machines: when a host dies, its VM goes on on another."""

__all__ = ["__version__"]

__version__ = "0.1.0"
