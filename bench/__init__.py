"""What colo costs and how fast it is, measured on this machine beside stock QEMU."""
