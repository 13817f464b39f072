"""Who may run the VM, and how the two hosts speak about it."""
