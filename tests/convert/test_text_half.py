import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from safetensors.numpy import load_file, save_file

import tiny
from diptych.convert import read_checkpoint, text
from diptych.errors import FileError, InputError, UnknownModel
from diptych.weights import Weights

# What llama.cpp's converter (llama-cpp-python 0.3.36) wrote for the same checkpoint, but for the tokens.
THEIRS = {
    "general.architecture": "qwen2vl", "general.type": "model", "general.name": "Tiny Qwen2 VL",
    "general.sampling.top_k": np.int32(1), "general.sampling.temp": 0.1, "general.size_label": "320K",
    "general.quantization_version": 2, "qwen2vl.block_count": 2, "qwen2vl.context_length": 8192,
    "qwen2vl.embedding_length": 128, "qwen2vl.feed_forward_length": 192, "qwen2vl.attention.head_count": 4,
    "qwen2vl.attention.head_count_kv": 2, "qwen2vl.attention.layer_norm_rms_epsilon": 1e-12,
    "qwen2vl.rope.freq_base": 10000.0, "qwen2vl.rope.dimension_sections": [6, 5, 5, 0], "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "qwen2", "tokenizer.ggml.eos_token_id": 268, "tokenizer.ggml.padding_token_id": 266,
    "tokenizer.ggml.add_bos_token": False, "tokenizer.chat_template": tiny.CHAT_TEMPLATE,
}  # fmt: skip
OURS = {"tokenizer.ggml.add_eos_token": False}  # theirs leaves out what is false anyway
LISTS = {"tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.merges"}
FILE_TYPES = {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7}
LAYER = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def convert(folder: Path, outtype: str = "f32") -> Weights:
    return text(read_checkpoint(folder), outtype)


def gguf_name(name: str) -> str | None:
    """The GGUF name of a state_dict's key, put together in another way than the table."""
    match name.split(".")[1:]:
        case ["visual", *_]:
            return None
        case ["language_model", "layers", i, *module, kind]:
            return f"blk.{i}.{LAYER['.'.join(module)]}.{kind}"
        case ["language_model", "embed_tokens", "weight"]:
            return "token_embd.weight"
        case ["language_model", "norm", "weight"]:
            return "output_norm.weight"
    assert name == "lm_head.weight"
    return "output.weight"


@pytest.mark.parametrize("outtype", FILE_TYPES)
def test_metadata_is_that_of_llama_cpps_converter(plain: Path, outtype: str) -> None:
    found = convert(plain, outtype).metadata
    expected = {**THEIRS, **OURS, "general.file_type": FILE_TYPES[outtype]}
    assert found.keys() - LISTS - {"general.basename", "general.finetune"} == expected.keys()
    for key, value in expected.items():
        assert found[key] == (pytest.approx(value) if isinstance(value, float) else value), key
    assert type(found["general.sampling.top_k"]) is np.int32


@pytest.mark.parity
@pytest.mark.parametrize("outtype", FILE_TYPES)
@pytest.mark.parametrize("which", ["plain", "tied"])
def test_tensors_are_those_that_transformers_loads(request: pytest.FixtureRequest, which: str, outtype: str) -> None:
    from transformers import Qwen2VLForConditionalGeneration

    folder = request.getfixturevalue(which)
    found = convert(folder, outtype).tensors
    model = Qwen2VLForConditionalGeneration.from_pretrained(folder)
    state = {gguf_name(n): p.float().numpy() for n, p in model.state_dict().items()}
    state.pop(None)
    if which == "tied":
        assert np.array_equal(state.pop("output.weight"), state["token_embd.weight"])
    assert found.keys() == state.keys()
    for name, tensor in found.items():
        kind = GGMLQuantizationType.F32 if tensor.shape[1:] == () else GGMLQuantizationType[outtype.upper()]
        assert tensor.type == kind
        stored = gguf.quants.quantize(state[name], kind)
        assert np.array_equal(tensor.read().view(np.uint8).ravel(), stored.view(np.uint8).ravel()), name


@pytest.mark.parametrize("outtype", FILE_TYPES)
def test_old_and_new_spellings_give_the_same_file(plain: Path, flat: Path, outtype: str) -> None:
    old, new = convert(flat, outtype), convert(plain, outtype)
    names = {"general.name", "general.basename", "general.finetune"}
    assert old.metadata.keys() - names == new.metadata.keys() - names
    for key in new.metadata.keys() - names:
        assert np.array_equal(old.metadata[key], new.metadata[key]), key
    assert list(old.tensors) == list(new.tensors)
    for name, tensor in new.tensors.items():
        assert np.array_equal(old.tensors[name].read(), tensor.read())


def test_a_row_that_is_no_whole_number_of_blocks_stays_f16(changed: Callable[..., Path], plain: Path) -> None:
    folder = changed("config.json")
    tensors = load_file(plain / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    tensors[name] = tensors[name][:, :100].copy()
    save_file(tensors, folder / "model.safetensors")
    found = convert(folder, "q8_0").tensors["blk.0.ffn_down.weight"]
    assert found.type == GGMLQuantizationType.F16
    assert np.array_equal(found.read(), tensors[name].astype(np.float16))


def test_a_value_too_large_for_f16_is_named(changed: Callable[..., Path], plain: Path) -> None:
    folder = changed("config.json")
    tensors = load_file(plain / "model.safetensors")
    tensors["lm_head.weight"][3, 3] = 1e6
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(FileError, match=r"tensor output.weight holds 1e\+06, too large for F16; convert to bf16 or f32"):
        convert(folder, "f16").tensors["output.weight"].read()
    assert convert(folder, "bf16").tensors["output.weight"].float32()[3, 3] == pytest.approx(1e6, rel=1e-2)


def with_tensors(folder: Path, plain: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    tensors = load_file(plain / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


LOST = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(LOST), "has no tensor layers.1.mlp.up_proj.weight, which Qwen2VL"),
        (lambda t: t.pop("lm_head.weight"), "has no tensor lm_head.weight"),
        (lambda t: t.update({"model.extra.weight": t[LOST]}), "has the tensor extra.weight, which Qwen2VL.* has no use for"),
        (lambda t: t.update({LOST.replace("1", "2"): t[LOST]}), "has the tensor layers.2.mlp.up_proj.weight"),
        (lambda t: t.update({"layers.1.mlp.up_proj.weight": t[LOST]}), "are the same tensor"),
        (lambda t: t.update({LOST: t[LOST][:0]}), r"the shape \(0, 128\), which does not make blk.1.ffn_up.weight"),
        (lambda t: t.update({LOST: t[LOST].astype(np.int64)}), "is I64, and F32, F16, BF16"),
    ],
)
def test_every_tensor_is_used_and_none_is_missing(
    changed: Callable[..., Path], plain: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    with pytest.raises(FileError, match=message):
        convert(with_tensors(changed("config.json"), plain, change))


def test_rotary_tables_that_early_versions_stored_are_left_out(changed: Callable[..., Path], plain: Path) -> None:
    table = {"model.language_model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(16, np.float32)}
    folder = with_tensors(changed("config.json"), plain, lambda t: t.update(table))
    assert convert(folder).tensors.keys() == convert(plain).tensors.keys()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"rope_type": "linear", "factor": 2.0}, {"type": "linear", "factor": 2.0}),
        (
            {"type": "yarn", "factor": 4, "original_max_position_embeddings": 4096, "beta_fast": 16},
            {"type": "yarn", "factor": 4.0, "original_context_length": 4096, "yarn_beta_fast": 16.0},
        ),
    ],
)
def test_scaled_rotary_positions_are_kept(changed: Callable[..., Path], given: dict[str, Any], expected: dict[str, Any]) -> None:
    rope = {"mrope_section": [7, 5, 4], "rope_theta": 5e5, **given}
    found = convert(changed("config.json", text_config__rope_parameters=rope)).metadata
    scaling = {k.removeprefix("qwen2vl.rope.scaling."): v for k, v in found.items() if "rope.scaling" in k}
    assert scaling == expected
    assert found["qwen2vl.rope.freq_base"] == 5e5
    assert found["qwen2vl.rope.dimension_sections"] == [7, 5, 4, 0]


def test_the_rotary_base_of_the_class_stands_in_for_a_missing_one(changed: Callable[..., Path]) -> None:
    folder = changed("config.json", text_config__rope_parameters={"type": "mrope", "mrope_section": [6, 5, 5]})
    assert convert(folder).metadata["qwen2vl.rope.freq_base"] == 1e6  # as Qwen2VLTextConfig


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"text_config__num_hidden_layers": ...}, "has nothing for num_hidden_layers, and a int is expected"),
        ({"text_config__num_hidden_layers": 10**9}, "says 1000000000 layers"),
        ({"text_config__num_hidden_layers": 3}, "has no tensor layers.2.input_layernorm.weight .and 11 more."),
        ({"text_config__hidden_size": "128"}, "has '128' for hidden_size"),
        ({"text_config__hidden_act": "gelu"}, "has the activation 'gelu'"),
        ({"text_config__rope_parameters__rope_type": "dynamic"}, "has the rope type 'dynamic'"),
        ({"text_config__rope_parameters__mrope_section": ...}, "has no mrope_section"),
        ({"text_config__rope_parameters__mrope_section": [1]}, "three integers"),
        ({"architectures": []}, "names no architecture"),
        ({"text_config": 3}, "text_config is 3"),
    ],
)
def test_settings_that_cannot_be_are_named(changed: Callable[..., Path], values: dict[str, Any], message: str) -> None:
    with pytest.raises(FileError, match=message):
        convert(changed("config.json", **values))


def test_an_unknown_architecture_lists_the_known_ones(changed: Callable[..., Path]) -> None:
    with pytest.raises(UnknownModel, match=r"'LlamaForCausalLM', and these can be converted: .*Qwen2VLForConditionalGeneration"):
        convert(changed("config.json", architectures=["LlamaForCausalLM"]))


def test_an_unknown_outtype_lists_the_known_ones(plain: Path) -> None:
    with pytest.raises(InputError, match="'q4_0', and one of f32, f16, bf16, q8_0"):
        convert(plain, "q4_0")


def test_a_readme_that_is_no_yaml_is_named(changed: Callable[..., Path]) -> None:
    folder = changed("config.json")
    (folder / "README.md").write_text("---\n: : [\n---\n")
    with pytest.raises(FileError, match=r"README.md or generation_config.json cannot be understood"):
        convert(folder)


def test_the_model_card_names_the_model(changed: Callable[..., Path]) -> None:
    folder = changed("config.json")
    (folder / "README.md").write_text('---\nlicense: mit\nmodel_name: Reader\nlanguage:\n- en\n- "no"\n---\n# Reader\n')
    found = convert(folder).metadata
    assert found["general.name"] == "Reader"
    assert found["general.license"] == "mit"
    assert found["general.languages"] == ["en", "no"]


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("value", [None, "x", -1, 2**70, 1e30, [], {}, [None], {"a": 1}, True])
def test_no_setting_leads_to_another_error(changed: Callable[..., Path], plain: Path, name: str, value: Any) -> None:
    """Each value of a file in turn, two deep."""
    from diptych.errors import DiptychError

    whole = json.loads((plain / name).read_text())
    places = list(whole) + [f"{k}__{n}" for k, v in whole.items() if isinstance(v, dict) and len(v) < 40 for n in v]
    for place in places:
        folder = changed(name, **{place: value})
        try:
            convert(folder)
        except DiptychError as error:
            assert "\n" not in str(error)  # noqa: PT017
        (folder / name).write_text(json.dumps(whole))
