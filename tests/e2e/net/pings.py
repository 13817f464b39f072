"""``python pings.py ADDRESS``: ping it without end, and print the number of each answer.

The next one is sent once the last was answered, or after a second.
"""

import itertools
import os
import socket
import struct
import sys

_REQUEST, _REPLY = 8, 0
_PAYLOAD = bytes(range(56))


def checksum(data: bytes) -> int:
    """The Internet checksum.  Source: RFC 1071."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def ping(address: str) -> None:
    """Ping until killed."""
    ident = os.getpid() & 0xFFFF
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
        sock.connect((address, 0))
        sock.settimeout(1.0)
        for number in itertools.count():
            head = struct.pack("!BBHHH", _REQUEST, 0, 0, ident, number & 0xFFFF)
            sum_ = struct.pack("!H", checksum(head + _PAYLOAD))
            sock.send(head[:2] + sum_ + head[4:] + _PAYLOAD)
            hear(sock, ident, number & 0xFFFF)


def hear(sock: socket.socket, ident: int, number: int) -> None:
    """Print the answers that come, up to this number's."""
    try:
        while True:
            packet = sock.recv(2048)
            message = packet[4 * (packet[0] & 15) :]
            kind, _, _, whose, answered = struct.unpack_from("!BBHHH", message)
            if kind == _REPLY and whose == ident:
                assert message[8:] == _PAYLOAD
                print(answered, flush=True)
                if answered == number:
                    return
    except TimeoutError:
        return


if __name__ == "__main__":
    ping(sys.argv[1])
