"""Certificates for tests, made with the openssl program as docs/operating.md has it."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from colo.config import TlsFiles

__all__ = ["Authority"]

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc")


@dataclass(frozen=True)
class Authority:
    """An operator's own CA in ``folder``."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Authority:
        """A new one."""
        folder.mkdir(parents=True)
        made = cls(folder)
        subject = ("-subj", "/CN=colo", "-days", "3650")
        made._openssl("req", "-x509", *_KEY, *subject, "-keyout", "ca.key", "-out", "ca.crt")
        return made

    def issue(
        self, host: str, name: str = "colo.test", days: int = 825, subject: str = ""
    ) -> TlsFiles:
        """A certificate for ``host``, issued for ``name``; the files are named after the host.

        ``subject``: another one than the host as its common name.
        """
        out = ("-keyout", f"{host}.key", "-out", f"{host}.csr")
        issued_for = ("-subj", subject or f"/CN={host}", "-addext", f"subjectAltName=DNS:{name}")
        self._openssl("req", *_KEY, *issued_for, *out)
        ca = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-copy_extensions", "copy")
        files = ("-in", f"{host}.csr", "-out", f"{host}.crt")
        self._openssl("x509", "-req", *files, "-days", str(days), *ca)
        return self.files(host)

    def files(self, host: str) -> TlsFiles:
        """What ``host`` has."""
        folder = self.folder
        return TlsFiles(folder / "ca.crt", folder / f"{host}.crt", folder / f"{host}.key")

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(
            ["openssl", *arguments], cwd=self.folder, check=True, capture_output=True, timeout=60
        )
