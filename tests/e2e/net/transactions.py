"""Commits numbers in a guest's PostgreSQL, one after the other: ``transactions.py HOST LOG``.

One connection throughout, by ``psql``.  Each number goes to LOG once its commit was answered.  At
SIGTERM it looks whether every number that was answered is there, and no other one but, maybe, the
next; its verdict is a line of JSON.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

_TABLE = "CREATE TABLE IF NOT EXISTS told (n bigint PRIMARY KEY)"


class _Psql:
    def __init__(self, host: str) -> None:
        command = ["psql", "--no-psqlrc", "-qAt", "-v", "ON_ERROR_STOP=1", "-U", "postgres"]
        self._process = subprocess.Popen(
            [*command, "-h", host, "postgres"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
        )

    def ask(self, statement: str) -> str:
        """The one line that a statement is answered with."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{statement};\n")
        line = self._process.stdout.readline()
        if not line:
            raise EOFError("psql has ended")
        return line.strip()


def main() -> int:
    """Commit until it is told to end; 0 where nothing is missing."""
    host, log = sys.argv[1], Path(sys.argv[2])
    told, error = -1, ""
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: ended.append(number))
    psql = _Psql(host)
    with log.open("w") as file:
        psql.ask(f"{_TABLE}; SELECT 'made'")
        while not ended:
            answer = psql.ask(f"INSERT INTO told VALUES ({told + 1}) RETURNING n")
            if answer != str(told + 1):
                error = f"after {told} came {answer!r}"
                break
            told += 1
            print(json.dumps({"n": told}), file=file, flush=True)
    there = psql.ask("SELECT count(*) || ' ' || max(n) FROM told")
    if not error and there != f"{told + 1} {told}":
        error = f"{told + 1} numbers were answered, and of those there are: {there}"
    print(json.dumps({"ok": not error, "error": error, "told": told + 1}))
    return bool(error)


if __name__ == "__main__":
    sys.exit(main())
