"""Flags made from the fields of `Options`, so that each setting is declared once."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import Annotated, Any, get_args, get_origin

import typer
from pydantic import ValidationError
from pydantic_core import PydanticUndefined

from diptych.errors import InputError
from diptych.options import Options, ServerOptions

# Flags beside --field-name; those of llama.cpp where it has one.
SPELLINGS: dict[str, tuple[str, ...]] = {
    "n_ctx": ("-c", "--ctx-size"),
    "n_batch": ("-b", "--batch-size"),
    "n_ubatch": ("-ub", "--ubatch-size"),
    "n_parallel": ("-np", "--parallel"),
    "embeddings": ("--embeddings", "--embedding"),
    "threads": ("-t", "--threads"),
    "n_gpu_layers": ("-ngl", "--gpu-layers", "--n-gpu-layers"),
    "cache_type_k": ("-ctk", "--cache-type-k"),
    "cache_type_v": ("-ctv", "--cache-type-v"),
    "flash_attn": ("-fa", "--flash-attn"),
    "encode_max_tokens": ("--mtmd-batch-max-tokens", "--encode-max-tokens"),
    "providers": ("--provider",),
    "ep_libraries": ("--ep-library",),
    "media_backend": ("--vision-backend", "--media-backend"),
    "alias": ("-a", "--alias"),
    "server_name": ("--server-name",),
    "cors_origins": ("--cors-origin", "--cors-origins"),
    "allowed_media_hosts": ("--allowed-media-host",),
    "n_predict": ("-n", "--predict", "--n-predict"),
    "slots": ("--slots",),
    "page": ("--page", "--ui/--no-ui", "--webui/--no-webui"),
}
MEDIA = (
    "media_backend", "min_pixels", "max_pixels", "precision", "media_runtime", "providers", "provider_options", "ep_libraries",
    "allow_absolute_paths", "image_min_tokens", "image_max_tokens", "media_max_pixels", "media_max_bytes", "media_max_seconds",
    "encode_max_tokens", "encode_max_patches", "encode_memory", "warmup",
)  # fmt: skip
TEXT = (
    "n_ctx", "n_batch", "n_ubatch", "threads", "threads_while_encoding", "n_gpu_layers", "cache_type_k", "cache_type_v",
    "flash_attn", "mmap", "mlock", "chat_template", "chat_template_file",
)  # fmt: skip
TRACE = ("trace", "trace_ops")
CACHES = ("encode_cache_mib", "encode_disk_mib")
SHARED = ("n_parallel", "kv_unified", "prefill_chunk", "max_queue", *CACHES, "embeddings", "pooling")
SERVER = tuple(name for name in ServerOptions.model_fields if name not in Options.model_fields)
PANELS = {"Media half": (*MEDIA, *CACHES), "Server": SERVER, "Text half and machine": tuple(Options.model_fields)}


def with_options(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace the parameter `options: Options` of a command by one flag for each field named.

    A flag that is not given leaves its field to the environment, the options file and the default, in this order.
    """

    def wrap(function: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(function, eval_str=True)
        kind: type[Options] = signature.parameters["options"].annotation
        own = [p for p in signature.parameters.values() if p.name != "options"]

        def command(**given: Any) -> None:  # noqa: ANN401
            fields = {name: given.pop(name) for name in names}
            function(**given, options=_options(kind, {k: v for k, v in fields.items() if v not in (None, [])}))

        command.__doc__ = function.__doc__
        command.__name__ = function.__name__
        command.__signature__ = signature.replace(parameters=[*own, *(_flag(kind, name) for name in names)])  # type: ignore[attr-defined]
        return command

    return wrap


def _flag(options: type[Options], name: str) -> inspect.Parameter:
    """A typer option for a field of Options: its spellings, its help with the default, and None when not given."""
    field = options.model_fields[name]
    spelling = SPELLINGS.get(name, ("--" + name.replace("_", "-"),))
    kind: Any = field.annotation
    if get_origin(kind) is tuple:
        kind = list[str]
    elif get_origin(kind) is dict:
        kind = str
    elif str not in get_args(kind) and all(isinstance(a, str) for a in get_args(kind)) and get_args(kind):
        kind = str  # a Literal; pydantic checks it and says what is allowed
    elif get_args(kind):
        kind = next(a for a in get_args(kind) if a is not type(None))
    if kind is bool:
        spelling = (f"{spelling[0]}/--no-{spelling[0][2:]}", *spelling[1:])
    choices = (
        "|".join(get_args(field.annotation))
        if kind is str and all(isinstance(a, str) for a in get_args(field.annotation))
        else None
    )
    default = field.default if field.default is not PydanticUndefined else None
    shown = default if isinstance(default, (int, float, str)) and not isinstance(default, bool) else None
    info = typer.Option(
        None, *spelling, help=field.description, show_default=str(shown) if shown is not None else False, metavar=choices,
        rich_help_panel=next(panel for panel, names in PANELS.items() if name in names),
    )  # fmt: skip
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=info, annotation=kind | None)


def _options(kind: type[Options], given: dict[str, Any]) -> Options:
    """Options from the flags that were given. Raises InputError in one line for a value that does not fit."""
    for name in ("provider_options", "chat_template_kwargs"):
        if isinstance(given.get(name), str):
            given[name] = _json(name, given[name])
    for name in ("api_key", "cors_origins"):
        if name in given:
            given[name] = [part for value in given[name] for part in value.split(",") if part]
    try:
        return kind(**given)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "options"
        if first["type"] == "extra_forbidden":
            raise InputError(f"there is no setting {name!r}; there are {', '.join(kind.model_fields)}") from error
        flag = SPELLINGS.get(name, ("--" + name.replace("_", "-"),))[-1]
        raise InputError(f"{flag} (DIPTYCH_{name.upper()}): {first['msg']}, got {first['input']!r}") from error


def _json(name: str, text: str) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(f"--{name.replace('_', '-')} takes a JSON object such as '{{\"NAME\": {{}}}}': {error}") from error


MaxTokens = Annotated[int, typer.Option("-n", "--predict", help="Most tokens to answer with; -1 up to the context.")]
