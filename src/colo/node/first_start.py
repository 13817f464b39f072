"""``colo run``: how a VM starts whose QEMU was started for it, and stands still.

A VM that runs is heard.  So it runs from the moment on at which it may, and not before: the
grant is claimed, nothing stands in the way, and the secondary has been asked.  A secondary that
runs the VM, or holds a checkpoint of one that was lost, refuses whoever comes; then this VM may
not start, whatever the arbiter says.  A secondary that is out of reach says nothing: then the
grant decides, and where the arbiter is an operator, the operator does, by ``--claim``.
"""

from __future__ import annotations

from typing import Final

from colo.errors import ChannelLost, Refused, UsageError
from colo.membership.words import Hello
from colo.qemu.process import Qemu
from colo.transport.address import Address
from colo.transport.control_link import call

__all__ = ["Start"]

_ASK_S: Final = 3.0


class Start:
    """The start of the VM of ``qemu``, which is ours alone until then."""

    def __init__(self, qemu: Qemu) -> None:
        self._qemu = qemu

    async def begin(self, to: Address, hello: Hello | None, is_decided: bool) -> None:
        """Have the VM run, unless the secondary at ``to`` speaks against it.

        ``hello``: None for a stock QEMU, which cannot be asked.  ``is_decided``: somebody has said
        that the VM may run, where the secondary is out of reach.  Raises UsageError where it may
        not, GuestError where it does not, PeerError where it can never be protected there.
        """
        if hello is not None:
            await self._ask(to, hello, is_decided)
        await self._qemu.execute("cont")

    async def undo(self) -> None:
        """End the QEMU of a VM that has not started."""
        await self._qemu.kill()

    async def _ask(self, to: Address, hello: Hello, is_decided: bool) -> None:
        """Say hello to the secondary, and no more."""
        try:
            sock, _ = await call(to, hello, _ASK_S)
            sock.close()
        except Refused as error:
            raise UsageError(f"{error}; the VM is not started here") from error
        except ChannelLost as error:
            if not is_decided:
                raise UsageError(
                    f"{to} is out of reach, so nobody can say whether the VM runs there "
                    f"({error}); if it certainly does not, say --claim"
                ) from error
