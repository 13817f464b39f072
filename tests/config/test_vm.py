"""The VM file: what it may say, and what is told about what it may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from colo.arbiters.named import check_failover
from colo.config import TlsFiles, VmConfig, load
from colo.config.vm import Disk, Failover, OneHost, QemuArgs, StoreRoom
from colo.errors import UsageError

FULL = """
name = "web1"
[qemu]
binary = "/opt/qemu"
args = ["-machine", "pc", "-m", "512"]
accel = "tcg"
[qemu.primary]
args = ["-netdev", "tap,id=n0,ifname=tap0"]
[qemu.secondary]
args = ["-netdev", "tap,id=n0,ifname=tap1"]
[store]
folder = "/mnt/huge"
other_memory_mib = 16
device_state_mib = 32
[failover]
silence_s = 2
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "web1.toml"


def test_a_file_says_all_of_it(file: Path) -> None:
    file.write_text(FULL)
    config = load(file)
    assert config == VmConfig(
        name="web1",
        qemu=QemuArgs(
            binary="/opt/qemu",
            args=("-machine", "pc", "-m", "512"),
            accel="tcg",
            primary=OneHost(args=("-netdev", "tap,id=n0,ifname=tap0")),
            secondary=OneHost(args=("-netdev", "tap,id=n0,ifname=tap1")),
        ),
        store=StoreRoom(folder=Path("/mnt/huge"), other_memory_mib=16, device_state_mib=32),
        failover=Failover(silence_s=2.0),
    )
    assert isinstance(config.failover.silence_s, float)
    assert config.memory == 512 << 20
    assert config.limits.ram_bytes == (512 + 16) << 20
    assert config.limits.device_bytes == 32 << 20


def test_a_file_need_say_no_more_than_a_name(file: Path) -> None:
    file.write_text('name = "web1"')
    config = load(file)
    assert config == VmConfig(name="web1")
    assert (config.qemu.binary, config.qemu.accel) == ("qemu-system-x86_64", "auto")
    assert (config.failover.silence_s, config.store.folder) == (10.0, Path("/dev/shm"))
    assert config.memory == 128 << 20


DISKS = """
name = "web1"
[hosts]
a = "tcp:10.0.0.1:9000"
b = "tcp:10.0.0.2:9000"
[[disks]]
id = "root"
primary = "/a/root.qcow2"
secondary = "/b/root.raw"
[[disks]]
id = "data"
primary = "/dev/sda"
secondary = "/dev/sdb"
"""


def test_a_disk_lies_somewhere_on_each_host_and_a_host_has_its_own(file: Path) -> None:
    file.write_text(DISKS)
    config = load(file)
    root = Disk("root", Path("/a/root.qcow2"), Path("/b/root.raw"))
    assert config.disks == (root, Disk("data", Path("/dev/sda"), Path("/dev/sdb")))
    for host, at in (("a", "/a/root.qcow2"), ("b", "/b/root.raw")):
        seen = config.seen_from(host).disks[0]
        assert (seen.id, seen.primary, seen.secondary) == ("root", Path(at), Path(at))


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('"data"', '"root"', "[[disks]] id = 'root': it is there more than once"),
        ('"data"', '"1data"', "[[disks]] id = '1data': a letter, and up to 30 letters"),
        ('"data"', f'"{"x" * 32}"', "a letter, and up to 30 letters"),
        ('"/dev/sda"', '"sda"', "[[disks]] data: sda has to be a whole path, from / on"),
        ('secondary = "/dev/sdb"', "", "disks.secondary is missing"),
    ],
)
def test_what_is_wrong_with_a_disk_is_told(old: str, new: str, told: str, file: Path) -> None:
    file.write_text(DISKS.replace(old, new))
    with pytest.raises(UsageError) as caught:
        load(file)
    assert told in str(caught.value)


@pytest.mark.parametrize("name", ["a", "web1", "Web-1.example_com", "0", "x" * 64])
def test_a_name_can_be_a_file_name(name: str, file: Path) -> None:
    file.write_text(f'name = "{name}"')
    assert load(file).name == name


def test_a_latency_of_the_processors_is_asked_for_only_where_it_is_named(file: Path) -> None:
    file.write_text('name = "web1"\n[checkpoints]\ncpu_latency_us = 0\n')
    assert load(file).checkpoints.cpu_latency_us == 0
    file.write_text('name = "web1"\n[checkpoints]\n')
    assert load(file).checkpoints.cpu_latency_us is None


def test_tls_is_three_files_and_perhaps_a_name(file: Path) -> None:
    text = 'name = "web1"\n[tls]\nca = "/ca"\ncertificate = "host.crt"\nkey = "/key"\n'
    file.write_text(text)
    assert load(file).tls == TlsFiles(Path("/ca"), Path("host.crt"), Path("/key"))
    file.write_text(text + 'name = "web1.example"\n')
    assert load(file).tls == TlsFiles(Path("/ca"), Path("host.crt"), Path("/key"), "web1.example")


BAD = [
    ("", "name is missing"),
    ("name =", "Invalid value (at end of document)"),
    ("name = 1", "name = 1: it has to be text"),
    ("name = true", "name = True: it has to be text"),
    ('name = ""', "name = '': 1 to 64 letters, digits, dots, dashes or underscores"),
    ('name = "../up"', "name = '../up': 1 to 64 letters"),
    ('name = ".hidden"', "name = '.hidden': 1 to 64 letters"),
    ('name = "a b"', "name = 'a b': 1 to 64 letters"),
    ('name = "a\\n"', r"name = 'a\n': 1 to 64 letters"),
    (f'name = "{"x" * 65}"', "1 to 64 letters"),
    ('name = "a"\nnames = "b"', "names: there is no such key"),
    ('name = "a"\nqemu = "x"', "[qemu] has to be a table"),
    ('name = "a"\n[qemu]\nbinary = 1', "qemu.binary = 1: it has to be text"),
    ('name = "a"\n[qemu]\nbinray = "q"', "qemu.binray: there is no such key"),
    ('name = "a"\n[qemu]\nargs = "-m 512"', "qemu.args: a list of texts, one for each argument"),
    ('name = "a"\n[qemu]\nargs = ["-m", 512]', "qemu.args: a list of texts"),
    ('name = "a"\n[qemu]\naccel = "hvf"', "[qemu] accel = 'hvf': one of auto, kvm, tcg"),
    ('name = "a"\n[qemu]\nprimary = []', "[qemu.primary] has to be a table"),
    ('name = "a"\n[qemu.primary]\nargs = 1', "qemu.primary.args: a list of texts"),
    ('name = "a"\n[qemu.primary]\nbinary = "q"', "qemu.primary.binary: there is no such key"),
    ('name = "a"\n[qemu.secondary]\nx = 1', "qemu.secondary.x: there is no such key"),
    ('name = "a"\n[store]\nfolder = 1', "store.folder = 1: it has to be text"),
    ('name = "a"\n[store]\nother_memory_mib = 1.5', "other_memory_mib = 1.5: it has to be a whole"),
    ('name = "a"\n[store]\nother_memory_mib = true', "store.other_memory_mib = True: it has"),
    ('name = "a"\n[store]\nother_memory_mib = 0', "other_memory_mib = 0: more than 0"),
    ('name = "a"\n[store]\ndevice_state_mib = -1', "device_state_mib = -1: more than 0"),
    ('name = "a"\n[store]\nx = 1', "store.x: there is no such key"),
    ('name = "a"\n[failover]\nsilence_s = "1"', "silence_s = '1': it has to be a"),
    ('name = "a"\n[failover]\nsilence_s = 0', "silence_s = 0.0: more than 0"),
    ('name = "a"\n[failover]\nsilence_s = -1.5', "silence_s = -1.5: more than 0"),
    ('name = "a"\n[failover]\nsilence_s = nan', "silence_s = nan: "),
    ('name = "a"\n[failover]\nsilence_s = inf', "silence_s = inf: "),
    ('name = "a"\n[failover]\narbiter = "x"', "file:PATH, exec:COMMAND, pacemaker, manual or none"),
    ('name = "a"\n[failover]\narbiter = "exec:x"', "[failover] arbiter = 'exec:x': the whole path"),
    ('name = "a"\n[failover]\narbiter = "exec:"', "arbiter = 'exec:': exec:COMMAND"),
    ('name = "a"\n[failover]\narbiter = "exec:/x \\""', "No closing quotation"),
    ('name = "a"\n[failover]\nfence = "/x"', "[failover] fence = '/x': exec:COMMAND"),
    ('name = "a"\n[failover]\narbiter = "etcd:e1:2379"', "etcd's address 'e1:2379': http://HOST"),
    ('name = "a"\n[failover]\narbiter = "etcd:http://a,"', "etcd's address '': http://HOST:PORT"),
    ('name = "a"\n[failover.etcd]\nuser = "u"', "[failover.etcd] user and password: both, or"),
    ('name = "a"\n[failover.etcd]\nkey = "k"', "[failover.etcd] certificate and key: both, or"),
    ('name = "a"\n[failover.etcd]\nprefix = "x"', "[failover.etcd] and arbiter = 'none': there"),
    (
        'name = "a"\n[failover]\narbiter = "etcd:http://a"\n[failover.etcd]\nca = "/none"',
        "[failover.etcd] ca, certificate: the addresses have to be https://",
    ),
    (
        'name = "a"\n[failover]\narbiter = "etcd:https://a"\n[failover.etcd]\nca = "/none"',
        "[failover.etcd] ca, certificate, key: No such file or directory",
    ),
    (
        'name = "a"\n[failover]\narbiter = "file:web1.grant"',
        "arbiter = 'file:web1.grant': the whole path, from / on",
    ),
    (
        'name = "a"\n[failover]\nheartbeat_s = 2.0',
        "heartbeat_limit_s = 0.8: at least twice heartbeat_s = 2.0",
    ),
    (
        'name = "a"\n[failover]\nheartbeat_s = 0.5\nheartbeat_limit_s = 0.99',
        "heartbeat_limit_s = 0.99: at least twice heartbeat_s = 0.5",
    ),
    (
        'name = "a"\n[checkpoints]\nstopped_share_max = 1',
        "stopped_share_max = 1.0: a share, more than 0 and less than 1",
    ),
    ('name = "a"\n[checkpoints]\nstopped_share_max = -0.5', "stopped_share_max = -0.5: a share"),
    ('name = "a"\n[checkpoints]\nstopped_share_max = nan', "stopped_share_max = nan: a share"),
    ('name = "a"\n[checkpoints]\nrun_factor = 1.0', "run_factor"),
    ('name = "a"\n[checkpoints]\ncpu_latency_us = 1.5', "cpu_latency_us = 1.5: it has to be"),
    ('name = "a"\n[checkpoints]\ncpu_latency_us = -1', "cpu_latency_us = -1: microseconds, 0 to"),
    ('name = "a"\n[checkpoints]\ncpu_latency_us = 1000001', "microseconds, 0 to 1000000"),
    ('name = "a"\n[tls]', "tls.ca is missing"),
    ('name = "a"\n[tls]\nca = "x"\nkey = "y"', "tls.certificate is missing"),
    ('name = "a"\n[tls]\nca = "x"\ncertificate = "y"', "tls.key is missing"),
    ('name = "a"\n[tls]\nca = 1', "tls.ca = 1: it has to be text"),
    ('name = "a"\n[tls]\nca = "x"\ncertificate = "y"\nkey = "z"\nkeys = "z"', "tls.keys: there is"),
    ('name = "a"\ntls = true', "[tls] has to be a table"),
    ('name = "a"\n[qemu.secondary]\nargs = ["-m", "1G"]', "-m belongs to both hosts"),
    ('name = "a"\n[qemu]\nargs = ["-m", "512X"]', "-m 512X: not a size"),
    *(
        (f'name = "a"\n[{table}]\nargs = ["-x", "{option}"]', f"[qemu] args: remove {option}: ")
        for table in ("qemu", "qemu.primary", "qemu.secondary")
        for option in (
            "-incoming", "-S", "-daemonize", "-pidfile", "-loadvm", "-mem-path", "-mem-prealloc",
        )
    ),
    ('name = "a"\n[qemu]\nargs = ["--daemonize"]', "[qemu] args: remove --daemonize: colo watches"),
    (
        'name = "a"\n[qemu]\nargs = ["-machine", "pc,memory-backend=m"]',
        "[qemu] args: the memory backend 'm' is used, and no -object memory-backend-… there has",
    ),
    *(
        (f'name = "a"\n[qemu.{host}]\nargs = ["-x", "{arg}"]', f"args: {arg} belongs to both hosts")
        for host in ("primary", "secondary")
        for arg in ("-m", "-numa", "memory-backend-ram,id=m,size=1M", "q35,memory-backend=m")
    ),
]  # fmt: skip


@pytest.mark.parametrize(("text", "told"), BAD)
def test_what_is_wrong_is_told_in_one_line_with_its_key(text: str, told: str, file: Path) -> None:
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        load(file, check_failover)
    assert str(caught.value).startswith(f"{file}: ")
    assert told in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_file_that_cannot_be_read_is_told(file: Path) -> None:
    with pytest.raises(UsageError, match=r"web1\.toml: No such file or directory$"):
        load(file)
    with pytest.raises(UsageError, match=r": Is a directory$"):
        load(file.parent)
    file.write_bytes(b"name = '\xff'")
    with pytest.raises(UsageError, match=r"web1\.toml: .*utf-8"):
        load(file)


def test_a_silence_of_two_heartbeats_may_be_a_loss(file: Path) -> None:
    file.write_text('name = "web1"\n[failover]\nheartbeat_s = 0.5\nheartbeat_limit_s = 1')
    assert load(file).failover.heartbeat_limit_s == 1.0


def test_a_file_that_is_nested_too_deep_is_told(file: Path) -> None:
    file.write_text('name = "web1"\na = ' + "[" * 5000)
    with pytest.raises(UsageError) as caught:
        load(file)
    assert str(caught.value).startswith(f"{file}: ")
