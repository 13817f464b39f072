"""A CIB in a file, which Pacemaker's own commands read and change as if it were a cluster's."""

from __future__ import annotations

from pathlib import Path

import pytest

__all__ = ["NEEDED", "Cib"]

#: Pacemaker's commands that have to be there.
NEEDED = ("cibadmin", "crm_mon")

_CIB = """<cib crm_feature_set="3.16.1" validate-with="pacemaker-3.9" epoch="1" num_updates="0"
 admin_epoch="0" have-quorum="{quorum}" dc-uuid="1"><configuration><crm_config>
  <cluster_property_set id="options">
    <nvpair id="options-stonith" name="stonith-enabled" value="{fences}"/>
  </cluster_property_set></crm_config>
  <nodes>{nodes}</nodes><resources/><constraints/></configuration><status>{states}</status></cib>
"""
#: What the CIB says of a node that is there, that is lost, and that is surely off.
_STATES = {
    "member": 'in_ccm="true" crmd="online" join="member" expected="member"',
    "lost": 'in_ccm="false" crmd="offline" join="down" expected="member"',
    "off": 'in_ccm="false" crmd="offline" join="down" expected="down"',
}


class Cib:
    """The CIB, in ``folder``; the commands that this process runs get to it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._path = folder / "cib.xml"
        monkeypatch.setenv("CIB_file", str(self._path))

    def holds(self, fences: bool = True, quorum: bool = True, **nodes: str) -> None:
        """Begin anew, with these nodes and how they are."""
        words = {"fences": str(fences).lower(), "quorum": int(quorum)}
        numbered = list(enumerate(nodes.items(), 1))
        self._path.write_text(
            _CIB.format(
                nodes="".join(f'<node id="{n}" uname="{name}"/>' for n, (name, _) in numbered),
                states="".join(
                    f'<node_state id="{n}" uname="{name}" {_STATES[state]}/>'
                    for n, (name, state) in numbered
                ),
                **words,
            )
        )
