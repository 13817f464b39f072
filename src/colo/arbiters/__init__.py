"""Arbiters: who may run the VM, asked without waiting for ever."""
