"""colo with a gate that lets every packet pass before its checkpoint: for the test of the tests."""

from colo.cli import main
from colo.network.gate import Gate

_take = Gate.take


def take(self: Gate, data: bytes, now: float) -> bytes:
    """Hold as usual, and let it go at once."""
    return _take(self, data, now) or self.release(now)


if __name__ == "__main__":
    Gate.take = take  # type: ignore[method-assign]
    main()
