"""The command line.  Exit codes: 0 done, 1 failed, 2 wrong usage."""

from colo.cli import hosts, looking, orders
from colo.cli.base import main

__all__ = ["hosts", "looking", "main", "orders"]
