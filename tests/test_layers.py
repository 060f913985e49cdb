"""Who may import what: the tables of docs/structure.md, enforced."""

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
    ("verify", "bench", "server"),
    ("cli",),
)
SERVER = (
    ("http", "parsers"),
    ("observe",),
    ("serving",),
    ("asking",),
    ("answering",),
    ("anthropic", "chat", "completion", "responses", "embeddings", "encode", "info", "page", "preview", "slots"),
    ("tokens",),
    ("app",),
    ("run",),
)
HOMES = {
    "llama_cpp": ("llama/",),
    "onnxruntime": ("encoder/ort.py",),
    "openvino": ("encoder/openvino.py",),
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
    "opentelemetry": ("server/observe/telemetry.py",),
    "matplotlib": ("bench/chart.py",),
    "torch": ("verify/checkpoint.py",),
    "transformers": ("verify/checkpoint.py",),
}
FILES = sorted(SOURCE.rglob("*.py"))


def unit_of(path: Path, folder: Path = SOURCE) -> str:
    return path.relative_to(folder).with_suffix("").parts[0]


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


def crossings(unit: str, modules: list[str], layers: tuple[tuple[str, ...], ...] = LAYERS, package: str = "diptych") -> list[str]:
    """The modules of our own that a file of `unit`, which is part of `package`, may not import."""
    layer_of = {name: i for i, names in enumerate(layers) for name in names}
    wrong = []
    for module in modules:
        name = module.removeprefix(f"{package}.").split(".")[0]
        if not module.startswith(f"{package}.") or name == unit or name not in layer_of:
            continue
        if layer_of[name] >= layer_of[unit]:
            wrong.append(module)
    return wrong


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_a_module_imports_only_from_layers_above_it(path: Path) -> None:
    unit = unit_of(path)
    if unit == "__init__":
        return  # the public names come from everywhere, when asked for
    assert crossings(unit, imports(path)) == []


@pytest.mark.parametrize("path", sorted((SOURCE / "server").rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCE)))
def test_a_part_of_the_server_imports_only_from_parts_above_it(path: Path) -> None:
    unit = unit_of(path, SOURCE / "server")
    if unit != "__init__":
        assert crossings(unit, imports(path), SERVER, "diptych.server") == []


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
    assert crossings("http", ["diptych.server.serving.Serving"], SERVER, "diptych.server") == ["diptych.server.serving.Serving"]
    assert crossings("chat", ["diptych.server.completion.body", "diptych.types"], SERVER, "diptych.server") == [
        "diptych.server.completion.body"
    ]
