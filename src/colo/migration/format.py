"""The numbers and names of QEMU's migration stream, version 3.

Source: ``migration/savevm.c``, ``migration/savevm.h`` and ``migration/ram.c`` of QEMU 7.2, and
streams recorded from 7.2.22 and 11.1.3.  All integers are big-endian.

::

    stream    = "QEVM" u32:3 configuration item* EOF [0x06 u32:length JSON]
    config    = 0x07 u32:length machine-name subsection*
    subsect.  = 0x05 u8:length name u32:version content
    item      = START u32:id u8:length name u32:instance u32:version content footer
              | PART  u32:id content footer
              | END   u32:id content footer
              | FULL  u32:id u8:length name u32:instance u32:version content footer
              | COMMAND u16:command u16:length data
    footer    = 0x7e u32:id
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final

__all__ = [
    "CAPABILITIES_SUBSECTION",
    "CONTINUE",
    "EOS",
    "FILE_MAGIC",
    "FILE_VERSION",
    "IGNORE_SHARED",
    "MULTIFD_MAGIC",
    "PAGE",
    "PAGE_SIZE",
    "RAM_SECTION",
    "RAM_VERSION",
    "ZERO",
    "Command",
    "RamFlag",
    "ReturnPath",
    "Section",
]

FILE_MAGIC: Final = 0x5145564D  # "QEVM"
FILE_VERSION: Final = 3
MULTIFD_MAGIC: Final = 0x11223344

#: The size of a target page in bytes: x86 and all machines of today's COLO.
PAGE_SIZE: Final = 4096

RAM_SECTION: Final = "ram"
RAM_VERSION: Final = 4

#: The capability under which QEMU takes mapped memory as it is.
IGNORE_SHARED: Final = "x-ignore-shared"

CAPABILITIES_SUBSECTION: Final = "configuration/capabilities"


class Section(IntEnum):
    """The type byte in front of every item (QEMU_VM_*)."""

    EOF = 0x00
    START = 0x01
    PART = 0x02
    END = 0x03
    FULL = 0x04
    SUBSECTION = 0x05
    DESCRIPTION = 0x06
    CONFIGURATION = 0x07
    COMMAND = 0x08
    FOOTER = 0x7E


class Command(IntEnum):
    """What a COMMAND item says (MIG_CMD_*)."""

    OPEN_RETURN_PATH = 1
    PING = 2
    POSTCOPY_ADVISE = 3
    POSTCOPY_LISTEN = 4
    POSTCOPY_RUN = 5
    POSTCOPY_RAM_DISCARD = 6
    PACKAGED = 7
    ENABLE_COLO = 8
    POSTCOPY_RESUME = 9
    RECV_BITMAP = 10
    SWITCHOVER_START = 11


class ReturnPath(IntEnum):
    """Messages of the return path, destination to source: u16 type, u16 length, data."""

    SHUT = 1
    PONG = 2


class RamFlag(IntFlag):
    """The low bits of a page's u64 header; the rest is the page's offset in its block."""

    ZERO = 0x02
    MEM_SIZE = 0x04
    PAGE = 0x08
    EOS = 0x10
    CONTINUE = 0x20
    XBZRLE = 0x40
    HOOK = 0x80
    COMPRESS_PAGE = 0x100
    MULTIFD_FLUSH = 0x200


#: Plain numbers, for inner loops: an operation on an enumeration takes microseconds.
ZERO: Final = int(RamFlag.ZERO)
PAGE: Final = int(RamFlag.PAGE)
EOS: Final = int(RamFlag.EOS)
CONTINUE: Final = int(RamFlag.CONTINUE)
