"""The checkpoint store: the secondary's copy of the VM, always one whole checkpoint."""
