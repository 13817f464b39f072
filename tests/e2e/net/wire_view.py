"""What a real wire would carry, seen at the client: ``python wire_view.py DEVICE MAC``.

A veth pair takes frames whose checksum is still to be filled in, as it would be by a network card.
With ``off`` or ``on`` for MAC: have checksums filled in before DEVICE sends, or leave it to others.
"""

from __future__ import annotations

import array
import fcntl
import signal
import socket
import struct
import sys

SIOCETHTOOL = 0x8946
ETHTOOL_STXCSUM = 0x17
TCP = 6


def set_offload(device: str, on: bool) -> None:
    """Have a device's TX checksumming done by «hardware», or by the kernel before it."""
    value = array.array("I", [ETHTOOL_STXCSUM, on])
    request = struct.pack("16sP", device.encode(), value.buffer_info()[0])
    with socket.socket() as sock:
        fcntl.ioctl(sock, SIOCETHTOOL, request)


def is_right(frame: bytes) -> bool | None:
    """Whether the TCP checksum of an Ethernet frame is right; None where it has none."""
    header, length = frame[14:34], struct.unpack("!H", frame[16:18])[0]
    if frame[12:14] != b"\x08\x00" or header[0] != 0x45 or header[9] != TCP:
        return None
    segment = frame[34 : 14 + length]
    pseudo = header[12:20] + struct.pack("!BBH", 0, TCP, len(segment))
    data = pseudo + segment + b"\0" * (len(segment) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return bool(total == 0xFFFF)


def watch(device: str, mac: str) -> None:
    """Count the guest's TCP frames by their checksums until SIGTERM, and print both counts."""
    source, counts = bytes.fromhex(mac.replace(":", "")), {True: 0, False: 0}

    def end(*_: object) -> None:
        print(counts[True], counts[False], flush=True)
        sys.exit(0)

    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as sock:
        sock.bind((device, 0))
        signal.signal(signal.SIGTERM, end)
        print("watching", flush=True)
        while True:
            frame = sock.recv(1 << 16)
            right = is_right(frame) if frame[6:12] == source else None
            if right is not None:
                counts[right] += 1


if __name__ == "__main__":
    if sys.argv[2] in ("on", "off"):
        set_offload(sys.argv[1], sys.argv[2] == "on")
    else:
        watch(*sys.argv[1:])
