"""Run llama.cpp's own server tests against `diptych serve`, and tell what passes.

`python scripts/upstream.py --source PATH`: PATH is llama.cpp's source, or that of llama-cpp-python, which holds it. Nothing is
downloaded: tiny models of random weights and two small pictures take the place of the published ones. Names behind the
options run those tests alone (`test_basic.py`, `test_basic.py::test_server_props`). `--write` puts the table into
docs/compatibility.md.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests")]

from upstream import models, table  # noqa: E402 - from the folders above
from upstream.place import Place  # noqa: E402


def main() -> int:
    """Run the tests that are named, or all that concern a server of one model; 1 when one fails that is not explained, or
    none ran."""
    given = _arguments()
    source = _llama_cpp(given.source)
    if source is None:
        print(f"{given.source} holds no tools/server/tests; give the folder of llama.cpp or llama-cpp-python", file=sys.stderr)
        return 2
    folder = given.keep or Path(tempfile.mkdtemp(prefix="upstream-"))
    try:
        place = Place(folder, source)
        found = models.write(place.models, source)
        record = folder / "record.jsonl"
        record.unlink(missing_ok=True)
        place.run(found, record, given.tests or [f"{name}.py" for name in table.FILES], given.port, fork=not given.exec)
        results = table.read(record)
    finally:
        if given.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    text = table.markdown(results)
    print(text)
    if given.write:
        table.put(ROOT / "docs" / "compatibility.md", text)
    return 1 if not results or table.unexplained(results) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="llama.cpp's source, or llama-cpp-python's")
    parser.add_argument("--write", action="store_true", help="put the table into docs/compatibility.md")
    parser.add_argument("--keep", type=Path, help="a folder for the models, the records and the servers' logs, which stays")
    parser.add_argument("--port", type=int, default=8080, help="the port of the servers")
    parser.add_argument("--exec", action="store_true", help="start each server as a process of its own, which takes longer")
    parser.add_argument("tests", nargs="*", help="files, or tests by pytest's names; all that concern us when absent")
    return parser.parse_args()


def _llama_cpp(source: Path) -> Path | None:
    return next((p for p in (source, source / "vendor" / "llama.cpp") if (p / "tools" / "server" / "tests").is_dir()), None)


if __name__ == "__main__":
    sys.exit(main())
