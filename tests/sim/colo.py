"""A simulated ``colo node``: all that it does, by the real machines, in simulated time.

It performs what ``Member`` asks for as the shells in ``colo.node`` do, and decides as little.
"""

from __future__ import annotations

from tests.sim.asking import Asks
from tests.sim.following import Follows
from tests.sim.leading import Leads
from tests.sim.talking import Talks

__all__ = ["Colo"]


class Colo(Asks, Talks, Leads, Follows):
    """A colo of either role."""
