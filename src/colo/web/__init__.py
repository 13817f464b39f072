"""``colo web``: all VMs of a host as a page."""
