"""Run vision language models as two halves: text as a GGUF in llama.cpp, media as an ONNX graph on any execution provider."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diptych.encoder.batch import MediaBatch as MediaBatch
    from diptych.engine import Engine as Engine
    from diptych.engine import Stats as Stats
    from diptych.errors import ContextOverflow as ContextOverflow
    from diptych.errors import DiptychError as DiptychError
    from diptych.errors import EngineError as EngineError
    from diptych.errors import FileError as FileError
    from diptych.errors import GrammarError as GrammarError
    from diptych.errors import InputError as InputError
    from diptych.errors import MediaError as MediaError
    from diptych.errors import MediaTooLarge as MediaTooLarge
    from diptych.errors import MismatchedHalves as MismatchedHalves
    from diptych.errors import MissingExtra as MissingExtra
    from diptych.errors import OutputError as OutputError
    from diptych.errors import Overloaded as Overloaded
    from diptych.errors import ReboundMedia as ReboundMedia
    from diptych.errors import TimedOut as TimedOut
    from diptych.errors import Unavailable as Unavailable
    from diptych.errors import UnknownMedia as UnknownMedia
    from diptych.errors import UnknownModel as UnknownModel
    from diptych.errors import UnsupportedMedia as UnsupportedMedia
    from diptych.errors import UnusableMedia as UnusableMedia
    from diptych.options import Options as Options
    from diptych.types import Logprob as Logprob
    from diptych.types import MediaSettings as MediaSettings
    from diptych.types import MediaUse as MediaUse
    from diptych.types import Message as Message
    from diptych.types import Output as Output
    from diptych.types import Request as Request
    from diptych.types import Sampling as Sampling
    from diptych.types import Source as Source
    from diptych.types import Timings as Timings
    from diptych.types import ToolCall as ToolCall
    from diptych.types import Usage as Usage

# Public name → the module it is fetched from when it is first asked for: importing the package loads none of them.
_HOMES = {
    **dict.fromkeys(("Engine", "Stats"), "diptych.engine"),
    "MediaBatch": "diptych.encoder.batch",
    "Options": "diptych.options",
    **dict.fromkeys(
        (
            "Logprob", "MediaSettings", "MediaUse", "Message", "Output", "Request", "Sampling", "Source", "Timings",
            "ToolCall", "Usage",
        ),
        "diptych.types",
    ),
    **dict.fromkeys(
        (
            "ContextOverflow", "DiptychError", "EngineError", "FileError", "GrammarError", "InputError", "MediaError",
            "MediaTooLarge", "MismatchedHalves", "MissingExtra", "OutputError", "Overloaded", "ReboundMedia", "TimedOut",
            "Unavailable", "UnknownMedia", "UnknownModel", "UnsupportedMedia", "UnusableMedia",
        ),
        "diptych.errors",
    ),
}  # fmt: skip

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
