"""``python ears.py TAP MAC``: print the time of each frame that comes out of QEMU from MAC."""

import socket
import sys
import time


def listen(tap: str, mac: str) -> None:
    """Listen until killed.  Frames that go to QEMU are «outgoing» for the tap."""
    source = bytes.fromhex(mac.replace(":", ""))
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as sock:
        sock.bind((tap, 0))
        print("listening", flush=True)
        while True:
            frame, address = sock.recvfrom(2048)
            if address[2] != socket.PACKET_OUTGOING and frame[6:12] == source:
                print(f"{time.time():.3f} {frame[:60].hex()}", flush=True)


if __name__ == "__main__":
    listen(*sys.argv[1:])
