"""Writes what a system package has besides the program: man pages, and completion for shells.

    python scripts/manual.py FOLDER

The pages of section 1 say what ``colo COMMAND --help`` says, from the same source: the click
commands.  colo.toml(5) is the table of keys in docs/operating.md, and the README's example.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Final

import click
from click.shell_completion import get_completion_class

from colo import __version__
from colo.cli import main

ROOT: Final = Path(__file__).parents[1]
#: What each shell calls the file with the completion of ``colo``.
COMPLETIONS: Final = {"bash": "colo", "zsh": "_colo", "fish": "colo.fish"}
EXIT_STATUS: Final = "0: done.  1: failed.  2: wrong usage."
DOCUMENTS: Final = "The manual is in /usr/share/doc/colo; docs/two-hosts.md there is the beginning."


def roff(text: str) -> str:
    """Text as roff takes it: as it is read, and no request."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    text = text.replace("`", "\\(ga").replace("^", "\\(ha").replace("~", "\\(ti")
    text = "".join(c if ord(c) < 128 else f"\\[u{ord(c):04X}]" for c in text)
    return "\n".join(f"\\&{line}" if line.startswith(".") else line for line in text.split("\n"))


def marked(text: str) -> str:
    """Text with a little Markdown: what is code becomes bold, a link its words or nothing."""
    text = re.sub(r" \(\[below\]\([^)]+\)\)", "", text)
    text = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", text).replace("**", "")
    parts = re.split(r"`([^`]+)`", text)
    return "".join(f"\\fB{roff(p)}\\fR" if n % 2 else roff(p) for n, p in enumerate(parts))


def paragraphs(text: str) -> str:
    """A docstring's paragraphs."""
    each = (" ".join(part.split()) for part in text.split("\n\n"))
    return "\n.PP\n".join(marked(part) for part in each if part)


def see_also(*pages: str) -> str:
    """Where to read on."""
    return f"{roff(', '.join(pages))}\n.PP\n{roff(DOCUMENTS)}"


def page(title: str, section: int, *parts: tuple[str, str]) -> str:
    """A page of these sections."""
    head = f'.TH "{roff(title)}" {section} "" "colo {__version__}" "colo"\n'
    return head + "".join(f".SH {name}\n{text}\n" for name, text in parts)


def command_page(command: click.Command, name: str) -> str:
    """``colo COMMAND --help`` as a page; ``name`` is ``colo COMMAND``."""
    context = click.Context(command, info_name=name)
    context.help_option_names = ["-h", "--help"]
    records = [param.get_help_record(context) for param in command.get_params(context)]
    options = "\n".join(
        f".TP\n\\fB{roff(name)}\\fR\n{marked(text)}"
        for name, text in filter(None, records)
        if text  # what an argument is the description says
    )
    usage = " ".join(command.collect_usage_pieces(context))
    short = command.get_short_help_str(limit=200).removesuffix(".")
    title = name.replace(" ", "-")
    parts = [
        ("NAME", f"{roff(title)} \\- {roff(short[:1].lower() + short[1:])}"),
        ("SYNOPSIS", f"\\fB{roff(name)}\\fR {roff(usage)}"),
        ("DESCRIPTION", paragraphs(command.help or "")),
        ("OPTIONS", options),
    ]
    also = ["colo(1)", "colo.toml(5)"]
    if isinstance(command, click.Group):
        below = [(each, command.commands[each]) for each in sorted(command.commands)]
        lines = (
            f".TP\n\\fB{roff(each)}\\fR\n{marked(its.get_short_help_str(limit=200))}"
            for each, its in below
        )
        parts.append(("COMMANDS", "\n".join(lines)))
        also = [f"{title}-{each}(1)" for each, _ in below] + also[title == "colo" :]
    parts.append(("EXIT STATUS", EXIT_STATUS))
    parts.append(("SEE ALSO", see_also(*also)))
    return page(title.upper(), 1, *parts)


def command_pages(command: click.Command, name: str) -> dict[str, str]:
    """The pages of a command and of those below it, by their files' names."""
    pages = {f"{name.replace(' ', '-')}.1": command_page(command, name)}
    for each, below in getattr(command, "commands", {}).items():
        pages |= command_pages(below, f"{name} {each}")
    return pages


def vm_file_page() -> str:
    """colo.toml(5): the keys from the manual's table, and the example from the README."""
    manual = (ROOT / "docs" / "operating.md").read_text()
    section = manual.split("## The VM file\n")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ", 2) for line in section.splitlines() if line[:3] == "| `"]
    intro, _, rest = section.partition("\n| key |")
    after = rest[rest.rindex("|\n") + 1 :]
    keys = "\n".join(
        f".TP\n{marked(key)}\n{marked(text)}"
        + (f"\n.br\nDefault: {marked(default)}" if default not in ("none", "required") else "")
        for key, default, text in rows
    )
    example = (ROOT / "README.md").read_text().split("```toml\n")[1].split("```")[0]
    return page(
        "COLO.TOML",
        5,
        ("NAME", "colo.toml \\- what a virtual machine is that colo protects"),
        ("DESCRIPTION", paragraphs(intro)),
        ("KEYS", keys),
        ("RULES", paragraphs(after)),
        ("EXAMPLE", f".nf\n{roff(example)}.fi"),
        ("FILES", marked("`/etc/colo/NAME.toml` is that of the service `colo@NAME`.")),
        ("SEE ALSO", see_also("colo(1)", "colo-check(1)", "colo-import(1)", "colo-node(1)")),
    )


def write(folder: Path) -> None:
    """Write it all: the pages into ``man1`` and ``man5``, and each shell's completion."""
    files = {f"man1/{name}": text for name, text in command_pages(main, "colo").items()}
    files["man5/colo.toml.5"] = vm_file_page()
    for shell, name in COMPLETIONS.items():
        kind = get_completion_class(shell)
        assert kind is not None
        files[f"{shell}/{name}"] = kind(main, {}, "colo", "_COLO_COMPLETE").source()
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.rstrip("\n") + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python scripts/manual.py FOLDER")
    write(Path(sys.argv[1]))
