"""Write the generated pages: docs/cli.md from the commands, and the tables of families in docs/models.md and README.md and
of metrics in docs/operations.md.

`python scripts/docs.py --check` writes nothing and fails when a page is not what the code says.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import typer

from diptych import families
from diptych.cli.main import COMMANDS, app
from diptych.server.observe.metrics import described

ROOT = Path(__file__).parent.parent


def pages() -> dict[Path, str]:
    """Every generated page with the text it should have."""
    table = family_table()
    out = {ROOT / "docs" / "cli.md": cli_page()}
    for path in (ROOT / "README.md", ROOT / "docs" / "models.md"):
        out[path] = with_table(path, "<!-- families -->", table)
    operations = ROOT / "docs" / "operations.md"
    out[operations] = with_table(operations, "<!-- metrics -->", metrics_table())
    return out


def with_table(path: Path, mark: str, table: str) -> str:
    """A page with what stands between two marks replaced."""
    before, _, rest = path.read_text().partition(mark)
    after = rest.partition(mark)[2]
    return f"{before}{mark}\n{table}\n{mark}{after}"


def metrics_table() -> str:
    """A Markdown row for each name at /metrics."""
    rows = [f"| `{name}` | {kind} | {text} |" for name, kind, text in described()]
    return "\n".join(["| name | kind | |", "|---|---|---|", *rows])


def family_table() -> str:
    """A Markdown row for each family."""
    rows = ["| family | checkpoints of class | projector | media | positions |", "|---|---|---|---|---|"]
    for family in families.all():
        planes = "M-RoPE" if family.n_pos == 4 else "linear"
        projectors = ", ".join(f"`{p}`" for names in family.projectors.values() for p in names)
        classes = ", ".join(f"`{a}`" for a in family.architectures)
        rows.append(
            f"| `{family.__module__.rpartition('.')[2]}` | {classes} | {projectors} | {', '.join(family.projectors)} | {planes} |"
        )
    return "\n".join(rows)


def cli_page() -> str:
    """The whole command line in Markdown."""
    group: Any = typer.main.get_command(app())
    parts = [
        "# Command line\n",
        "```\ndiptych --help\n```\n",
        "Made from the commands by `make docs`. Every setting of the last two groups is also a variable `DIPTYCH_<NAME>` "
        "and a key of the YAML file that `DIPTYCH_OPTIONS` names.\n",
    ]
    for name in COMMANDS:
        parts.append(command_section(name, group.commands[name]))
    return "\n".join(parts)


def command_section(name: str, command: Any) -> str:
    """A command's usage, help, and a table for each group of its flags."""
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    usage = " ".join(["diptych", name, *map(written, arguments), "[OPTIONS]"])
    lines = [f"## diptych {name}\n", f"```\n{usage}\n```\n", reflow(command.help or "")]
    groups: dict[str, list[str]] = {}
    if arguments:
        groups["Arguments"] = [f"| `{written(p)}` | {p.help} |" for p in arguments]
    for param in command.params:
        if param.param_type_name == "option" and "--help" not in param.opts:
            groups.setdefault(getattr(param, "rich_help_panel", None) or "Options", []).append(option_row(param))
    for title, rows in groups.items():
        lines += [f"| {title} | |", "|---|---|", *rows, ""]
    return "\n".join(lines)


def option_row(param: Any) -> str:
    spellings = ", ".join(f"`{s}`" for s in (*param.opts, *param.secondary_opts))
    default = param.show_default if isinstance(param.show_default, str) else param.default
    shown = f" Default: `{default}`." if default not in (None, False, "", []) and not callable(default) else ""
    if param.metavar and "|" in param.metavar:
        shown = f" One of {', '.join(f'`{choice}`' for choice in param.metavar.split('|'))}.{shown}"
    if param.required:
        shown = " Required."
    return f"| {spellings} | {(param.help or '').replace('|', chr(92) + '|')}{shown} |"


def reflow(text: str) -> str:
    return "\n\n".join(" ".join(p.split()) for p in re.split(r"\n\s*\n", text.strip())) + "\n"


def written(argument: Any) -> str:
    name = argument.metavar or argument.name.upper()
    return name if argument.required else f"[{name}]"


def main() -> int:
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is not what the code says; run: make docs", file=sys.stderr)
        return 1 if stale else 0
    for path, text in pages().items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
