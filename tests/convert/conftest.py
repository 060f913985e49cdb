"""Tiny checkpoints in the styles they are found in, made once a session."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

import tiny


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """float32, one file, output of its own, configuration nested as transformers 5 writes it."""
    return tiny.qwen2vl(tmp_path_factory.mktemp("checkpoint") / "tiny-Qwen2-VL", tiny.Qwen2VL())


@pytest.fixture(scope="session")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bfloat16, sharded, no output of its own."""
    shape = tiny.Qwen2VL(seed=1, v_depth=3, n_layer=3, tied=True, dtype="bfloat16", sections=(4, 6, 6), n_ff=160)
    return tiny.qwen2vl(tmp_path_factory.mktemp("checkpoint") / "tied", shape, shards=3)


@pytest.fixture(scope="session")
def flat(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`plain` in other spellings: settings at the top, tensor names with one part more, vocab.json and merges.txt."""
    folder = tmp_path_factory.mktemp("checkpoint") / "flat"
    shutil.copytree(plain, folder)
    old = json.loads((plain / "config.json").read_text())
    text = old.pop("text_config")
    rope = text.pop("rope_parameters")
    old = {**text, **old, "rope_theta": rope["rope_theta"]}
    old["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    (folder / "config.json").write_text(json.dumps(old))
    tensors = load_file(plain / "model.safetensors")
    parts = {"visual.": "model.visual.", "model.": "model.language_model."}
    spelt = {
        next((new + n.removeprefix(old) for old, new in parts.items() if n.startswith(old)), n): t for n, t in tensors.items()
    }
    assert len(spelt.keys() - tensors.keys()) == len(tensors) - 1  # all but lm_head
    save_file(spelt, folder / "model.safetensors", {"format": "pt"})
    whole = json.loads((plain / "tokenizer.json").read_text())
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(whole["model"]["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(" ".join(m) + "\n" for m in whole["model"]["merges"]))
    return folder


@pytest.fixture
def changed(plain: Path, tmp_path: Path) -> Callable[..., Path]:
    """A function that copies `plain` with one JSON file changed: keys set, or removed when the value is `...`."""

    def change(name: str, **values: Any) -> Path:
        folder = tmp_path / "changed"
        if not folder.exists():
            shutil.copytree(plain, folder)
        path = folder / name
        whole = json.loads(path.read_text()) if path.is_file() else {}
        for key, value in values.items():
            at, *names = whole, *key.split("__")
            for part in names[:-1]:
                at = at[part]
            if value is ...:
                del at[names[-1]]
            else:
                at[names[-1]] = value
        path.write_text(json.dumps(whole))
        return folder

    return change
