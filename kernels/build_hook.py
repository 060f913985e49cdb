"""Compiles the kernels while Diptych is installed. Where they cannot be had, Diptych is installed without them."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NAME = "diptych_kernels.so"  # CMake's suffix of a module where the kernels can be had: Linux and macOS
PLACE = Path("diptych", "encoder", NAME)


class Kernels(BuildHookInterface):  # type: ignore[misc]
    """`diptych doctor` tells whether they are there."""

    def dependencies(self) -> list[str]:
        """CMake, unless the machine has it."""
        return [] if shutil.which("cmake") else ["cmake>=3.20"]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Put the library into the package, whose wheel then is for this platform."""
        del version
        root = Path(self.root)
        library = root / "src" / PLACE
        library.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            try:
                _run("cmake", "-S", str(root / "kernels"), "-B", folder)
                _run("cmake", "--build", folder, "--config", "Release")
                shutil.copyfile(Path(folder, NAME), library)
            except (OSError, subprocess.CalledProcessError) as error:
                self.app.display_warning(f"Diptych is installed without its kernels: {_told(error)}")
                return
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
        build_data["artifacts"].append(f"/src/{PLACE.as_posix()}")


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


def _told(error: OSError | subprocess.CalledProcessError) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        lines = [line.strip() for line in (error.stderr or error.stdout).splitlines() if line.strip()]
        return " ".join(lines[-3:])
    return str(error)
