"""Imports the command lines in a folder: ``python -m tests.importing.collection FOLDER``.

Proxmox's own tests are one, the files ``*.cmd`` in ``src/test/cfg2cmd`` of its qemu-server; their
licence is another than ours, so they are not here.  Prints a line for each file, and how many make
a VM file; exits with 1 where one does not.
"""

from __future__ import annotations

import sys
from pathlib import Path

from colo.config.vm import parse
from colo.errors import UsageError
from colo.importing.draft import vm_file
from colo.importing.sources import from_text


def main(folder: Path) -> int:
    files = sorted(folder.rglob("*.cmd"))
    made = 0
    for file in files:
        try:
            draft = from_text(file.read_text(), file.name, None)
            parse(vm_file(draft))
        except UsageError as error:
            print(f"{file.name}: {error}")
            continue
        made += 1
        print(f"{file.name}: {len(list(draft.told()))} lines of advice")
    print(f"{made} of {len(files)} make a VM file")
    return int(made < len(files) or not files)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
