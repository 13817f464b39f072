"""``colo run``: how a VM starts whose QEMU was started for it, and stands still.

A VM that runs is heard.  So it runs from the moment on at which it may, and not before: the
grant is claimed, nothing stands in the way, and the secondary has been asked.  A secondary that
runs the VM, or holds a checkpoint of one that was lost, refuses whoever comes; then this VM may
not start, whatever the arbiter says.  A secondary that is out of reach says nothing: then the
grant decides, and where the arbiter is an operator, the operator does, by ``--claim``.
"""

from __future__ import annotations

from typing import Final

from colo.errors import ChannelLost, PeerError, Refused
from colo.membership.states import Event
from colo.membership.words import Hello
from colo.node.performer import Outcome
from colo.qemu.process import Qemu
from colo.transport.address import Address
from colo.transport.control_link import call

__all__ = ["Start", "question"]

_ASK_S: Final = 3.0


class Start:
    """The start of the VM of ``qemu``, which is ours alone until then."""

    def __init__(self, qemu: Qemu) -> None:
        self._qemu = qemu

    async def begin(self) -> Outcome:
        """Have the VM run.  Raises GuestError where it does not."""
        await self._qemu.execute("cont")
        return Event.RUNS, {}

    async def undo(self) -> None:
        """End the QEMU of a VM that has not started."""
        await self._qemu.kill()


async def question(to: Address, hello: Hello) -> tuple[Event, PeerError | None]:
    """Ask the secondary at ``to`` whether the VM may start here: say hello, and no more.

    Returns AGREES, or OBJECTS or SILENT and why.  Raises PeerError where it can never be protected
    there.
    """
    try:
        sock, _ = await call(to, hello, _ASK_S)
        sock.close()
    except Refused as error:
        return Event.OBJECTS, error
    except ChannelLost as error:
        return Event.SILENT, error
    return Event.AGREES, None
