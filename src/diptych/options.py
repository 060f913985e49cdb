"""Everything a user can set about loading, running and serving, declared once.

Each field becomes a flag of the command line, a variable `DIPTYCH_<NAME>`, and a key of the YAML file named by
`DIPTYCH_OPTIONS`; a flag goes before a variable, a variable before the file, the file before the default here.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, YamlConfigSettingsSource
from yaml import YAMLError

from diptych.errors import InputError
from diptych.types import MediaSettings

MediaBackend = Literal["auto", "onnx", "smt", "mtmd"]
ReasoningFormat = Literal["auto", "none", "deepseek", "deepseek-legacy"]
Pooling = Literal["none", "mean", "cls", "last"]
CacheType = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"]


class Options(BaseSettings):
    """Settings of an engine. Flags that llama.cpp has carry its names."""

    model_config = SettingsConfigDict(env_prefix="DIPTYCH_", frozen=True, extra="forbid")

    n_ctx: Annotated[int, Field(ge=0, description="Context size in tokens; 0 takes the model's own.")] = 4096
    n_batch: Annotated[int, Field(ge=1, description="Most tokens or media rows decoded in one call.")] = 2048
    n_ubatch: Annotated[int, Field(ge=1, description="Most of them computed at once.")] = 512
    n_parallel: Annotated[int, Field(ge=1, description="Sequences decoded side by side.")] = 1
    kv_unified: Annotated[bool, Field(description="One KV cache for all sequences; without it each has an equal part.")] = True
    prefill_chunk: Annotated[
        int, Field(ge=1, description="Most prompt tokens or media rows a step decodes while somebody is being answered.")
    ] = 512
    max_queue: Annotated[int, Field(ge=0, description="Requests that may wait for a slot; more are turned away.")] = 256
    chat_template: Annotated[str | None, Field(description="Chat template in the place of the model's, as text.")] = None
    chat_template_file: Annotated[Path | None, Field(description="The same from a file.")] = None
    embeddings: Annotated[bool, Field(description="Give embeddings too, which takes a KV cache of their own.")] = False
    pooling: Annotated[
        Pooling | None, Field(description="Which rows an embedding is made of; by default the model's own pooling, else none.")
    ] = None
    threads: Annotated[int | None, Field(ge=1, description="CPU threads; by default the physical cores.")] = None
    threads_while_encoding: Annotated[
        int | None,
        Field(
            ge=1, description="CPU threads of the text half while the media half computes on the CPU; by default half of them."
        ),
    ] = None
    n_gpu_layers: Annotated[int, Field(description="Layers of the text half on the GPU; -1 means all.")] = -1
    cache_type_k: Annotated[CacheType, Field(description="Type of the K cache.")] = "f16"
    cache_type_v: Annotated[CacheType, Field(description="Type of the V cache.")] = "f16"
    flash_attn: Annotated[
        Literal["on", "off", "auto"], Field(description="Flash attention in the text half, and in libmtmd.")
    ] = "auto"
    mmap: Annotated[bool, Field(description="Map the text half into memory rather than read it.")] = True
    mlock: Annotated[bool, Field(description="Keep the text half from being swapped out.")] = False
    media_backend: Annotated[
        MediaBackend,
        Field(description="What runs the media half: onnx (smt is the same), mtmd (libmtmd), or auto, onnx where it can."),
    ] = "auto"
    min_pixels: Annotated[int | None, Field(ge=1, description="Pictures are enlarged to at least this many pixels.")] = None
    max_pixels: Annotated[int | None, Field(ge=1, description="Pictures are reduced to at most this many pixels.")] = None
    image_min_tokens: Annotated[
        int | None, Field(ge=1, description="Pictures are enlarged to at least this many tokens; goes before --min-pixels.")
    ] = None
    image_max_tokens: Annotated[
        int | None, Field(ge=1, description="Pictures are reduced to at most this many tokens; goes before --max-pixels.")
    ] = None
    media_max_pixels: Annotated[int, Field(ge=1, description="A picture with more pixels is refused before decoding.")] = (
        178_956_970
    )
    media_max_bytes: Annotated[int, Field(ge=1, description="A file of media with more bytes is refused.")] = 2**30
    media_max_seconds: Annotated[float, Field(gt=0, description="A recording that lasts longer is refused.")] = 14400.0
    precision: Annotated[
        Literal["auto", "f32", "bf16", "f16", "int8"],
        Field(description="Arithmetic of the media half; auto takes int8 where the CPU is made for it, else f32."),
    ] = "auto"
    media_runtime: Annotated[
        Literal["auto", "onnxruntime", "openvino", "kernels"],
        Field(description="What runs the media half's graphs; kernels is ONNX Runtime with Diptych's own for int8."),
    ] = "auto"
    providers: Annotated[tuple[str, ...], Field(description="Execution providers of the media half, best first.")] = (
        "CPUExecutionProvider",
    )
    provider_options: Annotated[dict[str, dict[str, str]], Field(description="Options by execution provider, as JSON.")] = {}
    ep_libraries: Annotated[
        tuple[str, ...], Field(description="An execution provider that comes as a library, as NAME=PATH; it goes first.")
    ] = ()
    allow_absolute_paths: Annotated[
        bool, Field(description="A deployment's config.json may name files outside its directory.")
    ] = False
    encode_max_tokens: Annotated[
        int, Field(ge=1, description="Most media tokens that one run of the encoder makes; a larger picture goes alone.")
    ] = 1024
    encode_max_patches: Annotated[
        int, Field(ge=1, description="Most patches in one run of the encoder; a larger picture goes alone.")
    ] = 512  # beyond it a run of several pictures gains little over a run of each, then loses; see benchmarks/batch.py
    encode_memory: Annotated[
        int | None,
        Field(
            ge=1,
            description="Most memory the media half may take, weights and a run together, in MiB; what needs more is refused.",
        ),
    ] = None
    encode_cache_mib: Annotated[
        int, Field(ge=0, description="Memory for encoded pictures, in MiB, so that none is encoded twice; 0 keeps none.")
    ] = 512
    encode_disk_mib: Annotated[
        int, Field(ge=0, description="Disk for encoded pictures, in MiB, which are there at the next start too; 0 keeps none.")
    ] = 1024
    warmup: Annotated[bool, Field(description="Run both halves once while loading, so that the first answer is not slower.")] = (
        False
    )
    trace: Annotated[
        Path | None, Field(description="Write what happens when to this file, for ui.perfetto.dev or chrome://tracing.")
    ] = None
    trace_ops: Annotated[
        bool, Field(description="With --trace: the encoder's operators too, of the first 64 runs of a graph.")
    ] = False

    @model_validator(mode="after")
    def _trace_has_a_file(self) -> Self:
        if self.trace_ops and self.trace is None:
            raise InputError("--trace-ops adds to a trace, and there is none; name its file with --trace FILE")
        return self

    @property
    def media(self) -> MediaSettings:
        """What is asked of preprocessing."""
        return MediaSettings(self.min_pixels, self.max_pixels, self.image_min_tokens, self.image_max_tokens)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, then variables, then the YAML file. Raises InputError when the file is missing or no YAML."""
        file = os.environ.get("DIPTYCH_OPTIONS")
        if file and not Path(file).is_file():
            raise InputError(f"DIPTYCH_OPTIONS names {file}, and there is no such file")
        try:
            return init_settings, env_settings, YamlConfigSettingsSource(settings_cls, yaml_file=file)
        except (YAMLError, UnicodeDecodeError) as error:
            raise InputError(f"DIPTYCH_OPTIONS names {file}, which is not YAML: {error}") from error


class ServerOptions(Options):
    """Settings of `diptych serve`, beside those of its engine. Flags that llama-server has carry its names."""

    n_parallel: Annotated[int, Field(ge=1, description="Slots: sequences decoded side by side.")] = 4
    warmup: Annotated[bool, Field(description="Run both halves once while loading, so that the first answer is not slower.")] = (
        True
    )
    host: Annotated[str, Field(description="Address to listen on; several by commas.")] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="Port to listen on; 0 takes a free one and tells which.")] = 8080
    alias: Annotated[
        str | None,
        Field(description="Name of the model in answers, or several by commas; by default that of its file or directory."),
    ] = None
    tags: Annotated[str, Field(description="Words that /v1/models tells of the model, between commas.")] = ""
    api_key: Annotated[tuple[str, ...], Field(description="A key that clients must show; several by commas or repeated.")] = ()
    api_key_file: Annotated[Path | None, Field(description="File of such keys, one a line; lines with # are left out.")] = None
    server_name: Annotated[
        tuple[str, ...],
        Field(
            description="A host name by which clients may call this server, beside localhost and the machine's own; * for any."
        ),
    ] = ()
    cors_origins: Annotated[
        tuple[str, ...],
        Field(
            description="An origin whose pages may use this server, such as https://example.org; localhost for all of this "
            "machine, * for any."
        ),
    ] = ()
    max_body_mib: Annotated[int, Field(ge=1, description="Largest body of a request, in MiB.")] = 64
    media_max_pixels: Annotated[int, Field(ge=1, description="A picture with more pixels is refused before decoding.")] = 2**26
    media_max_bytes: Annotated[int, Field(ge=1, description="Media with more bytes are refused.")] = 2**26
    media_max_seconds: Annotated[float, Field(gt=0, description="A recording that lasts longer is refused.")] = 3600.0
    media_path: Annotated[Path | None, Field(description="Directory below which file:// media may be read.")] = None
    remote_media: Annotated[bool, Field(description="Fetch media from http and https addresses that requests name.")] = True
    allowed_media_hosts: Annotated[
        tuple[str, ...], Field(description="A host that media may be fetched from; without any, every public one.")
    ] = ()
    allow_private_media: Annotated[
        bool, Field(description="Fetch media from private addresses too: this machine and its neighbours.")
    ] = False
    max_request_seconds: Annotated[
        float | None, Field(gt=0, description="Most seconds a request may take; it ends with what it has by then.")
    ] = None
    drain_seconds: Annotated[
        float, Field(ge=0, description="Seconds that running requests have to come to their end on SIGTERM.")
    ] = 30.0
    sse_ping_interval: Annotated[float, Field(gt=0, description="Seconds of silence after which a stream says it lives.")] = 30.0
    n_predict: Annotated[int, Field(ge=-1, description="Most tokens of an answer that does not say; -1 up to the context.")] = -1
    chat_template_kwargs: Annotated[dict[str, object], Field(description="Variables of the chat template, as JSON.")] = {}
    reasoning_format: Annotated[ReasoningFormat, Field(description="How thoughts are told apart from the answer.")] = "auto"
    reasoning: Annotated[
        Literal["on", "off", "auto"], Field(description="Whether the model is to think before it answers; auto leaves it to it.")
    ] = "auto"
    slots: Annotated[bool, Field(description="Serve /slots.")] = True
    slot_save_path: Annotated[
        Path | None, Field(description="Directory in which clients may save slots, and restore them from.")
    ] = None
    metrics: Annotated[bool, Field(description="Serve /metrics.")] = True
    page: Annotated[bool, Field(description="Serve the chat page at /.")] = True
    log_json: Annotated[bool, Field(description="Log a JSON object a line.")] = False
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Field(description="What is logged.")] = "info"
    otlp_traces_endpoint: Annotated[
        str | None, Field(description="Send an OpenTelemetry trace of each request to this collector, over HTTP.")
    ] = None
