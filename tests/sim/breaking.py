"""How a rule is broken for a while."""

from __future__ import annotations

import contextlib
from typing import Any

__all__ = ["set_attribute"]


def set_attribute(stack: contextlib.ExitStack, owner: Any, name: str, value: object) -> None:
    """Have an attribute be another, until the stack is left."""
    stack.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)
