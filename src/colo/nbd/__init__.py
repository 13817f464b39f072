"""An NBD server: disks that a QEMU on this host writes to over a socket."""
