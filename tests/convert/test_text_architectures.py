"""The text half of every architecture, held against what llama.cpp's converter wrote for the same tiny checkpoint."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import tiny_text
from diptych.convert import read_checkpoint, text
from diptych.errors import DiptychError, FileError, UnknownModel
from diptych.weights import Weights

# The converter of llama-cpp-python 0.3.36: the hash of "name shape type" lines under q8_0, the size, and the metadata.
SIZES = {
    "context_length": 4096, "embedding_length": 128, "feed_forward_length": 192, "attention.head_count": 4,
    "attention.head_count_kv": 2, "rope.freq_base": 10000.0, "attention.layer_norm_rms_epsilon": 1e-6,
}  # fmt: skip
HEADS = {"attention.key_length": 32, "attention.value_length": 32}
MIXTURE = {"expert_count": 6, "expert_used_count": 2, "expert_feed_forward_length": 96}
SECTIONS = {"rope.dimension_sections": [6, 5, 5, 0]}
GLM = {"rope.dimension_sections": [2, 3, 3, 0], "rope.dimension_count": 16}
LINEAR = {
    "attention.key_length": 64, "attention.value_length": 64, "rope.dimension_sections": [3, 3, 2, 0], "rope.dimension_count": 16,
    "nextn_predict_layers": 1, "ssm.conv_kernel": 4, "ssm.state_size": 32, "ssm.group_count": 2, "ssm.time_step_rank": 6,
    "ssm.inner_size": 192, "attention.recurrent_layers": [True, True, True, False, False], "full_attention_interval": 4,
}  # fmt: skip
QWEN = {"model": "gpt2", "pre": "qwen2", "eos_token_id": 273, "padding_token_id": 271}
GLM_TOKENS = {
    "model": "gpt2", "pre": "glm4", "eos_token_id": 271, "padding_token_id": 271, "eot_token_id": 278, "unknown_token_id": 271,
    "bos_token_id": 271,
}  # fmt: skip
ERNIE = {"model": "llama", "pre": "default", "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0, "padding_token_id": 0}
THEIRS: dict[str, tuple[str, str, str, dict[str, Any], dict[str, Any]]] = {
    "Qwen2_5_VLForConditionalGeneration": (
        "ecb47ed660357e63", "321K", "qwen2vl", {**SIZES, **SECTIONS, "block_count": 2, "attention.layer_norm_rms_epsilon": 1e-12},
        QWEN,
    ),
    "Qwen2_5OmniModel": (
        "ecb47ed660357e63", "321K", "qwen2vl", {**SIZES, **SECTIONS, "block_count": 2, "attention.layer_norm_rms_epsilon": 1e-12},
        QWEN,
    ),
    "Qwen3VLForConditionalGeneration": (
        "618490fb163c9d4a", "493K", "qwen3vl",
        {**SIZES, **HEADS, **SECTIONS, "block_count": 3, "attention.head_count": 6, "n_deepstack_layers": 2}, QWEN,
    ),
    "Qwen3VLMoeForConditionalGeneration": (
        "1756820272479cb3", "6x335K", "qwen3vlmoe",
        {**SIZES, **HEADS, **MIXTURE, **SECTIONS, "block_count": 3, "n_deepstack_layers": 2}, QWEN,
    ),
    "Qwen3_5ForConditionalGeneration": (
        "f98805531752b428", "1.0M", "qwen35", {**SIZES, **LINEAR, "block_count": 5}, {**QWEN, "pre": "qwen35"},
    ),
    "Qwen3_5MoeForConditionalGeneration": (
        "8684d9e5984a9d09", "6x962K", "qwen35moe",
        {
            **{k: v for k, v in SIZES.items() if k != "feed_forward_length"}, **MIXTURE, **LINEAR, "block_count": 5,
            "expert_shared_feed_forward_length": 64,
        },
        {**QWEN, "pre": "qwen35"},
    ),
    "PaddleOCRVLForConditionalGeneration": (
        "d1cf359224cb7ea9", "368K", "paddleocr",
        {**SIZES, **HEADS, **SECTIONS, "block_count": 2, "attention.head_count": 6}, ERNIE,
    ),
    "DotsOCRForCausalLM": ("ecb47ed660357e63", "321K", "qwen2", {**SIZES, "block_count": 2}, QWEN),
    "Glm4vForConditionalGeneration": ("e7ffc7e3d01569ea", "323K", "glm4", {**SIZES, **GLM, "block_count": 2}, GLM_TOKENS),
    "Glm4vMoeForConditionalGeneration": (
        "231d0d7daa9ef95f", "6x792K", "glm4moe",
        {
            **SIZES, **GLM, **MIXTURE, "block_count": 4, "expert_group_count": 1, "expert_group_used_count": 1,
            "expert_shared_count": 2, "leading_dense_block_count": 1, "expert_gating_func": 2, "expert_weights_scale": 1.5,
            "expert_weights_norm": True, "nextn_predict_layers": 1,
        },
        {**GLM_TOKENS, "bos_token_id": 273, "eom_token_id": 280},
    ),
    "GlmOcrForConditionalGeneration": (
        "1a703935da024db8", "556K", "glm4", {**SIZES, **GLM, "block_count": 3, "nextn_predict_layers": 1}, GLM_TOKENS,
    ),
    "Qwen2ForCausalLM": ("ecb47ed660357e63", "321K", "qwen2", {**SIZES, "block_count": 2}, QWEN),
    "Qwen3ForCausalLM": (
        "d91bd71e633008bf", "353K", "qwen3", {**SIZES, **HEADS, "block_count": 2, "attention.head_count": 6}, QWEN,
    ),
    "Qwen3MoeForCausalLM": ("0f08e7b24290c9c8", "6x248K", "qwen3moe", {**SIZES, **HEADS, **MIXTURE, "block_count": 2}, QWEN),
}  # fmt: skip
FILE = "model.safetensors"

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that makes a tiny checkpoint, each once."""
    folders: dict[tiny_text.Shape, Path] = {}

    def make(architecture: str, **fields: Any) -> Path:
        shape = tiny_text.shape(architecture, **fields)
        if shape not in folders:
            folders[shape] = tiny_text.write(tmp_path_factory.mktemp("tiny") / architecture, shape)
        return folders[shape]

    return make


@pytest.fixture
def other(made: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """A function that copies a tiny checkpoint with tensors changed, and settings of its text half (`...` removes one)."""

    def change(architecture: str, change: Callable[[dict[str, Any]], object] = lambda _: None, **config: Any) -> Path:
        folder = tmp_path / "changed"
        shutil.copytree(made(architecture), folder, dirs_exist_ok=True)
        tensors = load_file(folder / FILE)
        change(tensors)
        save_file(tensors, folder / FILE, {"format": "pt"})
        whole = json.loads((folder / "config.json").read_text())
        at = whole.get("text_config", whole)
        for name, value in config.items():
            at[name] = value
            if value is ...:
                del at[name]
        (folder / "config.json").write_text(json.dumps(whole))
        return folder

    return change


def convert(folder: Path, outtype: str = "f32") -> Weights:
    return text(read_checkpoint(folder), outtype)


def values(weights: Weights) -> dict[str, bytes]:
    return {name: t.read().tobytes() for name, t in weights.tensors.items()}


@pytest.mark.parametrize("architecture", THEIRS)
def test_tensors_and_metadata_are_those_of_llama_cpps_converter(made: Callable[..., Path], architecture: str) -> None:
    digest, size, name, sizes, tokens = THEIRS[architecture]
    found = convert(made(architecture), "q8_0")
    lines = sorted(f"{n} {t.shape} {t.type.name}" for n, t in found.tensors.items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == digest, lines
    assert found.metadata["general.size_label"] == size
    assert found.metadata["general.architecture"] == name
    ours = {k.removeprefix(f"{name}."): v for k, v in found.metadata.items() if k.startswith(f"{name}.")}
    assert ours.keys() == sizes.keys()
    for key, value in sizes.items():
        assert ours[key] == (pytest.approx(value) if isinstance(value, float) else value), key
    for key, value in tokens.items():
        assert found.metadata[f"tokenizer.ggml.{key}"] == value, key


@pytest.mark.parametrize("outtype", ["f32", "f16", "bf16", "q8_0"])
def test_stacked_experts_are_converted_one_by_one_to_what_all_would_be(made: Callable[..., Path], outtype: str) -> None:
    folder = made("Qwen3MoeForCausalLM", dtype="bfloat16", seed=3)
    read = {n: t.float32() for n, t in read_checkpoint(folder).tensors.items()}
    whole = np.stack([read[f"layers.1.mlp.experts.{e}.down_proj.weight"] for e in range(6)])
    found = convert(folder, outtype).tensors["blk.1.ffn_down_exps.weight"]
    assert found.shape == whole.shape
    assert found.type.name == outtype.upper()
    assert np.array_equal(found.read().view(np.uint8), gguf.quants.quantize(whole, found.type).view(np.uint8))


def test_experts_saved_in_any_of_three_ways_give_the_same_file(other: Callable[..., Path]) -> None:
    """All in one as Qwen published them, turned as transformers saves them, and one by one."""
    name = "Qwen3VLMoeForConditionalGeneration"

    def turn(tensors: dict[str, Any]) -> None:
        tensors.update({n: np.ascontiguousarray(t.swapaxes(1, 2)) for n, t in tensors.items() if ".experts." in n})

    def part(tensors: dict[str, Any]) -> None:
        for n in [n for n in tensors if ".experts." in n]:
            kinds = ("gate", "up") if "gate_up" in n else ("down",)
            for e, expert in enumerate(tensors.pop(n)):
                rows = dict(zip(kinds, np.split(expert.T, len(kinds)), strict=True))
                front = n.rpartition(".")[0]
                tensors.update({f"{front}.{e}.{k}_proj.weight": np.ascontiguousarray(v) for k, v in rows.items()})

    published = values(convert(other(name)))
    assert values(convert(other(name, turn))) == published
    assert values(convert(other(name, part))) == published


def test_the_layer_of_multi_token_prediction_stands_behind_the_last(made: Callable[..., Path]) -> None:
    """llama.cpp loads it and does not run it, so no logits speak for it."""
    folder = made("Qwen3_5ForConditionalGeneration")
    saved, found = load_file(folder / FILE), convert(folder).tensors
    for ours, theirs in {"eh_proj": "fc", "attn_q": "layers.0.self_attn.q_proj", "ffn_down": "layers.0.mlp.down_proj"}.items():
        name = f"blk.4.{'nextn.' if theirs == 'fc' else ''}{ours}.weight"
        assert np.array_equal(found[name].read(), saved[f"mtp.{theirs}.weight"]), name
    norms = {"nextn.enorm": "pre_fc_norm_embedding", "nextn.hnorm": "pre_fc_norm_hidden", "nextn.shared_head_norm": "norm"}
    norms |= {"attn_norm": "layers.0.input_layernorm", "post_attention_norm": "layers.0.post_attention_layernorm"}
    for ours, theirs in norms.items():
        assert np.array_equal(found[f"blk.4.{ours}.weight"].read(), saved[f"mtp.{theirs}.weight"] + np.float32(1)), ours


@pytest.mark.parametrize(
    "architecture", ["Qwen3_5MoeForConditionalGeneration", "GlmOcrForConditionalGeneration", "Glm4vMoeForConditionalGeneration"]
)
def test_a_checkpoint_without_that_layer_has_no_block_for_it(made: Callable[..., Path], architecture: str) -> None:
    """transformers leaves it out when it saves a model, and may leave the setting that counts it."""
    with_one, without = convert(made(architecture)), convert(made(architecture, mtp=False))
    n, name = with_one.metadata["general.architecture"], "block_count"
    assert without.metadata[f"{n}.{name}"] == with_one.metadata[f"{n}.{name}"] - 1
    assert f"{n}.nextn_predict_layers" not in without.metadata
    assert not any("nextn" in t for t in without.tensors)


def test_glm_46v_has_the_text_half_that_its_settings_name(made: Callable[..., Path]) -> None:
    found = {mixture: convert(made("Glm46VForConditionalGeneration", mixture=mixture)).metadata for mixture in (False, True)}
    assert {k: v["general.architecture"] for k, v in found.items()} == {False: "glm4", True: "glm4moe"}


def test_settings_that_config_json_leaves_out_are_those_of_the_class(other: Callable[..., Path]) -> None:
    found = convert(other("Glm4vForConditionalGeneration", rope_parameters=..., rms_norm_eps=...)).metadata
    assert found["glm4.rope.dimension_sections"] == [8, 12, 12, 0]  # Glm4vTextRotaryEmbedding
    assert found["glm4.attention.layer_norm_rms_epsilon"] == 1e-5  # Glm4vTextConfig
    found = convert(other("Qwen3_5ForConditionalGeneration", rope_parameters={"rope_theta": 1e7}, layer_types=...)).metadata
    assert found["qwen35.rope.dimension_sections"] == [11, 11, 10, 0]
    assert found["qwen35.rope.dimension_count"] == 16
    assert found["qwen35.rope.freq_base"] == 1e7
    assert found["qwen35.attention.recurrent_layers"] == [True, True, True, False, False]


def test_an_output_that_is_the_embedding_table_may_be_told_in_two_places(other: Callable[..., Path]) -> None:
    def headless(tensors: dict[str, Any]) -> None:
        tensors.pop("lm_head.weight", None)

    folder = other(GLM_DENSE, headless, tie_word_embeddings=False)
    with pytest.raises(FileError, match=r"has no tensor lm_head.weight"):
        convert(folder)
    whole = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(whole))
    assert "output.weight" not in convert(folder).tensors
    assert "output.weight" not in convert(other(GLM_DENSE, headless, tie_word_embeddings=True)).tensors


QWEN35, MOE, GLM_DENSE, GLM_MOE = (
    f"{n}ForConditionalGeneration" for n in ("Qwen3_5", "Qwen3VLMoe", "Glm4v", "Glm4vMoe")
)  # fmt: skip
LAYER = "model.language_model.layers.0."
DOWN = "model.language_model.layers.1.mlp.experts.down_proj"


@pytest.mark.parametrize(
    ("architecture", "name", "shape", "message"),
    [
        (QWEN35, "linear_attn.in_proj_qkv.weight", (300, 128), r"shape \(300, 128\), and config.json wants \(320, any\)"),
        (QWEN35, "linear_attn.in_proj_z.weight", (192,), r"shape \(192,\), and config.json wants \(192, any\)"),
        (QWEN35, "linear_attn.out_proj.weight", (128, 96), r"wants \(any, 192\)"),
        (QWEN35, "linear_attn.conv1d.weight", (320, 4), r"wants \(320, 1, any\)"),
        (QWEN35, "linear_attn.A_log", (5,), r"wants \(6\)"),
        (QWEN35, "linear_attn.dt_bias", (), r"has the shape \(\), which no weight has"),
        (QWEN35, "input_layernorm.weight", (0,), r"has the shape \(0,\), which no weight has"),
        (MOE, "mlp.experts.gate_up_proj", (5, 128, 192), r"wants \(6, any, any\)"),
        (MOE, "mlp.experts.gate_up_proj", (6, 128, 96), r"wants \(6, 128, 192\)"),
        (MOE, "mlp.experts.down_proj", (6, 128), r"wants \(6, any, any\)"),
        (GLM_DENSE, "self_attn.q_proj.weight", (100, 128), r"shape \(100, 128\), and heads of 32 are expected"),
        (GLM_DENSE, "self_attn.k_proj.bias", (0,), r"has the shape \(0,\), which no weight has"),
    ],
)
def test_a_tensor_of_another_shape_is_named(
    other: Callable[..., Path], architecture: str, name: str, shape: tuple[int, ...], message: str
) -> None:
    folder = other(architecture, lambda tensors: tensors.update({LAYER + name: np.zeros(shape, np.float32)}))
    with pytest.raises(FileError, match=message):
        convert(folder)


def test_experts_that_differ_are_named(other: Callable[..., Path]) -> None:
    name = "model.layers.0.mlp.experts.3.up_proj.weight"
    folder = other("Qwen3MoeForCausalLM", lambda tensors: tensors.update({name: np.zeros((64, 128), np.float32)}))
    with pytest.raises(
        FileError, match=r"experts.3.up_proj.weight is F32 \(64, 128\), and .*experts.0.* beside it F32 \(96, 128\)"
    ):
        convert(folder)


@pytest.mark.parametrize(
    ("architecture", "config", "message"),
    [
        (QWEN35, {"layer_types": ["full_attention"]}, "full_attention or linear_attention is expected 4 times"),
        (QWEN35, {"layer_types": [{}] * 4}, "full_attention or linear_attention is expected 4 times"),
        (QWEN35, {"linear_value_head_dim": 64}, r"wants \(512, any\)"),
        (QWEN35, {"linear_num_key_heads": 4}, "6 value heads for 4 key heads|wants"),
        (QWEN35, {"num_hidden_layers": 10**9}, "says 1000000000 layers"),
        (MOE, {"num_local_experts": 10**9}, r"wants \(1000000000, any, any\)"),
        (MOE, {"moe_intermediate_size": 0}, r"wants \(6, 128, 0\)"),
        ("Qwen3MoeForCausalLM", {"num_local_experts": 10**9, "num_experts": ...}, "says 1000000000 experts"),
        ("Qwen3MoeForCausalLM", {"norm_topk_prob": False}, "norm_topk_prob is false, and llama.cpp's qwen3moe knows true alone"),
        (GLM_MOE, {"norm_topk_prob": "yes"}, "has 'yes' for norm_topk_prob"),
        (GLM_MOE, {"first_k_dense_replace": 2}, "has no tensor layers.1.mlp.gate_proj.weight"),
        (GLM_DENSE, {"partial_rotary_factor": 1e30, "rope_parameters": ...}, "partial_rotary_factor 1e.30 for heads of 32"),
        (GLM_DENSE, {"hidden_act": "gelu"}, "has the activation 'gelu'"),
    ],
)
def test_settings_that_cannot_be_are_named(
    other: Callable[..., Path], architecture: str, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(FileError, match=message):
        convert(other(architecture, **config))


def test_a_tensor_that_is_missing_or_left_over_is_named(other: Callable[..., Path]) -> None:
    with pytest.raises(FileError, match=r"has no tensor layers.1.mlp.experts.down_proj, which Qwen3VLMoe"):
        convert(other(MOE, lambda tensors: tensors.pop(DOWN)))
    with pytest.raises(FileError, match=r"has the tensor layers.0.self_attn.o_proj.bias, which Qwen3VLMoe.* has no use for"):
        convert(other(MOE, lambda tensors: tensors.update({LAYER + "self_attn.o_proj.bias": np.zeros(128, np.float32)})))


def test_an_architecture_that_is_not_known_lists_those_that_are(other: Callable[..., Path]) -> None:
    folder = other(GLM_DENSE)
    whole = json.loads((folder / "config.json").read_text()) | {"architectures": ["Glm5vForConditionalGeneration"]}
    (folder / "config.json").write_text(json.dumps(whole))
    with pytest.raises(
        UnknownModel, match=r"'Glm5vForConditionalGeneration', and these .*Glm46VForConditionalGeneration, GlmOcr"
    ):
        convert(folder)


@pytest.mark.parametrize("architecture", [QWEN35, "Qwen3_5MoeForConditionalGeneration", GLM_MOE])
@pytest.mark.parametrize("value", [None, "x", -1, 0, 2**70, 1e30, [], {}, [None], True])
def test_no_setting_leads_to_another_error(other: Callable[..., Path], architecture: str, value: Any) -> None:
    """Each setting of the text half in turn, those of its rotary positions among them."""
    folder = other(architecture)
    path = folder / "config.json"
    whole = json.loads(path.read_text())
    text_config = whole["text_config"]
    places = [(text_config, k) for k in text_config] + [
        (text_config["rope_parameters"], k) for k in text_config["rope_parameters"]
    ]
    checkpoint = read_checkpoint(folder)
    for at, key in places:
        kept, at[key] = at[key], value
        try:
            text(type(checkpoint)(folder, whole, checkpoint.processor, checkpoint.tensors), "f32")
        except DiptychError as error:
            assert "\n" not in str(error)  # noqa: PT017
        at[key] = kept
