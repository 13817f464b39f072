"""A TOML table, checked against the frozen dataclass that it becomes.

The dataclass says it all: its fields are the table's keys, their types what a value has to be,
their defaults what holds where a key is not there.  A field whose type is a dataclass is a table
within the table.  A key that no field has is refused: a misspelt one must not be passed over.
"""

from __future__ import annotations

from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Final, TypeVar, get_args, get_origin, get_type_hints

from colo.errors import UsageError

__all__ = ["read_table"]

T = TypeVar("T")

#: By the type of a field: what TOML has to give, and what that is called.
_KINDS: Final[dict[type, tuple[tuple[type, ...], str]]] = {
    str: ((str,), "text"),
    Path: ((str,), "text"),
    bool: ((bool,), "true or false"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
}


def read_table(kind: type[T], content: dict[str, Any], path: str = "") -> T:
    """Make a ``kind`` of a table.  Raises UsageError with the key's name; ``path`` is before it."""
    hints = get_type_hints(kind)
    rest, values = dict(content), {}
    for each in fields(kind):  # type: ignore[arg-type]  # it is a dataclass
        name = f"{path}.{each.name}" if path else each.name
        if each.name in rest:
            values[each.name] = _value(hints[each.name], rest.pop(each.name), name)
        elif _is_needed(each):
            raise UsageError(f"{name} is missing")
    for key in rest:
        raise UsageError(f"{f'{path}.{key}' if path else key}: there is no such key")
    return kind(**values)


def _is_needed(each: Field[Any]) -> bool:
    return each.default is MISSING and each.default_factory is MISSING


def _value(hint: Any, value: Any, name: str) -> Any:
    """The value of a field of this type."""
    alternatives = [each for each in get_args(hint) if each is not NoneType]
    if get_origin(hint) is tuple:
        return tuple(_list(get_args(hint)[0], value, name))
    if get_origin(hint) is dict:
        if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
            raise UsageError(f"[{name}]: a table of texts")
        return dict(value)
    if alternatives:  # it may be left out, and is there
        (hint,) = alternatives
    if isinstance(hint, type) and is_dataclass(hint):
        if not isinstance(value, dict):
            raise UsageError(f"[{name}] has to be a table")
        return read_table(hint, value, name)
    wanted, called = _KINDS[hint]
    if not isinstance(value, wanted) or (isinstance(value, bool) and hint is not bool):
        raise UsageError(f"{name} = {value!r}: it has to be {called}")
    return hint(value)


def _list(kind: Any, value: Any, name: str) -> list[Any]:
    """The items of a list: texts, or tables."""
    if is_dataclass(kind):
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise UsageError(f"[[{name}]] has to be a table, one for each")
        return [read_table(kind, item, name) for item in value]  # type: ignore[arg-type]
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UsageError(f"{name}: a list of texts, one for each argument")
    return value
