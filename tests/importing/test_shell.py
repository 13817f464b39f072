"""A command as libvirt and Proxmox print it, into words."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo.errors import UsageError
from colo.importing.shell import command_words


def test_words_are_a_shells_and_the_environment_goes() -> None:
    text = (
        'LC_ALL=C \\\nHOME=/a \\\r\n/usr/bin/kvm \\\n  -name \'a b,c=d\' -append "x \\"y\\"" \\\n'
    )
    assert command_words(text) == ["/usr/bin/kvm", "-name", "a b,c=d", "-append", 'x "y"']


WRONG = [
    ("", "there is no command"),
    ("A=b", "there is no command"),
    ("ls -l", "it begins with 'ls', which is no QEMU"),
    ("/usr/sbin/virtqemud --timeout 120", "no QEMU"),
    ("qemu-nbd -c /dev/nbd0 a", "no QEMU"),
    ("<domain type='kvm'>", "domxml-to-native"),
    ('{"a": 1}', "it is JSON"),
    ("qemu-system-x86_64 'x", "cannot be taken apart"),
    ("qemu-system-x86_64 \0", "NUL"),
    ("qemu " + "x" * (1 << 20), "no command is longer"),
]


@pytest.mark.parametrize(("text", "told"), WRONG, ids=[told for _, told in WRONG])
def test_what_is_no_command_is_told(text: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        command_words(text)
    assert told in str(caught.value) and "\n" not in str(caught.value)


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))))
def test_any_words_come_through_a_shells_quotes(words: list[str]) -> None:
    quoted = " \\\n  ".join(map(shlex.quote, words)).replace("\\\r\n", "").replace("\\\n'", "'")
    if "\\\n" in "".join(words) or "\\\r" in "".join(words):
        return
    text = " \\\n  ".join(["qemu-system-x86_64", *map(shlex.quote, words)])
    assert command_words(text) == ["qemu-system-x86_64", *words], quoted


@given(st.text())
def test_any_text_is_words_or_one_line(text: str) -> None:
    try:
        command_words(text)
    except UsageError as error:
        assert str(error)
