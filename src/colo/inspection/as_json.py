"""What ``colo inspect --json`` says: all that was found; bytes are hexadecimal texts."""

from __future__ import annotations

from typing import Any

from colo.inspection.difference import Difference
from colo.inspection.pages import Statistics
from colo.inspection.report import Wanted
from colo.inspection.source import Inspected
from colo.migration.fields import Value
from colo.migration.format import PAGE_SIZE

__all__ = ["difference_json", "source_json"]


def source_json(source: Inspected, wanted: Wanted | None = None) -> dict[str, Any]:
    """All of a source, with the fields of the devices that are wanted."""
    return {
        **_identity_json(source),
        "page_size": PAGE_SIZE,
        "pages_sent": source.pages_sent,
        "blocks": [
            {"name": name, "bytes": counted.pages * PAGE_SIZE, **_statistics_json(counted)}
            for name, counted in source.statistics.items()
        ],
        "devices": [
            {
                "name": device.name,
                "instance": device.instance,
                "version": device.version,
                "bytes": device.size,
                "fields": _value_json(device.fields),
            }
            for device in source.devices
            if wanted is None or wanted(device.name)
        ],
    }


def difference_json(difference: Difference, wanted: Wanted | None = None) -> dict[str, Any]:
    """What differs: blocks and devices that are equal are left out."""
    return {
        "old": _identity_json(difference.old),
        "new": _identity_json(difference.new),
        "page_size": PAGE_SIZE,
        "blocks": [
            {
                "name": block.name,
                "old_pages": block.old_pages,
                "new_pages": block.new_pages,
                "changed": block.changed,
                "ranges": [list(each) for each in block.ranges],
            }
            for block in difference.blocks
            if block.is_different
        ],
        "devices": [
            {
                "name": device.name,
                "instance": device.instance,
                "old_version": device.old_version,
                "new_version": device.new_version,
                "fields": [
                    {
                        "path": field.path,
                        "old": _value_json(field.old),
                        "new": _value_json(field.new),
                    }
                    for field in device.fields
                ],
            }
            for device in difference.devices
            if device.is_different and (wanted is None or wanted(device.name))
        ],
    }


def _identity_json(source: Inspected) -> dict[str, Any]:
    return {
        "source": source.name,
        "bytes": source.size,
        "machine": source.header.machine,
        "capabilities": list(source.header.capabilities),
    }


def _statistics_json(counted: Statistics) -> dict[str, Any]:
    return {
        "pages": counted.pages,
        "zero": counted.zero,
        "fill": counted.fill,
        "equal": counted.equal,
        "unique": counted.unique,
        "sampled": counted.sampled,
        "sampled_ratio": counted.ratio,
    }


def _value_json(value: Value | None) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {name: _value_json(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_value_json(inner) for inner in value]
    return value
