"""ONNX Runtime behind one call. The only place that imports it."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from diptych.deploy.deployment import Provider
from diptych.encoder.precision import INT8, cpu_features
from diptych.encoder.profile import Profile
from diptych.encoder.rows import beside
from diptych.errors import EngineError, FileError
from diptych.options import Options
from diptych.trace import OFF, Trace

log = logging.getLogger(__name__)

_ERROR = 3  # ONNX Runtime's severity; its warnings are about its own rewriting of graphs
_REGISTERING = ("spacemit_ort",)  # packages that add their execution provider when they are imported


class OrtSession:
    """A graph ready to run.

    `model` is an ONNX file with its external data beside it, or such a file's bytes, with the data in `folder`. Data is
    used where it lies, mapped into memory; what lies in no file comes in `arrays`, name → (array, ONNX's number of its
    type). `prepack` rearranges the weights ahead: each row of the output then has the same bits whatever other rows are
    computed with it. `operators` is a library of such that the graph needs. Without an `arena`, each array is taken from the
    system and given back, which is slower, and where they are large takes less. A trace with `ops` gets those of the
    first runs.
    """

    def __init__(
        self,
        model: bytes | Path,
        options: Options,
        *,
        folder: Path | None = None,
        arrays: Mapping[str, tuple[NDArray[Any], int]] | None = None,
        prepack: bool = True,
        operators: Path | None = None,
        arena: bool = True,
        trace: Trace = OFF,
    ) -> None:
        """Raises EngineError when a provider is not there or does not start, FileError when the graph cannot be loaded."""
        libraries = _libraries(options)
        _check_providers(options, libraries)
        settings = _settings(options, folder, prepack, arena)
        self._profile = Profile(trace) if trace.ops else None
        if self._profile:
            settings.enable_profiling, settings.profile_file_prefix = True, self._profile.prefix
        self._arrays = [_value(*a) for a in (arrays or {}).values()]  # not copied: they live as long as the session
        if arrays:
            settings.add_external_initializers(list(arrays), self._arrays)
        for name, devices in libraries.items():
            settings.add_provider_for_devices(devices, options.provider_options.get(name, {}))
        for name in options.providers if libraries else ():
            settings.add_provider(name, options.provider_options.get(name, {}))
        given = None if libraries else [(name, options.provider_options.get(name, {})) for name in options.providers]
        what = model if isinstance(model, Path) else "the media half"
        try:
            if operators:
                settings.register_custom_ops_library(str(operators))
            self._session = ort.InferenceSession(
                str(model) if isinstance(model, Path) else model, settings, providers=given, enable_fallback=0
            )
        except Exception as error:  # ONNX Runtime's exceptions have no common class but this
            raise FileError(f"ONNX Runtime cannot load {what}: {_line(error)}") from error
        started = [devices[0].ep_name for devices in libraries.values()]
        _check_started([*started, *options.providers], self._session.get_providers())
        self._run_options = ort.RunOptions()
        if arena:  # which is not to keep what a run took: the next one may be larger, and find no use for it
            self._run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self._outputs = [output.name for output in self._session.get_outputs()]
        if self._profile:
            self._profile.begin(self._session.get_profiling_start_time_ns())

    def run(self, feed: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """The outputs for these inputs, beside each other. Raises EngineError when ONNX Runtime fails."""
        return beside(self.outputs(feed, self._outputs))

    def outputs(self, feed: Mapping[str, NDArray[Any]], names: Sequence[str]) -> list[NDArray[np.float32]]:
        """The outputs of these names. Raises EngineError when ONNX Runtime fails."""
        try:
            return self._session.run(list(names), dict(feed), self._run_options)  # type: ignore[no-any-return]
        except Exception as error:
            raise EngineError(f"ONNX Runtime could not run the media half: {_line(error)}") from error
        finally:
            if self._profile and self._profile.full():
                self._end_profile()

    def close(self) -> None:
        """Free the graph and its memory."""
        self._end_profile()
        del self._session
        self._arrays = []

    def _end_profile(self) -> None:
        if self._profile:
            self._profile.end(self._session.end_profiling())
            self._profile = None


def available_providers() -> list[str]:
    """The execution providers of the installed ONNX Runtime."""
    for package in _REGISTERING:
        with suppress(ImportError):
            import_module(package)
    return list(ort.get_available_providers())


def check_providers(options: Options) -> None:
    """Raise EngineError for an execution provider that is not there."""
    _check_providers(options, _libraries(options))


def settled(options: Options, providers: Sequence[Provider]) -> Options:
    """The options with the execution providers that a deployment's configuration speaks of.

    What the user asked for goes first. A provider that is not installed is told once, and the CPU takes over.
    """
    asked = "providers" in options.model_fields_set
    available = available_providers()
    taken = [p for p in providers if p.name in (options.providers if asked else available)]
    for provider in providers:
        if provider.named and provider.name not in available and not asked:
            _tell(f"the execution provider {provider.name} of the configuration is not installed; the CPU takes over")
    names = options.providers if asked else tuple(dict.fromkeys([*(p.name for p in taken), *options.providers]))
    return options.model_copy(
        update={
            "providers": names,
            "provider_options": {**{p.name: dict(p.options) for p in taken}, **options.provider_options},
        }
    )


@cache
def _tell(message: str) -> None:
    """Warn, once for each message."""
    log.warning("%s", message)


def _libraries(options: Options) -> dict[str, list[Any]]:
    """The devices of each execution provider that comes as a library, by the name the user gave it."""
    out = {}
    for text in options.ep_libraries:
        name, _, path = text.partition("=")
        if not name or not path:
            raise EngineError(f"--ep-library {text!r} is not NAME=PATH; write the provider's name, = and the library's file")
        out[name] = _registered(name, os.path.abspath(path))
    return out


@cache
def _registered(name: str, path: str) -> list[Any]:
    """Load a library once, and find the devices that it brings."""
    if not os.path.isfile(path):
        raise EngineError(f"--ep-library {name}={path}: there is no such file; check the path")
    before = {device.ep_name for device in ort.get_ep_devices()}
    try:
        ort.register_execution_provider_library(name, path)
    except Exception as error:
        raise EngineError(f"--ep-library {name}={path} is no execution provider for this ONNX Runtime: {_line(error)}") from error
    devices = [device for device in ort.get_ep_devices() if device.ep_name not in before]
    if not devices:
        raise EngineError(f"--ep-library {name}={path}: it finds no device of its kind on this machine; leave it out")
    return [device for device in devices if device.ep_name == devices[0].ep_name]


def _settings(options: Options, folder: Path | None, prepack: bool, arena: bool) -> ort.SessionOptions:
    settings = ort.SessionOptions()
    settings.log_severity_level = _ERROR
    settings.intra_op_num_threads = options.threads or 0
    # A plan of memory is kept for each shape it meets: at 1036×1036 a third more memory, and nothing gained in time.
    settings.enable_mem_pattern = False
    settings.enable_cpu_mem_arena = arena
    settings.execution_order = ort.ExecutionOrder.PRIORITY_BASED  # that of the file: what is tapped early is done with early
    if "avx2" in cpu_features() and not INT8 & cpu_features():
        # Sums of two products overflow there unless int8 weights are made unsigned, for which they are held twice.
        settings.add_session_config_entry("session.x64quantprecision", "1")
    settings.add_session_config_entry("session.disable_prepacking", "0" if prepack else "1")
    if folder:
        settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    return settings


def _check_providers(options: Options, libraries: Mapping[str, object]) -> None:
    available = available_providers()
    for name in options.providers:
        if name not in available:
            raise EngineError(
                f"the execution provider {name!r} is not in the installed ONNX Runtime, which has {', '.join(available)}; "
                "choose one of these or install the build of onnxruntime that has it"
            )
    if unused := [name for name in options.provider_options if name not in (*options.providers, *libraries)]:
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
