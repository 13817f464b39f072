"""A CA for all tests of the connections between hosts."""

from __future__ import annotations

import pytest

from tests.certificates import Authority


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An operator's CA that has issued certificates for ``a`` and ``b``."""
    authority = Authority.make(tmp_path_factory.mktemp("tls") / "ca")
    authority.issue("a")
    authority.issue("b")
    return authority
