"""What only carries bytes between the hosts: addresses, sockets, TLS, the control link."""
