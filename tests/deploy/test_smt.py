"""SMT configurations: every key, old spellings, what goes before what, and what is said of mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from diptych import deploy
from diptych.deploy import Encoder, OnnxHalf
from diptych.deploy.deployment import Provider, Smt
from diptych.deploy.rules import rule_for
from diptych.errors import FileError

SAMPLE = """{
    // the developer guide's example, comments and all
    "architectures": ["Qwen3_5ForConditionalGeneration"],
    "vision_model": {
        "model_path": "v-384.f16.onnx",  // change together with input_size
        "input_size": 384,
        # one more kind
        "spacemit_ep_intra_thread_num": 4,
        "spacemit_ep_inter_thread_num": 1,
        "spacemit_ep_intra_thread_affinity": "8;9;10;11"
    },
    "vision_preprocess": {
        "rescale_factor": 0.00392156862745098,
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]
    },
    "text_model": {"model_path": "t-q41.gguf", "hidden_size": 1024}
}"""
INTRA = "SPACEMIT_EP_INTRA_THREAD_NUM"
THREADS = {INTRA: "4", "SPACEMIT_EP_INTER_THREAD_NUM": "1"}
NAME = "SpaceMITExecutionProvider"


def folder(path: Path, config: str | dict[str, Any], *names: str) -> Path:
    path.mkdir(exist_ok=True)
    for name in names or ("v.onnx", "t.gguf"):
        (path / name).touch()
    (path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return path


def minimal(**vision: Any) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3VL"],
        "vision_model": {"model_path": "v.onnx", **vision},
        "text_model": {"model_path": "t.gguf", "hidden_size": 64},
    }


def onnx(path: Path, config: str | dict[str, Any], *names: str) -> OnnxHalf:
    found = deploy.find(folder(path, config, *names)).onnx
    assert found is not None
    return found


def test_the_documented_sample_is_read(tmp_path: Path) -> None:
    found = deploy.find(folder(tmp_path, SAMPLE, "v-384.f16.onnx", "t-q41.gguf"))
    assert (found.text, found.mmproj, found.notes) == (tmp_path / "t-q41.gguf", None, ())
    threads = {**THREADS, "SPACEMIT_EP_INTRA_THREAD_AFFINITY": "8;9;10;11"}
    assert found.onnx == OnnxHalf(
        tmp_path / "config.json",
        (Encoder(tmp_path / "v-384.f16.onnx", (384, 384)),),
        Smt("Qwen3_5ForConditionalGeneration", 0.00392156862745098, (0.5,) * 3, (0.5,) * 3),
        1024,
        (Provider(NAME, threads, named=True),),
    )


def test_architectures_may_be_a_plain_string_and_the_text_half_may_be_unnamed(tmp_path: Path) -> None:
    config = {**minimal(), "architectures": "Qwen3VL", "text_model": {"hidden_size": 64}}
    found = deploy.find(folder(tmp_path, config, "v.onnx", "a.gguf"))
    assert found.text == tmp_path / "a.gguf"
    assert found.onnx
    assert found.onnx.model == Smt("Qwen3VL")
    other = folder(tmp_path / "b", config, "v.onnx", "a.gguf", "b.gguf")
    assert deploy.find(other).text is None
    assert deploy.find(other, model=other / "b.gguf").text == other / "b.gguf"
    assert deploy.find(smt=other, model=other / "b.gguf", mmproj=other / "a.gguf").mmproj == other / "a.gguf"


@pytest.mark.parametrize(
    ("vision", "size"),
    [
        ({}, None),
        ({"input_size": 504}, (504, 504)),
        ({"input_width": 756, "input_height": 336}, (756, 336)),
        ({"input_size": 504, "input_width": 756, "input_height": 336}, (756, 336)),
    ],
)
def test_a_size_is_square_or_has_two_sides(tmp_path: Path, vision: dict[str, int], size: tuple[int, int] | None) -> None:
    assert onnx(tmp_path, minimal(**vision)).encoders[0].size == size


def test_several_models_make_a_ladder(tmp_path: Path) -> None:
    models = [{"model_path": "v.onnx", "input_size": 64}, {"model_path": "w.onnx", "input_width": 64, "input_height": 96}]
    found = onnx(tmp_path, minimal(input_size=64, models=models), "v.onnx", "w.onnx", "t.gguf")
    assert found.encoders == (Encoder(tmp_path / "v.onnx", (64, 64)), Encoder(tmp_path / "w.onnx", (64, 96)))


@pytest.mark.parametrize(
    ("inner", "outer", "old", "options", "named"),
    [
        (None, None, {}, THREADS, False),
        ({"A": "1"}, None, {}, {**THREADS, "A": "1"}, True),
        ({"A": "1"}, {"A": "2", "B": "3"}, {}, {**THREADS, "A": "1", "B": "3"}, True),
        (None, {INTRA: 8}, {}, {**THREADS, INTRA: "8"}, True),
        (None, {INTRA: "8"}, {INTRA.lower(): 2}, {**THREADS, INTRA: "2"}, True),
        ({INTRA: "6"}, None, {INTRA.lower(): 2}, {**THREADS, INTRA: "6"}, True),
    ],
)  # fmt: skip
def test_options_of_the_provider_are_merged_the_inner_ones_first(
    tmp_path: Path, inner: Any, outer: Any, old: dict[str, Any], options: dict[str, str], named: bool
) -> None:
    config = minimal(**old, **({"ep_config": inner} if inner else {}))
    found = onnx(tmp_path, {**config, **({"ep_config": outer} if outer else {})})
    assert found.providers == (Provider(NAME, options, named),)


def test_other_providers_have_objects_of_their_own(tmp_path: Path) -> None:
    config = {**minimal(ep_config={"QNN": {"backend": "htp"}}), "ep_config": {"QNN": {"backend": "cpu", "n": 2}, "X": "y"}}
    assert onnx(tmp_path, config).providers == (
        Provider("QNN", {"backend": "htp", "n": "2"}),
        Provider(NAME, {**THREADS, "X": "y"}),
    )


def test_an_audio_model_is_known_and_told_to_be_unused(tmp_path: Path) -> None:
    audio = {"audio_model": {"frontend_model_path": "f.onnx", "backend_model_path": "b.onnx", "d_model": 896}}
    found = deploy.find(folder(tmp_path, {**minimal(), **audio}))
    assert found.onnx
    assert len(found.notes) == 1
    assert "audio is not run yet" in found.notes[0]
    alone = {"architectures": ["Qwen3ASRForConditionalGeneration"], **audio, "text_model": {"model_path": "t.gguf"}}
    found = deploy.find(folder(tmp_path / "asr", alone))
    assert (found.text, found.onnx, found.mmproj, len(found.notes)) == (tmp_path / "asr" / "t.gguf", None, None, 1)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (("architectures", None), "line 1: there is no architectures; add it"),
        (("architectures", []), "architectures is \\[\\], and an array with the name"),
        (("architectures", [7]), "architectures is \\[7\\]"),
        (("vision_model", 5), "line 5: vision_model is 5, and an object is expected"),
        (("vision_model.model_path", None), "line 5: there is no vision_model.model_path, a string"),
        (("vision_model.model_path", "w.onnx"), r"line 6: vision_model.model_path is .*there is no file .*w\.onnx"),
        (("vision_model.model_path", "../v.onnx"), "line 6: .*a file of this folder is expected"),
        (("vision_model.input_size", "384"), 'line 7: vision_model.input_size is "384", and a whole number'),
        (("vision_model.input_size", -1), "line 7: vision_model.input_size is -1"),
        (("vision_model.input_width", 5), "line 5: vision_model has one of input_width and input_height"),
        (("vision_model.ep_config", "x"), "line 7: vision_model.ep_config"),
        (("vision_model.ep_config", {"A": [1]}), "vision_model.ep_config.A is \\[1\\], and a string"),
        (("vision_model.models", [1]), "vision_model.models is \\[1\\], and an array of objects"),
        (("text_model", None), "line 1: there is no text_model"),
        (("text_model.hidden_size", None), "there is no text_model.hidden_size, a whole number"),
        (("text_model.hidden_size", 0), "text_model.hidden_size is 0, and the width of the rows"),
        (("vision_preprocess", {"image_mean": [1, "2", 3]}), "vision_preprocess.image_mean"),
        (("vision_preprocess", {"rescale_factor": "1/255"}), "vision_preprocess.rescale_factor"),
    ],
)
def test_a_missing_or_wrong_key_is_named_with_its_line(tmp_path: Path, edit: tuple[str, Any], words: str) -> None:
    config = minimal()
    *path, last = edit[0].split(".")
    block = config
    for name in path:
        block = block[name]
    if edit[1] is None:
        del block[last]
    else:
        block[last] = edit[1]
    with pytest.raises(FileError, match=words) as caught:
        deploy.find(folder(tmp_path, json.dumps(config, indent=2), "v.onnx", "t.gguf"))
    assert "\n" not in str(caught.value)
    assert "config.json" in str(caught.value)


@pytest.mark.parametrize(
    ("architecture", "n_pos", "size", "values", "begin"),
    [
        ("Qwen2VLForConditionalGeneration", 4, None, "normalised", "<|vision_start|>"),
        ("my_QWEN2_VL_thing", 4, None, "normalised", "<|vision_start|>"),
        ("Qwen2_5_VLForConditionalGeneration", 4, None, "levels", "<|vision_start|>"),
        ("Qwen3VL", 4, (768, 768), "levels", "<|vision_start|>"),
        ("Qwen3_5ForConditionalGeneration", 4, (768, 768), "levels", "<|vision_start|>"),
        ("Qwen3_5MoeForConditionalGeneration", 1, None, "levels", ""),  # that exact string is the only alias
        ("LlavaQwen2ForCausalLM", 1, (512, 512), "shares", ""),
        ("FastVLM", 1, (512, 512), "shares", ""),
        ("MiniCPM-V-4", 1, (448, 448), "normalised", ""),
        ("PaddleOCRVLForConditionalGeneration", 4, None, "normalised", "<|IMAGE_START|>"),
        ("Glm4vForConditionalGeneration", 4, None, "levels", "<|begin_of_image|>"),
        ("Lfm2VlForConditionalGeneration", 1, None, "levels", "<|image_start|>"),
        ("Llama4ForConditionalGeneration", 1, None, "levels", "<|image_start|>"),
        ("Gemma3ForConditionalGeneration", 1, None, "levels", "<start_of_image>"),
        ("InternVLChatModel", 1, None, "levels", "<img>"),
        ("LightOnOCRForConditionalGeneration", 1, None, "levels", "<|im_start|>"),
        ("YoutuVL", 1, None, "levels", "<|vision_start|>"),
        ("Unheard", 1, None, "levels", ""),
    ],
)
def test_an_architecture_has_its_rule(architecture: str, n_pos: int, size: Any, values: str, begin: str) -> None:
    rule = rule_for(architecture)
    assert (rule.n_pos, rule.size, rule.values, rule.around[0]) == (n_pos, size, values, begin)
