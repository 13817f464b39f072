"""A client that has a new connection for each byte: ``python -m bench.connections HOST SECONDS``.

It says as JSON how long each took from the SYN to the answer, in milliseconds.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from typing import Final

_ECHO_PORT: Final = 7001
_PAUSE_S: Final = 0.02
_SILENCE_S: Final = 10.0


def main(host: str, seconds: float) -> None:
    """Ask for so long."""
    trips_ms = []
    end = time.monotonic() + seconds
    while (began := time.monotonic()) < end:
        with socket.create_connection((host, _ECHO_PORT), timeout=_SILENCE_S) as peer:
            peer.sendall(b"x")
            if peer.recv(2) != b"x":
                sys.exit("another answer than the request")
            trips_ms.append((time.monotonic() - began) * 1e3)
        time.sleep(_PAUSE_S)
    print(json.dumps(trips_ms))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
