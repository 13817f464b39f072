"""``colo top``: all VMs of a host in a terminal, as they are now."""
