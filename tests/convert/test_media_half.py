from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from safetensors.numpy import load_file, save_file

from diptych.convert import mmproj, read_checkpoint
from diptych.errors import FileError, UnknownModel
from diptych.families.base import Hparams
from diptych.weights import Weights, open_gguf, write_gguf

# What llama.cpp's converter (llama-cpp-python 0.3.36) wrote for the same checkpoint, but for the feed-forward width
# (it takes the width of the rows), and what it leaves out: the pixel limits and the merge size.
EXPECTED = {
    "general.architecture": "clip", "general.type": "mmproj", "general.name": "Tiny Qwen2 VL",
    "general.quantization_version": 2, "clip.has_vision_encoder": True, "clip.projector_type": "qwen2vl_merger",
    "clip.vision.projection_dim": 128, "clip.vision.image_size": 560, "clip.vision.patch_size": 14,
    "clip.vision.spatial_merge_size": 2, "clip.vision.embedding_length": 64, "clip.vision.feed_forward_length": 256,
    "clip.vision.block_count": 2, "clip.vision.attention.head_count": 4, "clip.vision.attention.layer_norm_epsilon": 1e-6,
    "clip.vision.image_min_pixels": 56 * 56, "clip.vision.image_max_pixels": 28 * 28 * 1280,
}  # fmt: skip
BLOCK = {"norm1": "ln1", "attn.proj": "attn_out", "norm2": "ln2", "mlp.fc1": "ffn_up", "mlp.fc2": "ffn_down"}
OUTTYPES = ("f32", "f16", "bf16", "q8_0")


def convert(folder: Path, outtype: str | None = "f32") -> Weights:
    return mmproj(read_checkpoint(folder), outtype)


def renamed(name: str, array: np.ndarray) -> dict[str, np.ndarray]:
    """GGUF names and arrays of a state_dict's entry, put together in another way than the table."""
    match name.split(".")[1:]:
        case ["visual", "patch_embed", *_]:
            return {"v.patch_embd.weight": array[:, :, 0], "v.patch_embd.weight.1": array[:, :, 1]}
        case ["visual", "blocks", i, "attn", "qkv", kind]:
            return {f"v.blk.{i}.attn_{x}.{kind}": part for x, part in zip("qkv", np.split(array, 3), strict=True)}
        case ["visual", "blocks", i, *module, kind]:
            return {f"v.blk.{i}.{BLOCK['.'.join(module)]}.{kind}": array}
        case ["visual", "merger", "ln_q", kind]:
            return {f"v.post_ln.{kind}": array}
        case ["visual", "merger", "mlp", i, kind]:
            return {f"mm.{i}.{kind}": array}
    return {}


@pytest.mark.parametrize("outtype", OUTTYPES)
def test_metadata_is_that_of_llama_cpps_converter_and_more(plain: Path, outtype: str) -> None:
    found = convert(plain, outtype).metadata
    for key, value in EXPECTED.items():
        assert found[key] == (pytest.approx(value) if isinstance(value, float) else value), key
        assert type(found[key]) is type(value)
    assert found["general.file_type"] == {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7}[outtype]
    assert {k for k in found if k.startswith("clip.")} - EXPECTED.keys() == {"clip.vision.image_mean", "clip.vision.image_std"}


@pytest.mark.parity
@pytest.mark.parametrize("outtype", OUTTYPES)
@pytest.mark.parametrize("which", ["plain", "tied"])
def test_tensors_are_those_that_transformers_loads(request: pytest.FixtureRequest, which: str, outtype: str) -> None:
    from transformers import Qwen2VLForConditionalGeneration

    folder = request.getfixturevalue(which)
    found = convert(folder, outtype).tensors
    state: dict[str, np.ndarray] = {}
    for name, p in Qwen2VLForConditionalGeneration.from_pretrained(folder).state_dict().items():
        state.update(renamed(name, p.float().numpy()))
    assert found.keys() == state.keys()
    for name, tensor in found.items():
        kind = GGMLQuantizationType[outtype.upper()]
        if "patch_embd" in name:
            kind = GGMLQuantizationType.F16 if outtype == "f16" else GGMLQuantizationType.F32
        elif len(tensor.shape) == 1:
            kind = GGMLQuantizationType.F32
        assert tensor.type == kind, name
        assert tensor.shape == state[name].shape
        stored = gguf.quants.quantize(np.ascontiguousarray(state[name]), kind)
        assert np.array_equal(tensor.read().view(np.uint8).ravel(), stored.view(np.uint8).ravel()), name


@pytest.mark.parametrize(("which", "kind", "file_type"), [("plain", "F32", 0), ("tied", "BF16", 32)])
def test_without_an_outtype_types_stay(request: pytest.FixtureRequest, which: str, kind: str, file_type: int) -> None:
    found = convert(request.getfixturevalue(which), None)
    assert {t.type for t in found.tensors.values()} == {GGMLQuantizationType[kind]}
    assert found.metadata["general.file_type"] == file_type
    in_place = [name for name, t in found.tensors.items() if t.place is None]
    assert in_place == ["v.patch_embd.weight", "v.patch_embd.weight.1"]  # all others can be copied as they stand


def test_both_spellings_give_the_same_file(plain: Path, flat: Path) -> None:
    old, new = convert(flat), convert(plain)
    for key in new.metadata.keys() - {"general.name", "general.basename", "general.finetune"}:
        assert np.array_equal(old.metadata[key], new.metadata[key]), key
    assert list(old.tensors) == list(new.tensors)
    for name, tensor in new.tensors.items():
        assert np.array_equal(old.tensors[name].read(), tensor.read())


@pytest.mark.parametrize(
    "limits",
    [
        {"min_pixels": 784, "max_pixels": 7840},
        {"min_pixels": ..., "max_pixels": ..., "size": {"min_pixels": 784, "max_pixels": 7840}},
        {"min_pixels": ..., "max_pixels": ..., "size": {"shortest_edge": 784, "longest_edge": 7840}},
    ],
)
def test_pixel_limits_are_kept_however_they_are_spelt(
    changed: Callable[..., Path], limits: dict[str, Any], tmp_path: Path
) -> None:
    write_gguf(tmp_path / "a.gguf", convert(changed("preprocessor_config.json", **limits)))
    hp = Hparams.read(open_gguf(tmp_path / "a.gguf").metadata)
    assert (hp.min_pixels, hp.max_pixels) == (784, 7840)
    fields = gguf.GGUFReader(tmp_path / "a.gguf").fields
    assert fields["clip.vision.image_max_pixels"].types == [gguf.GGUFValueType.UINT32]


def test_pixel_limits_of_a_newer_processor_file_are_taken(changed: Callable[..., Path]) -> None:
    folder = changed("processor_config.json", image_processor={"min_pixels": 784, "max_pixels": 7840})
    assert convert(folder).metadata["clip.vision.image_max_pixels"] == 7840


@pytest.mark.parity
@pytest.mark.parametrize("outtype", OUTTYPES)
@pytest.mark.parametrize("which", ["plain", "tied"])
def test_libmtmd_encodes_with_the_file(request: pytest.FixtureRequest, which: str, outtype: str, tmp_path: Path) -> None:
    from mtmd import Mtmd

    write_gguf(tmp_path / "mmproj.gguf", convert(request.getfixturevalue(which), outtype))
    image = np.random.default_rng(0).integers(0, 256, (56, 84, 3), np.uint8)
    with Mtmd(tmp_path / "mmproj.gguf") as reference:
        rows, grid = reference.encode(image)
    assert rows.shape == (grid[0] * grid[1], 128)
    assert np.isfinite(rows).all()
    assert rows.std() > 0.01


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("visual.blocks.1.mlp.fc1.bias"), "has no tensor visual.blocks.1.mlp.fc1.bias"),
        (lambda t: t.update({"visual.blocks.2.mlp.fc1.bias": np.ones(3)}), "float64|F64"),
        (lambda t: t.update({"visual.blocks.2.norm1.bias": np.ones(3, np.float32)}), "has the tensor visual.blocks.2.norm1.bias"),
        (lambda t: t.update({"visual.extra": np.ones(3, np.float32)}), "has the tensor visual.extra"),
        (
            lambda t: t.update({"visual.blocks.0.attn.qkv.bias": np.ones(4, np.float32)}),
            "which does not make v.blk.0.attn_q.bias",
        ),
        (
            lambda t: t.update({"visual.patch_embed.proj.weight": np.ones((4, 3, 3, 14, 14), np.float32)}),
            "which does not make v.patch_embd.weight and v.patch_embd.weight.1",
        ),
    ],
)
def test_every_tensor_is_used_and_none_is_missing(
    changed: Callable[..., Path], plain: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    folder = changed("config.json")
    tensors = load_file(plain / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(FileError, match=message):
        convert(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"vision_config": ...}, "is not that of a Qwen2VL.*KeyError: 'vision_config'"),
        ({"vision_config__depth": "two"}, "is not that of a Qwen2VL.*ValueError"),
        ({"vision_config__depth": 3}, "has no tensor visual.blocks.2.norm1.weight .and 11 more."),
        ({"vision_config__depth": 10**9}, "says 1000000000 layers"),
    ],
)
def test_settings_that_cannot_be_are_named(changed: Callable[..., Path], values: dict[str, Any], message: str) -> None:
    with pytest.raises(FileError, match=message):
        convert(changed("config.json", **values))


def test_an_unknown_architecture_lists_the_known_ones(changed: Callable[..., Path]) -> None:
    with pytest.raises(UnknownModel, match=r"'LlamaForCausalLM'.*Qwen2VLForConditionalGeneration"):
        convert(changed("config.json", architectures=["LlamaForCausalLM"]))
