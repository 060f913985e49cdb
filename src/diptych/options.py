"""Everything a user can set about loading and running, declared once.

Each field becomes a flag of the command line, a variable `DIPTYCH_<NAME>`, and a key of the YAML file named by
`DIPTYCH_OPTIONS`; a flag goes before a variable, a variable before the file, the file before the default here.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, YamlConfigSettingsSource
from yaml import YAMLError

from diptych.errors import InputError

MediaBackend = Literal["auto", "onnx", "smt", "mtmd"]
CacheType = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"]


class Options(BaseSettings):
    """Settings of an engine. Flags that llama.cpp has carry its names."""

    model_config = SettingsConfigDict(env_prefix="DIPTYCH_", frozen=True, extra="forbid")

    n_ctx: Annotated[int, Field(ge=0, description="Context size in tokens; 0 takes the model's own.")] = 4096
    n_batch: Annotated[int, Field(ge=1, description="Most tokens or media rows decoded in one call.")] = 2048
    n_ubatch: Annotated[int, Field(ge=1, description="Most of them computed at once.")] = 512
    n_parallel: Annotated[int, Field(ge=1, description="Sequences decoded side by side.")] = 1
    threads: Annotated[int | None, Field(ge=1, description="CPU threads; by default the physical cores.")] = None
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
    media_max_pixels: Annotated[int, Field(ge=1, description="A picture with more pixels is refused before decoding.")] = (
        178_956_970
    )
    precision: Annotated[Literal["auto", "f32"], Field(description="Arithmetic of the media half; auto is f32.")] = "auto"
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
    encode_max_patches: Annotated[
        int, Field(ge=1, description="Most patches in one run of the encoder; a larger picture goes alone.")
    ] = 16384
    warmup: Annotated[bool, Field(description="Run the encoder once while loading, so that the first picture is not slower.")] = (
        False
    )

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
