"""``pacemaker``: Pacemaker decides who may run the VM, and its CIB keeps the grant.

Two things together make it safe, and neither would alone:

- **Who asks has to be promoted.**  The agent's promote leaves a permit on this host, and its demote
  takes it away.  Pacemaker promotes a host only once the other one is demoted or fenced.
- **What stands is known only where all are known.**  A host's word counts that is a member and
  shows the same record, and nobody's is missing: one that is lost may yet go on with another
  record in a partition of its own, until it is fenced.  Whoever lost the other host therefore lets
  nothing out before that one is surely off, or has the same record.

The record is in the cluster's configuration, so it outlives the cluster's own restart.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from colo.arbiters.arbiter import Arbiter
from colo.arbiters.asking import about_to_write
from colo.arbiters.register import Seen
from colo.errors import LocalError, NoAnswer
from colo.membership.grant import Record
from colo.pacemaker.cluster import Cluster
from colo.pacemaker.permit import Permit

__all__ = ["CibRegister", "PacemakerArbiter"]

#: Less than an arbiter may take to answer: a promotion that comes meanwhile is seen at once.
_PROMOTED_S: Final = 1.5
_NOT_PROMOTED: Final = "Pacemaker has not promoted this host"
_LOOK_S: Final = 0.05


class CibRegister:
    """What the CIB keeps for the VM ``vm``, whose ``hosts`` are nodes of those names."""

    name = "Pacemaker's CIB"

    def __init__(self, vm: str, hosts: tuple[str, ...], cluster: Cluster) -> None:
        self._key = f"colo-{vm}"
        self._hosts = hosts
        self._cluster = cluster

    def is_off(self, host: str) -> bool:
        """Whether that host is surely off.  Raises LocalError."""
        return host in self._cluster.nodes().off

    def read(self) -> Seen:
        """Return what it holds, on all hosts that are not surely off."""
        nodes = self._cluster.nodes()
        lost = [host for host in self._hosts if host not in nodes.members | nodes.off]
        if lost:
            raise LocalError(f"host {lost[0]} is lost, and Pacemaker has not fenced it yet")
        found = {self._cluster.value(self._key, h) for h in self._hosts if h in nodes.members}
        if len(found) != 1:
            raise LocalError("the hosts do not show the same grant yet in Pacemaker's CIB")
        return Seen(found.pop())

    def compare_and_set(self, expected: Seen, new: str) -> bool:
        """Hold ``new``, where it still holds ``expected``, on all hosts that are not off."""
        about_to_write()
        if not self._cluster.replace(self._key, expected.text, new):
            return False
        try:
            stands = self.read().text == new
        except LocalError as error:
            raise NoAnswer(str(error), True) from error
        if not stands:
            raise NoAnswer("the grant in Pacemaker's CIB has moved on at once", True)
        return True


class PacemakerArbiter(Arbiter):
    """Grants a host that Pacemaker has promoted: where ``permit`` is there.

    ``wait_s``: how long it may be waited for.
    """

    def __init__(self, register: CibRegister, permit: Permit, wait_s: float = _PROMOTED_S) -> None:
        super().__init__(register)
        self._cib = register
        self._permit = permit
        self._wait_s = wait_s

    def ready(self) -> None:
        """Raise LocalError where this host is not promoted now."""
        if not self._permit.is_there:
            raise LocalError(_NOT_PROMOTED)

    def is_off(self, host: str) -> bool:
        """Whether Pacemaker has fenced it, or was stopped there in good order."""
        return self._cib.is_off(host)

    def _read(self) -> tuple[Record | None, Callable[[Record], bool]]:
        record, replace = super()._read()

        def replace_promoted(new: Record) -> bool:
            if new.holder and (record is None or new.number > record.number):
                self._await_promotion()
            return replace(new)

        return record, replace_promoted

    def _await_promotion(self) -> None:
        deadline = time.monotonic() + self._wait_s
        while not self._permit.is_there:
            if time.monotonic() >= deadline:
                raise LocalError(_NOT_PROMOTED)
            time.sleep(_LOOK_S)
