"""Train the reader from scratch: `python train.py --out runs/reader`. Resumes from its checkpoint.

Two things make this work on two cores. Every media token also learns, through a throw-away head, which characters
stand in its cell and which number the first of them has in the text: thousands of labels a picture instead of one
string. And the stages grow the pictures and the strings only as fast as the model follows.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

import tokens
from drawing import CELL, CHARACTERS, Picture, Style, draw, random_text
from model import Reader, Sizes

MEAN = torch.tensor((0.48145466, 0.4578275, 0.40821073)) * 255  # the CLIP constants of Qwen2-VL's preprocessor
STD = torch.tensor((0.26862954, 0.26130258, 0.27577711)) * 255
SLOTS = (2, 7)  # a cell's rows and columns of character slots: 14 × 4 pixels, narrower than any two characters
N_INDEX = 160  # character numbers told apart by the throw-away head
IGNORE = -100
LARGE = (24, 18)  # columns, rows: 672 × 504 pixels
PROMPTS = (
    "", "Read the text.", "What does it say?", "OCR", "Transcribe this picture.", "Read.", "What is written here?",
    "Extract all text from the image.", "Please read the text in this image", "text?", "Text Recognition:",
    "Describe the picture.", "Can you tell me what this says?", "What number is shown?", "Lies den Text.",
)  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """A step of the curriculum: which pictures, on canvases of (columns, rows) cells, for at most how many steps.

    It ends early once `until` of the characters (with `text`: of the tokens read) are right on average.
    """

    name: str
    style: Style
    columns: tuple[int, int]
    rows: tuple[int, int]
    steps: int
    rate: float  # of learning
    text: bool = True  # False: only the media half learns
    until: float = 0.97
    large: float = 0.0  # share of batches on canvases of up to LARGE cells
    decay: bool = False  # the learning rate falls to zero over this stage, which never ends early


LINE = Style(lines=(1, 1), size=(16, 28))
PAGE = Style(lines=(1, 4), length=(1, 28), size=(16, 28))
# What ships went through these stages in one go: two and a half hours on one core, 0.4 s a step at first and 0.9 s then.
STAGES = (
    Stage("see", LINE, (3, 6), (1, 2), 1600, 2e-3, text=False),
    Stage("one to six", replace(LINE, length=(1, 6)), (3, 5), (1, 2), 1500, 2e-3, until=0.9),
    Stage("a line", replace(LINE, length=(1, 16)), (4, 9), (1, 3), 2500, 7e-4, until=0.95),
    Stage("two lines", replace(LINE, lines=(1, 2), length=(1, 24)), (5, 12), (1, 4), 1000, 7e-4),
    Stage("four lines", PAGE, (4, 18), (1, 8), 300, 7e-4),
    Stage("settle", PAGE, (3, 20), (1, 10), 4000, 6e-4, large=0.12, decay=True),
    Stage("polish", PAGE, (3, 20), (1, 10), 400, 2.5e-4, large=0.12, decay=True),
)


@dataclass(frozen=True)
class Batch:
    patches: Tensor  # (batch, n_patch, 588) uint8, merge order
    grid: tuple[int, int]  # rows, columns of patches
    before: Tensor  # (n,) ids in front of the picture
    after: Tensor  # (batch, n) ids behind it: the prompt, then the answer without its last token
    target: Tensor  # (batch, n) the next id, IGNORE where nothing is asked
    slots: Tensor  # (batch, n_token, 2·7) 0 or 1 + the character whose centre stands there
    index: Tensor  # (batch, n_token, 2) the number of the first character in the cell's half, IGNORE when none


def cut(image: np.ndarray) -> np.ndarray:
    """(h, w, 3) → (n_patch, 3·14·14), the four patches of a merge cell one after the other."""
    h, w = image.shape[0] // CELL, image.shape[1] // CELL
    cells = image.reshape(h, 2, 14, w, 2, 14, 3)
    return cells.transpose(0, 3, 1, 4, 6, 2, 5).reshape(h * w * 4, -1)


def labels(picture: Picture, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """What the throw-away head shall say of each cell: characters by slot, and number of the first character."""
    slots = np.zeros((rows, columns, *SLOTS), np.int64)
    index = np.full((rows, columns, SLOTS[0]), IGNORE, np.int64)
    for i, (char, (x, y)) in enumerate(zip(picture.text, picture.centres, strict=True)):
        r, c = int(y // CELL), int(x // CELL)
        if x < 0 or not (0 <= r < rows and 0 <= c < columns):
            continue
        half = int(y % CELL // (CELL / SLOTS[0]))
        slots[r, c, half, int(x % CELL // (CELL / SLOTS[1]))] = 1 + CHARACTERS.index(char)
        if index[r, c, half] == IGNORE:
            index[r, c, half] = min(i, N_INDEX - 1)
    return slots.reshape(rows * columns, -1), index.reshape(rows * columns, -1)


class Pictures(IterableDataset[Batch]):
    """An endless stream of batches of one stage; `budget` is the number of patches in a batch."""

    def __init__(self, stage: Stage, seed: int, budget: int) -> None:
        self.stage, self.seed, self.budget = stage, seed, budget
        self.tokenizer = tokens.build()

    def __iter__(self) -> Iterator[Batch]:
        worker = torch.utils.data.get_worker_info()
        rng = np.random.default_rng([self.seed, worker.id if worker else 0])
        while True:
            yield self.batch(rng)

    def batch(self, rng: np.random.Generator) -> Batch:
        large = rng.random() < self.stage.large
        columns = int(rng.integers(self.stage.columns[0], (LARGE[0] if large else self.stage.columns[1]) + 1))
        rows = int(rng.integers(self.stage.rows[0], (LARGE[1] if large else self.stage.rows[1]) + 1))
        n = max(4, min(128, self.budget // (4 * rows * columns)))
        pictures = [draw(rng, self.stage.style, columns * CELL, rows * CELL) for _ in range(n)]
        marked = [labels(p, rows, columns) for p in pictures]
        before, prompt = self.prompt(rng)
        answers = [[*tokens.plain(p.text), self.id("<|im_end|>")] for p in pictures]
        longest = max(map(len, answers))
        after = np.full((n, len(prompt) + longest - 1), self.id("<|endoftext|>"))
        target = np.full_like(after, IGNORE)
        for row, answer in enumerate(answers):
            ids = [*prompt, *answer]
            after[row, : len(ids) - 1] = ids[:-1]
            target[row, len(prompt) - 1 : len(ids) - 1] = answer
        return Batch(
            torch.from_numpy(np.stack([cut(np.asarray(p.image)) for p in pictures])),
            (rows * 2, columns * 2),
            torch.tensor(before), torch.from_numpy(after), torch.from_numpy(target),
            torch.from_numpy(np.stack([m[0] for m in marked])), torch.from_numpy(np.stack([m[1] for m in marked])),
        )  # fmt: skip

    def id(self, name: str) -> int:
        return self.tokenizer.token_to_id(name)

    def prompt(self, rng: np.random.Generator) -> tuple[list[int], list[int]]:
        """Ids in front of and behind the picture, of a question worded in one way or another."""
        kind = rng.random()
        if kind < 0.2:  # any script there is
            start = int(rng.choice((0xA0, 0x370, 0x400, 0x5D0, 0x900, 0x3040, 0x4E00, 0xAC00, 0x1F300)))
            words = "".join(chr(start + int(c)) for c in rng.integers(0, 200, int(rng.integers(1, 20))))
        elif kind < 0.6:
            words = PROMPTS[rng.integers(len(PROMPTS))]
        else:
            words = random_text(rng, CHARACTERS + "?!'()", int(rng.integers(1, 8 if rng.random() < 0.7 else 40)))
        system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n" if rng.random() < 0.1 else ""
        front, back = ("", words) if rng.random() < 0.85 else (words, "")
        front = f"{system}<|im_start|>user\n{front}<|vision_start|>"
        back = f"<|vision_end|>{back}<|im_end|>\n<|im_start|>assistant\n"
        return self.tokenizer.encode(front).ids, self.tokenizer.encode(back).ids


class Trainee(nn.Module):
    """The reader and the throw-away head."""

    def __init__(self) -> None:
        super().__init__()
        self.reader = Reader(Sizes(n_vocab=len(tokens.vocabulary())))
        n_embd = self.reader.s.n_embd
        self.slots = nn.Linear(n_embd, SLOTS[0] * SLOTS[1] * (1 + len(CHARACTERS)))
        self.index = nn.Linear(n_embd, SLOTS[0] * N_INDEX)

    def forward(self, batch: Batch, text: bool) -> dict[str, Tensor]:
        patches = (batch.patches.view(*batch.patches.shape[:2], 3, -1) - MEAN[:, None]) / STD[:, None]
        with torch.autocast("cpu", torch.bfloat16):
            if text:
                hidden, media = self.reader(patches.flatten(2), batch.grid, batch.before, batch.after)
            else:
                media = self.reader.visual(patches.flatten(2), batch.grid)
            slots, index = self.slots(media), self.index(media)
        slots = slots.float().view(-1, 1 + len(CHARACTERS))
        weight = torch.ones(slots.shape[-1])
        weight[0] = 0.2  # most slots are empty
        full = batch.slots.flatten() > 0
        out = {
            "slots": F.cross_entropy(slots, batch.slots.flatten(), weight),
            "index": F.cross_entropy(index.float().view(-1, N_INDEX), batch.index.flatten(), ignore_index=IGNORE),
            "seen": (slots.argmax(-1) == batch.slots.flatten())[full].float().mean().detach(),
        }
        if text:
            asked = batch.target != IGNORE
            logits = self.reader.logits(hidden[asked].float())
            out["text"] = F.cross_entropy(logits, batch.target[asked])
            right = logits.argmax(-1) == batch.target[asked]
            out["read"] = right.float().mean().detach()
        return out


def optimizers(model: Trainee, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for everything else."""
    inner = [p for n, p in model.named_parameters() if p.ndim == 2 and (".blocks." in n or ".layers." in n or ".merger." in n)]
    held = {id(p) for p in inner}
    rest = [p for p in model.parameters() if id(p) not in held]
    return [
        torch.optim.Muon(inner, lr=lr, weight_decay=0.01, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train(out: Path, args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    model = Trainee()
    optims = optimizers(model, STAGES[0].rate)
    first, done = 0, 0
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for optim, saved in zip(optims, state["optims"], strict=True):
            optim.load_state_dict(saved)
        first, done = state["stage"], state["step"]
    total = 0
    for number, stage in enumerate(STAGES):
        if number < first:
            continue
        steps = int(stage.steps * args.scale)
        start = done if number == first else 0
        data = iter(
            DataLoader(
                Pictures(stage, args.seed + 1000 * number + start, args.budget), batch_size=None, num_workers=1, prefetch_factor=4
            )
        )
        seen: dict[str, float] = {}
        clock = time.time()
        for step in range(start, steps):
            warm = min(1.0, (total + 1) / 200)
            rate = stage.rate * warm * ((1 - step / steps) if stage.decay else 1.0)
            for optim in optims:
                for group in optim.param_groups:
                    group["lr"] = rate
            losses = model(next(data), stage.text)
            loss = losses["slots"] + 0.2 * losses["index"] + losses.get("text", 0.0)
            for optim in optims:
                optim.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optim in optims:
                optim.step()
            total += 1
            for key, value in losses.items():
                seen[key] = 0.95 * seen.get(key, value.item()) + 0.05 * value.item()
            if (step + 1) % 50 == 0:
                shown = " ".join(f"{k} {v:.3f}" for k, v in seen.items())
                print(f"{stage.name} {step + 1}/{steps} {shown} {(time.time() - clock) / 50:.2f}s/step", flush=True)
                clock = time.time()
            over = step + 1 == steps or (
                step > start + 60 and not stage.decay and seen["read" if stage.text else "seen"] > stage.until
            )
            if over or (step + 1) % 100 == 0:
                save(checkpoint, model, optims, number, steps if over else step + 1)
            if over:
                break


def save(path: Path, model: Trainee, optims: list[torch.optim.Optimizer], stage: int, step: int) -> None:
    state = {"model": model.state_dict(), "optims": [o.state_dict() for o in optims], "stage": stage, "step": step}
    torch.save(state, path.with_suffix(".part"))
    path.with_suffix(".part").rename(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/reader"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--budget", type=int, default=4096, help="patches in a batch")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the steps of every stage")
    parsed = parser.parse_args()
    parsed.out.mkdir(parents=True, exist_ok=True)
    train(parsed.out, parsed)
