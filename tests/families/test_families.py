"""Finding families."""

from __future__ import annotations

from pathlib import Path

import pytest

from diptych import families
from diptych.errors import FileError, UnknownModel
from diptych.families.qwen2vl import Qwen2VL
from diptych.weights import Weights, write_gguf


def test_a_family_is_found_by_its_projector_and_by_its_architecture() -> None:
    assert families.for_projector("qwen2vl_merger") is Qwen2VL
    assert families.for_architecture("Qwen2VLForConditionalGeneration") is Qwen2VL
    assert Qwen2VL in families.all()


def test_an_unknown_model_is_told_the_known_ones() -> None:
    with pytest.raises(UnknownModel, match=r"'pixtral'.*qwen2vl_merger"):
        families.for_projector("pixtral")
    with pytest.raises(UnknownModel, match="'qwen2vl_merger'"):
        families.for_projector("qwen2vl_merger", "audio")
    with pytest.raises(UnknownModel, match=r"'LlamaForCausalLM'.*Qwen2VLForConditionalGeneration"):
        families.for_architecture("LlamaForCausalLM")


def test_two_families_with_one_projector_are_refused() -> None:
    class Twin(Qwen2VL):
        architectures = ()

    with pytest.raises(ValueError, match=r"Twin and Qwen2VL both claim the image projector 'qwen2vl_merger'"):
        families._check([Qwen2VL, Twin])


def test_a_text_file_is_no_mmproj(tmp_path: Path) -> None:
    write_gguf(tmp_path / "text.gguf", Weights({"general.architecture": "qwen2vl"}, {}))
    with pytest.raises(FileError, match=r"no image encoder.*'qwen2vl'"):
        families.open_family(tmp_path / "text.gguf")
