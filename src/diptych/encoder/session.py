"""ONNX Runtime behind one call. The only place that imports it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from diptych.errors import EngineError, FileError
from diptych.options import Options

_ERROR = 3  # ONNX Runtime's severity; its warnings are about its own rewriting of graphs


class Session:
    """A graph with one output, ready to run.

    `model` is the ONNX file's bytes. Its external data lies in `folder`, and is used where it lies, mapped into
    memory; what lies in no file comes in `arrays`, name → (array, ONNX's number of its type). `prepack` rearranges the
    weights ahead: each row of the output then has the same bits whatever other rows are computed with it.
    """

    def __init__(
        self,
        model: bytes,
        options: Options,
        *,
        folder: Path | None = None,
        arrays: Mapping[str, tuple[NDArray[Any], int]] | None = None,
        prepack: bool = True,
    ) -> None:
        """Raises EngineError when a provider is not there or does not start, FileError when the graph cannot be loaded."""
        _check_providers(options)
        settings = _settings(options, folder, prepack)
        self._arrays = [_value(*a) for a in (arrays or {}).values()]  # not copied: they live as long as the session
        if arrays:
            settings.add_external_initializers(list(arrays), self._arrays)
        providers = [(name, options.provider_options.get(name, {})) for name in options.providers]
        try:
            self._session = ort.InferenceSession(model, settings, providers=providers)
        except Exception as error:  # ONNX Runtime's exceptions have no common class but this
            raise FileError(f"ONNX Runtime cannot load the media half: {_line(error)}") from error
        _check_started(options.providers, self._session.get_providers())
        self._output = self._session.get_outputs()[0].name

    def run(self, feed: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """The output for these inputs. Raises EngineError when ONNX Runtime fails."""
        try:
            (output,) = self._session.run([self._output], dict(feed))
        except Exception as error:
            raise EngineError(f"ONNX Runtime could not run the media half: {_line(error)}") from error
        return output  # type: ignore[no-any-return]

    def close(self) -> None:
        """Free the graph and its memory."""
        del self._session
        self._arrays = []


def available_providers() -> list[str]:
    """The execution providers of the installed ONNX Runtime."""
    return list(ort.get_available_providers())


def _settings(options: Options, folder: Path | None, prepack: bool) -> ort.SessionOptions:
    settings = ort.SessionOptions()
    settings.log_severity_level = _ERROR
    settings.intra_op_num_threads = options.threads or 0
    # A plan of memory is kept for each shape it meets: at 1036×1036 a third more memory, and nothing gained in time.
    settings.enable_mem_pattern = False
    settings.add_session_config_entry("session.disable_prepacking", "0" if prepack else "1")
    if folder:
        settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    return settings


def _check_providers(options: Options) -> None:
    available = available_providers()
    for name in options.providers:
        if name not in available:
            raise EngineError(
                f"the execution provider {name!r} is not in the installed ONNX Runtime, which has {', '.join(available)}; "
                "choose one of these or install the build of onnxruntime that has it"
            )
    if unused := [name for name in options.provider_options if name not in options.providers]:
        raise EngineError(f"provider_options are for {unused[0]!r}, which is not among the providers; add it or leave them out")


def _check_started(wanted: Sequence[str], started: Sequence[str]) -> None:
    """ONNX Runtime goes on without a provider that does not start; the user asked for it, so that is an error."""
    missing = [name for name in wanted if name not in started]
    if missing:
        raise EngineError(f"the execution provider {missing[0]} did not start; is its runtime library installed?")


def _value(array: NDArray[Any], element_type: int) -> ort.OrtValue:
    if array.dtype.kind == "V" or array.dtype.name == "bfloat16":  # NumPy has no such type: its bits go over
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), element_type)
    return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))


def _line(error: Exception) -> str:
    """The part of ONNX Runtime's message that says what is wrong, on one line."""
    text = " ".join(str(error).split())
    return text.rpartition(" : ")[2] or type(error).__name__
