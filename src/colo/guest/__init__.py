"""Guests that can be checkpointed; today: QEMU."""
