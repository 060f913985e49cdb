"""Who may import what: the two tables of docs/structure.md, enforced."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "diptych"
LAYERS = (
    ("types", "errors"),
    ("options", "positions", "files", "trace", "reader"),
    ("weights", "media"),
    ("graph",),
    ("families",),
    ("convert", "deploy"),
    ("export", "hub"),
    ("encoder", "llama"),
    ("backend",),
    ("prompt",),
    ("engine",),
    ("verify", "server"),
    ("cli",),
)
HOMES = {
    "llama_cpp": ("llama/",),
    "onnxruntime": ("encoder/session.py",),
    "onnx_ir": ("graph/graph.py", "export.py"),
    "gguf": ("weights/", "convert/"),
    "safetensors": ("weights/", "convert/"),
    "PIL": ("media/",),
    "jinja2": ("prompt/",),
    "fastapi": ("server/",),
    "starlette": ("server/",),
    "uvicorn": ("server/",),
    "prometheus_client": ("server/",),
    "typer": ("cli/",),
    "rich": ("cli/",),
    "huggingface_hub": ("hub/download.py",),
    "httpx2": ("hub/download.py",),
    "opentelemetry": ("server/telemetry.py",),
    "torch": ("verify/checkpoint.py",),
    "transformers": ("verify/checkpoint.py",),
}
FILES = sorted(SOURCE.rglob("*.py"))


def layer_of(unit: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if unit in names)


def unit_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return parts[0]


def imports(path: Path) -> list[str]:
    """Modules a file imports when it runs; those for type checkers alone do not count."""
    tree = ast.parse(path.read_text())
    for_types = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and ast.unparse(branch.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for node in ast.walk(branch)
    }
    found = []
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def crossings(unit: str, modules: list[str]) -> list[str]:
    """The modules of our own that a file of `unit` may not import."""
    wrong = []
    for module in modules:
        parts = module.split(".")
        if parts[0] != "diptych" or len(parts) < 2 or parts[1] == unit or not any(parts[1] in names for names in LAYERS):
            continue
        if layer_of(parts[1]) >= layer_of(unit):
            wrong.append(module)
    return wrong


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_a_module_imports_only_from_layers_above_it(path: Path) -> None:
    unit = unit_of(path)
    if unit == "__init__":
        return  # the public names come from everywhere, when asked for
    assert crossings(unit, imports(path)) == []


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_a_third_party_package_is_imported_in_its_home_only(path: Path) -> None:
    here = str(path.relative_to(SOURCE))
    for module in imports(path):
        homes = HOMES.get(module.split(".")[0])
        assert homes is None or here.startswith(homes), f"{here} imports {module}, whose home is {homes}"


def test_an_import_against_the_order_is_caught() -> None:
    assert crossings("media", ["diptych.engine.engine.Engine"]) == ["diptych.engine.engine.Engine"]
    assert crossings("llama", ["diptych.encoder.half.open_half"]) == ["diptych.encoder.half.open_half"]
    assert crossings("engine", ["diptych.types.Media", "numpy"]) == []
