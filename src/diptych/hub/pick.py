"""Which files of a repository are the model that was asked for: the rule behind `-hf user/repo[:quant]`.

Names alone decide, in this order. docs/deployments.md tells it to users.

    text half    a GGUF that is no mmproj, importance matrix or draft model, of the quantisation asked for;
                 where none is asked for Q4_K_M, else another of 4 bits, then 5, 6, 8, 16, 32, 3, 2, 1
    media half   an mmproj nearest to it in the folders, then most alike in name, then F16, BF16, F32, Q8_0
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import PurePosixPath

from diptych.errors import FileError
from diptych.weights.split import part_names

DEFAULT = "Q4_K_M"

_QUANT = re.compile(
    r"(?<![a-z0-9])(?:UD-)?(?:I?Q\d(?:_[0-9A-Z]+)*|TQ\d_\d|BF16|F16|F32|FP16|FP32|MXFP4(?:_MOE)?|NVFP4)(?![a-z0-9_])",
    re.IGNORECASE,
)
_BITS = (4, 5, 6, 8, 16, 32, 3, 2, 1)  # the default has 4; more before fewer
_ENDINGS = ("K_M", "K_XL", "K_L", "K_S")
_MEDIA_TYPES = ("F16", "BF16", "F32", "Q8_0")
_DRAFTS = {"mtp", "draft", "eagle", "eagle3", "dflash", "dspark"}  # models that only guess ahead for another
_WORD = re.compile(r"[a-z0-9]+")


@dataclass(frozen=True)
class Choice:
    """Files of a repository by their paths in it: the parts of the text half in order, and the media half.

    `quant` is the text half's quantisation as its name tells it, "" where it does not.
    """

    quant: str
    text: tuple[str, ...]
    mmproj: str | None

    @property
    def files(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.text, *((self.mmproj,) if self.mmproj else ()))


def pick(repo: str, names: Collection[str], tag: str = "") -> Choice:
    """The files of `repo` that a tag asks for: a quantisation, the name of a GGUF, or "" for the default.

    Raises FileError, with what there is, when no text half answers to it, or several models do.
    """
    halves = [name for name in names if name.lower().endswith(".gguf")]
    texts = _texts(halves)
    if not texts:
        raise FileError(_nothing(repo, names))
    found = _named(texts, tag) if tag.lower().endswith(".gguf") else _quantised(texts, tag)
    if not found:
        there = sorted({quant_of(name) or PurePosixPath(name).name for name in texts})
        raise FileError(f"{repo} has no {tag}; it has {', '.join(there)}")
    models = sorted({part_names(name)[0] for name in found})
    if len(models) > 1:
        raise FileError(f"{repo} has several models of {quant_of(models[0])}: {', '.join(models)}; name one: {repo}:{models[0]}")
    parts = part_names(models[0])
    if missing := [part for part in parts if part not in names]:
        raise FileError(f"{repo} has {models[0]}, and its part {missing[0]} is not there; tell who made it")
    return Choice(quant_of(models[0]), tuple(parts), _mmproj(halves, models[0]))


def quant_of(name: str) -> str:
    """The quantisation that a file's name tells, or the folder it lies in: `x/UD-q4_k_xl.gguf` → "UD-Q4_K_XL"; "" if none."""
    path = PurePosixPath(name)
    for part in (path.name, *reversed(path.parent.parts)):
        if found := _QUANT.findall(part.removesuffix(".gguf")):
            return normal(found[-1])
    return ""


def normal(tag: str) -> str:
    """A tag as it is compared: a quantisation in capitals, `latest` as no tag, the name of a file as it is."""
    if tag.lower().endswith(".gguf"):
        return tag
    tag = tag.upper().replace("FP16", "F16").replace("FP32", "F32")
    return "" if tag == "LATEST" else tag


def _texts(halves: Iterable[str]) -> list[str]:
    """GGUFs that are models of their own. "mtp" or "draft" inside a name counts only where other files are without it."""
    texts = [n for n in halves if not _is_mmproj(n) and "imatrix" not in n.lower() and not _is_draft(n)]
    return [n for n in texts if not _DRAFTS & set(_WORD.findall(n.lower()))] or texts


def _is_mmproj(name: str) -> bool:
    return "mmproj" in name.lower()


def _is_draft(name: str) -> bool:
    """Whether a file's name begins with such a word, or is in a folder called so."""
    *folders, file = name.lower().split("/")
    return bool(_DRAFTS & {*folders, *_WORD.findall(file)[:1]})


def _named(texts: list[str], tag: str) -> list[str]:
    """Files of the name given, which may leave out the folder."""
    return [n for n in texts if n == tag] or [n for n in texts if PurePosixPath(n).name == tag]


def _quantised(texts: list[str], tag: str) -> list[str]:
    """Files of a quantisation; one of Unsloth's, `UD-…`, answers to the name without it where there is no other."""
    quants = {quant_of(name) for name in texts}
    wanted = normal(tag) or min(quants, key=_rank)
    if wanted not in quants and not wanted.startswith("UD-"):
        wanted = f"UD-{wanted}"
    return [n for n in texts if quant_of(n) == wanted]


def _rank(quant: str) -> tuple[int, int, bool, str]:
    """The place of a quantisation when none was asked for: the default's bits first, and its kind before the others."""
    plain = quant.removeprefix("UD-")
    digits = re.search(r"\d+", plain)
    bits = int(digits[0]) if digits else -1
    ending = next((i for i, ending in enumerate(_ENDINGS) if plain.startswith("Q") and plain.endswith(ending)), len(_ENDINGS))
    return _BITS.index(bits) if bits in _BITS else len(_BITS), ending, quant != plain, plain


def _mmproj(halves: Iterable[str], text: str) -> str | None:
    """The media half that goes with a text half, if there is one."""
    folders = PurePosixPath(text).parent.parts
    model = _stem(text)

    def key(name: str) -> tuple[object, ...]:
        its = PurePosixPath(name).parent.parts
        shared = _common(folders, its)
        alike = _common(model, _stem(name))
        quant = quant_of(PurePosixPath(name).name) or quant_of(name)
        kind = _MEDIA_TYPES.index(quant) if quant in _MEDIA_TYPES else len(_MEDIA_TYPES)
        return -shared, len(its) - shared, -alike, len(_stem(name)), kind, name

    return min((n for n in halves if _is_mmproj(n) and "imatrix" not in n.lower()), key=key, default=None)


def _common(a: Sequence[str], b: Sequence[str]) -> int:
    """How many items both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def _stem(name: str) -> str:
    """The name of the model in a file's name: without quantisation, number of the part, and words that say what it is."""
    text = re.sub(r"(-\d{5}-of-\d{5})?\.gguf$", "", PurePosixPath(name).name, flags=re.IGNORECASE)
    words = _WORD.findall(_QUANT.sub("", text).lower())
    return "".join(word for word in words if word not in ("mmproj", "model"))


def _nothing(repo: str, names: Collection[str]) -> str:
    """Why a repository cannot be run, and what helps."""
    if any(name.endswith((".safetensors", ".bin")) for name in names):
        return (
            f"{repo} holds a checkpoint and no GGUF; get it with `hf download {repo} --local-dir CHECKPOINT`, then "
            "`diptych convert CHECKPOINT -o DIR`, or name a repository with GGUFs of it"
        )
    found = ", ".join(sorted(names)[:8]) or "nothing"
    return f"{repo} holds no text half as GGUF; it holds {found}"
