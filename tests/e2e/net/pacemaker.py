"""A Pacemaker cluster of the lab's two hosts: the distribution's corosync and Pacemaker.

A third node has no VM, and a vote.

A host that is *up* has a mount and an IPC namespace of its own besides the lab's network: what
they keep in /run and /dev/shm ends with it, what they keep in /var/lib is its disk.  Its power is
cut by killing all that runs in its network, which is also what the fence agent does.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree

from colo.demo.lab import Place
from colo.pacemaker.agent import agent_file
from tests.e2e.basics import SLOWNESS, wait
from tests.e2e.net.stage import Colo, Stage
from tests.e2e.net.wires import MEMBERS

__all__ = ["NODES", "PROGRAMS", "Cluster"]

NODES: Final = {"a": Place.HOST_A, "b": Place.HOST_B}
THIRD: Final = {"c": Place.SWITCH}
PROGRAMS: Final = ("corosync", "pacemakerd", "cibadmin", "crm_resource")
_WAIT_S: Final = 90.0 * SLOWNESS
_COMMAND_S: Final = 30.0 * SLOWNESS

#: What a host does at its start: $1 is its disk, $2 the folder with files that all hosts get.
_START: Final = """
set -e
for each in /run /dev/shm /etc/corosync; do mkdir -p $each; mount -t tmpfs none $each; done
for each in /var/lib/corosync /var/lib/pacemaker /var/log/pacemaker; do
    mkdir -p $each "$1$each"; mount --bind "$1$each" $each
done
mkdir -p /run/crm /run/lock /run/resource-agents /run/sbin /run/agents
for each in cib pengine cores blackbox; do mkdir -p /var/lib/pacemaker/$each; done
[ -e /var/lib/pacemaker/cib/cib.xml ] || cp "$2/cib.xml" /var/lib/pacemaker/cib/
chmod 777 "$1"; chmod 600 /var/lib/pacemaker/cib/*
chown -R hacluster:haclient /var/lib/pacemaker /var/log/pacemaker /run/crm
cp "$2/corosync.conf" /etc/corosync/
mount --bind /usr/sbin /run/sbin; mount -t tmpfs none /usr/sbin
ln -s /run/sbin/* /usr/sbin/; cp "$2/fence_lab" /usr/sbin/
mount --bind /usr/lib/ocf/resource.d /run/agents; mount -t tmpfs none /usr/lib/ocf/resource.d
mkdir /usr/lib/ocf/resource.d/colo; cp "$2/vm" /usr/lib/ocf/resource.d/colo/
corosync -f >>"$1/corosync.log" 2>&1 &
until corosync-quorumtool -s >/dev/null 2>&1 || [ $? = 2 ]; do sleep 0.1; done
pacemakerd -f >>"$1/pacemakerd.log" 2>&1 &
echo started
wait
"""

_COROSYNC: Final = """
totem {{
    version: 2
    cluster_name: lab
    transport: udpu
    token: 1000
    crypto_cipher: none
    crypto_hash: none
}}
quorum {{
    provider: corosync_votequorum
    two_node: {two_node}
}}
logging {{
    to_stderr: yes
    to_syslog: no
    timestamp: on
}}
nodelist {{
"""

#: A fence agent for the lab: what runs in the network of the host ``plug`` is killed.
_FENCE: Final = """#!{python}
import os, signal, sys
NETWORKS = {networks}
METADATA = '''<?xml version="1.0"?><resource-agent name="fence_lab" shortdesc="lab">
<longdesc>The lab's power.</longdesc><parameters><parameter name="plug" unique="0" required="1">
<content type="string"/><shortdesc lang="en">host</shortdesc></parameter>
<parameter name="action" unique="0" required="1"><content type="string" default="off"/>
<shortdesc lang="en">action</shortdesc></parameter></parameters><actions><action name="on"/>
<action name="off"/><action name="reboot"/><action name="monitor"/><action name="metadata"/>
</actions></resource-agent>'''
words = dict(line.strip().split("=", 1) for line in sys.stdin if "=" in line)
action = words.get("action", "off")
if "metadata" in (action, *sys.argv) or any("metadata" in word for word in sys.argv):
    print(METADATA)
if action not in ("off", "reboot"):
    sys.exit(0)
network = os.stat(NETWORKS[words["plug"]])
def inhabitants():
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            if os.path.samestat(os.stat("/proc/" + name + "/ns/net"), network):
                yield int(name)
        except OSError:
            pass
while pids := list(inhabitants()):
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
"""

_CIB: Final = """<cib crm_feature_set="3.16.1" validate-with="pacemaker-3.9" admin_epoch="0"
  epoch="1" num_updates="0"><configuration><crm_config>
  <cluster_property_set id="options">
    <nvpair id="options-dc" name="dc-deadtime" value="1s"/>
    <nvpair id="options-stonith" name="stonith-enabled" value="true"/>
  </cluster_property_set></crm_config>
  <nodes/>
  <resources>
    <primitive id="fence" class="stonith" type="fence_lab">
      <instance_attributes id="fence-parameters">
        <nvpair id="fence-hosts" name="pcmk_host_list" value="{names}"/>
        <nvpair id="fence-check" name="pcmk_host_check" value="static-list"/>
        {delay}
      </instance_attributes></primitive>
    <clone id="vm-clone">
      <meta_attributes id="vm-clone-meta">
        <nvpair id="vm-clone-promotable" name="promotable" value="true"/>
        <nvpair id="vm-clone-notify" name="notify" value="true"/>
        <nvpair id="vm-clone-interleave" name="interleave" value="true"/>
        <nvpair id="vm-clone-max" name="clone-max" value="2"/>
      </meta_attributes>
      <primitive id="vm" class="ocf" provider="colo" type="vm">
        <instance_attributes id="vm-parameters">
          <nvpair id="vm-config" name="config" value="{config}"/>
        </instance_attributes>
        {states}
        <operations>
          <op id="vm-start" name="start" interval="0" timeout="60s"/>
          <op id="vm-stop" name="stop" interval="0" timeout="60s"/>
          <op id="vm-promote" name="promote" interval="0" timeout="60s"/>
          <op id="vm-demote" name="demote" interval="0" timeout="60s"/>
          <op id="vm-monitor" name="monitor" interval="3s" timeout="20s" role="Unpromoted"/>
          <op id="vm-monitor-promoted" name="monitor" interval="2s" timeout="20s" role="Promoted"/>
        </operations>
      </primitive>
    </clone>
  </resources><constraints>
    <rsc_location id="vm-not-c" rsc="vm-clone" node="c" score="-INFINITY"/>
  </constraints></configuration><status/></cib>
"""
#: A host that is cut off lives on for a while. Of two, host a stays.
_DELAY: Final = '<nvpair id="fence-delay" name="pcmk_delay_base" value="a:9s;b:3s"/>'
#: The lab's hosts see each other's processes, which the agent knows by their state folder.
_STATE_OF: Final = """<instance_attributes id="vm-{node}">
  <rule id="vm-{node}-rule" score="INFINITY"><expression id="vm-{node}-name"
    attribute="#uname" operation="eq" value="{node}"/></rule>
  <nvpair id="vm-{node}-state" name="state_dir" value="{state}"/></instance_attributes>"""


class Cluster:
    """The two hosts as nodes ``a`` and ``b``, with ``c`` where there are three; none is up yet.

    ``colos`` are theirs: started by the agent, and looked at from outside.
    """

    def __init__(self, stage: Stage, options: str, of_three: bool = False) -> None:
        self.stage = stage
        self._nodes = {**NODES, **THIRD} if of_three else NODES
        self.colos: dict[str, Colo] = {}
        self._up: dict[str, subprocess.Popen[Any]] = {}
        files = self._files = stage.folder / "files"
        files.mkdir()
        for name, place in NODES.items():
            self.colos[name] = stage.colo(name, place)
        self._write_vm_file(files / "vm.toml", options)
        nodes = "".join(
            f"    node {{\n        name: {name}\n        nodeid: {number}\n"
            f"        ring0_addr: {MEMBERS[place]}\n    }}\n"
            for number, (name, place) in enumerate(self._nodes.items(), 1)
        )
        corosync = _COROSYNC.format(two_node=int(not of_three))
        (files / "corosync.conf").write_text(f"{corosync}{nodes}}}\n")
        states = "".join(
            _STATE_OF.format(node=name, state=stage.folder / name) for name in self._nodes
        )
        cib = _CIB.format(
            config=files / "vm.toml",
            states=states,
            names=" ".join(self._nodes),
            delay="" if of_three else _DELAY,
        )
        (files / "cib.xml").write_text(cib)
        networks = {n: stage.lab.prefix(p)[1].partition("=")[2] for n, p in self._nodes.items()}
        self._write_program("fence_lab", _FENCE.format(python=sys.executable, networks=networks))
        self._write_program("vm", agent_file(sys.executable))

    def _write_vm_file(self, path: Path, options: str) -> None:
        """One file for both hosts, in which each console is its host's."""
        text = self.colos["a"].file.read_text()
        own = [str(self.colos[name].console.path) for name in NODES]
        first, table, rest = text.partition("[qemu.secondary]")
        path.write_text(first + table + rest.replace(own[0], own[1]) + options)

    def _write_program(self, name: str, text: str) -> None:
        (self._files / name).write_text(text)
        (self._files / name).chmod(0o755)

    def up(self, name: str) -> None:
        """Have the host start: corosync and Pacemaker run then, and it may be alone."""
        disk = self.stage.folder / f"disk-{name}"
        disk.mkdir(exist_ok=True)
        folders = (disk, self._files)
        inside = ("unshare", "--mount", "--ipc", "--propagation", "private", "sh", "-c", _START)
        log = {"PCMK_logfile": str(disk / "pacemaker.log"), "PCMK_logfacility": "none"}
        process = self.stage.lab.start(
            self._nodes[name], *inside, "sh", *map(str, folders),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env={**os.environ, **log},
        )  # fmt: skip
        self.stage.processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"started\n"
        self._up[name] = process

    def cut_power(self, name: str) -> None:
        """Have the host die, with all that runs on it."""
        script = f"{sys.executable} {self._files / 'fence_lab'}"
        subprocess.run(
            script.split(), input=f"plug={name}\n", text=True, timeout=_COMMAND_S, check=True
        )
        self._up.pop(name).wait(_COMMAND_S)

    def is_up(self, name: str) -> bool:
        """Whether anything runs on that host."""
        return self._up[name].poll() is None

    def run(self, name: str, *command: str) -> str:
        """What a command prints on that host; "" where it fails."""
        pid = str(self._up[name].pid)
        done = subprocess.run(
            ["nsenter", "--target", pid, "--mount", "--net", "--ipc", "--", *command],
            capture_output=True, text=True, timeout=_COMMAND_S, check=False,
        )  # fmt: skip
        return done.stdout if done.returncode == 0 else ""

    def wait_promoted(self, name: str) -> None:
        """Wait until Pacemaker, asked on that host, has it promoted, and no other one."""
        wait(
            lambda: self.promoted(name) == [name],
            f"Pacemaker to have host {name} promoted",
            _WAIT_S,
        )

    def wait_settled(self, asked: str) -> None:
        """Wait until Pacemaker, asked on that host, has nothing left to do."""
        ask = ("sh", "-c", "crm_resource --wait --timeout=20s && echo settled")
        wait(lambda: self.run(asked, *ask) == "settled\n", "the cluster to settle", _WAIT_S)

    def wait_off(self, name: str, asked: str) -> None:
        """Wait until Pacemaker, asked on another host, has this one surely off."""
        off = ("false", "false")
        wait(lambda: self._seen(name, asked) == off, f"host {name} to be fenced", _WAIT_S)

    def wait_member(self, name: str, asked: str) -> None:
        """Wait until it is a member."""
        wait(lambda: self._seen(name, asked)[0] == "true", f"host {name} to be a member", _WAIT_S)

    def _seen(self, name: str, asked: str) -> tuple[str, ...]:
        """Whether a host is online, and whether it is unclean."""
        found = self._status(asked).find(f"./nodes/node[@name='{name}']")
        return ("", "") if found is None else (found.get("online", ""), found.get("unclean", ""))

    def promoted(self, asked: str) -> list[str]:
        """The hosts that Pacemaker has promoted, asked on one of them."""
        return [
            node.get("name", "")
            for resource in self._status(asked).iter("resource")
            if resource.get("role") in ("Promoted", "Master")
            for node in resource.iter("node")
        ]

    def _status(self, asked: str) -> ElementTree.Element:
        """What crm_mon shows on one of them; nothing where it cannot."""
        text = self.run(asked, "crm_mon", "--one-shot", "--output-as=xml")
        return ElementTree.fromstring(text or "<nothing/>")
