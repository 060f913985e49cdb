"""`diptych doctor`: what this machine has, and what is missing."""

from __future__ import annotations

import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

from diptych.cli import console
from diptych.encoder.precision import WATCHED, cpu_features
from diptych.errors import EngineError, MissingExtra
from diptych.options import Options

PACKAGES = ("diptych", "llama-cpp-python", "onnxruntime", "onnx-ir", "gguf", "numpy", "pillow")
OPTIONAL = {  # module → what it is for, and the command that brings it
    "torch": ("comparing a conversion with its checkpoint", "pip install torch transformers"),
    "transformers": ("comparing a conversion with its checkpoint", "pip install torch transformers"),
    "openvino": ("the media half in int8, bf16 and f16", "pip install 'diptych[openvino]'"),
}


def command(as_json: console.Json = False) -> None:
    """Show versions, hardware, what is missing and how to get it."""
    found = examine()
    if as_json:
        console.print_json(found)
        return
    for title, facts in found.items():
        if title != "problems":
            console.facts(
                title, {name: ", ".join(value) if isinstance(value, list) else str(value) for name, value in facts.items()}
            )
    for problem in found["problems"]:
        console.out.print(f"[yellow]![/] {problem}", soft_wrap=True)
    if not found["problems"]:
        console.out.print("[green]✓[/] everything Diptych needs is here; try: diptych demo")


def examine() -> dict[str, Any]:
    """All facts by title, and under `problems` a line for each thing to mend."""
    versions = {name: installed(name) for name in PACKAGES}
    problems = [f"{name} is not installed; run: pip install {name}" for name, v in versions.items() if v is None]
    optional: dict[str, str] = {}
    for module, (use, how) in OPTIONAL.items():
        optional[module] = (installed(module) or "here") if find_spec(module) else f"absent; for {use}: {how}"
    memory = psutil.virtual_memory()
    if memory.available < 2e9:
        problems.append(
            f"only {memory.available / 1e9:.1f} GB of memory are free; close something, or use a smaller quantisation"
        )
    providers, provider_problem = execution_providers()
    features = [name for name in WATCHED if name in cpu_features()] or [sys.platform]
    llama, llama_problem = llama_system()
    problems += [p for p in (provider_problem, llama_problem) if p]
    return {
        "Versions": {"python": platform.python_version(), **{k: v or "missing" for k, v in versions.items()}},
        "Machine": {
            "system": platform.platform(),
            "processor": processor(),
            "cores": f"{psutil.cpu_count(logical=False)} physical, {psutil.cpu_count()} logical",
            "features": features,
            "memory": f"{memory.total / 1e9:.1f} GB, {memory.available / 1e9:.1f} GB free",
            "disk": f"{shutil.disk_usage(Path.home()).free / 1e9:.1f} GB free in {Path.home()}",
        },
        "Media half": {"execution providers": providers, **runtime()},
        "Text half": llama,
        "Optional": optional,
        "problems": problems,
    }


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def execution_providers() -> tuple[list[str], str | None]:
    """What ONNX Runtime can run on, or why it cannot be asked."""
    from diptych.encoder.ort import available_providers

    try:
        return available_providers(), None
    except ImportError as error:
        return [], f"ONNX Runtime does not load: {error}; run: pip install --force-reinstall onnxruntime"


def runtime() -> dict[str, str]:
    """What a media half would compute in with the options of the environment, and why."""
    from diptych.encoder.precision import choose

    options = Options()
    try:
        chosen = choose(options)
    except (EngineError, MissingExtra) as error:
        return {f"precision {options.precision}": str(error)}
    names = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "kernels": "Diptych's kernels in ONNX Runtime"}
    return {f"precision {options.precision}": f"{chosen.precision} by {names[chosen.runtime]}: {chosen.why}"}


def llama_system() -> tuple[dict[str, Any], str | None]:
    """What llama.cpp was built with, or why it cannot be asked."""
    try:
        from diptych.llama import system
    except (ImportError, OSError, RuntimeError) as error:
        return {}, f"llama.cpp does not load: {error}; run: pip install --force-reinstall --no-cache-dir llama-cpp-python"
    return {"built with": system.features(), "layers on a GPU": "yes" if system.gpu() else "no, built for the CPU"}, None


def processor() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
