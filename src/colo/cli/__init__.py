"""The command line.  Exit codes: 0 done, 1 failed, 2 wrong usage."""

from colo.cli import fitting, hosts, looking, orders
from colo.cli.base import main

__all__ = ["fitting", "hosts", "looking", "main", "orders"]
