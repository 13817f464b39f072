"""Guests that can be checkpointed, besides QEMU's: the interface, memory, a store."""
