"""QEMU's migration stream, as far as COLO uses it, from QEMU 7.2 to 11.1.  No I/O.

``format`` holds the numbers, ``buffer`` the received bytes, ``ram`` the pages, ``vmdesc`` the
stream's own description of its devices; ``reader`` and ``writer`` put them together.
"""
