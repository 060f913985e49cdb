"""The reader in PyTorch: the Qwen2-VL architecture with as little work per training step as it allows.

All pictures of a batch have one size and all prompts one length, so rotary tables and position planes are computed
once a shape and nothing is padded but the answers. Parameter names are those of the Hugging Face checkpoint.
A still image feeds the same frame twice, so one patch kernel is trained and written as two halves.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Sizes:
    """The shape of the reader. Rotary sections are in frequency pairs and sum to half the text head width."""

    n_vocab: int
    v_embd: int = 192
    v_layer: int = 4
    v_head: int = 6
    n_embd: int = 256
    n_layer: int = 4
    n_head: int = 8
    n_head_kv: int = 4
    n_ff: int = 640
    patch: int = 14
    merge: int = 2
    theta: float = 30.0
    sections: tuple[int, int, int] = (6, 5, 5)
    eps: float = 1e-6


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    """Attention in float32, which on a CPU takes half the time of bfloat16 (measured, forward and backward)."""
    with torch.autocast("cpu", enabled=False):
        repeat = q.shape[1] // k.shape[1]  # by hand: grouped heads take the slow path on a CPU
        k, v = (t.float().repeat_interleave(repeat, 1) if repeat > 1 else t.float() for t in (k, v))
        return F.scaled_dot_product_attention(q.float(), k, v, is_causal=causal)


class VisionBlock(nn.Module):
    def __init__(self, s: Sizes) -> None:
        super().__init__()
        d = s.v_embd
        self.n_head = s.v_head
        self.norm1, self.norm2 = nn.LayerNorm(d, s.eps), nn.LayerNorm(d, s.eps)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(d, 3 * d), "proj": nn.Linear(d, d)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(d, 4 * d), "fc2": nn.Linear(4 * d, d)})

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        b, n, d = x.shape
        qkv = self.attn["qkv"](self.norm1(x)).view(b, n, 3, self.n_head, -1).permute(2, 0, 3, 1, 4)
        q, k = rotate(qkv[:2], cos, sin)
        out = attend(q, k, qkv[2])
        x = x + self.attn["proj"](out.transpose(1, 2).reshape(b, n, d))
        h = self.mlp["fc1"](self.norm2(x))
        return x + self.mlp["fc2"](h * torch.sigmoid(1.702 * h))


class Merger(nn.Module):
    def __init__(self, s: Sizes) -> None:
        super().__init__()
        wide = s.v_embd * s.merge**2
        self.ln_q = nn.LayerNorm(s.v_embd, s.eps)
        self.mlp = nn.Sequential(nn.Linear(wide, wide), nn.GELU(), nn.Linear(wide, s.n_embd))

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.ln_q(x).reshape(x.shape[0], -1, self.mlp[0].in_features))


class Visual(nn.Module):
    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.s = s
        self.patch_embed = nn.Linear(3 * s.patch**2, s.v_embd, bias=False)
        self.blocks = nn.ModuleList(VisionBlock(s) for _ in range(s.v_layer))
        self.merger = Merger(s)

    def forward(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """(batch, n_patch, 3·14·14) in merge order, of a grid (rows, columns) of patches → (batch, n_token, n_embd)."""
        cos, sin = vision_rope(grid, self.s.v_embd // self.s.v_head, self.s.merge)
        x = self.patch_embed(patches)
        for block in self.blocks:
            x = block(x, cos, sin)
        return self.merger(x)


class TextBlock(nn.Module):
    def __init__(self, s: Sizes) -> None:
        super().__init__()
        d, hd = s.n_embd, s.n_embd // s.n_head
        self.heads = (s.n_head, s.n_head_kv)
        self.input_layernorm, self.post_attention_layernorm = nn.RMSNorm(d, s.eps), nn.RMSNorm(d, s.eps)
        self.self_attn = nn.ModuleDict(
            {
                "q_proj": nn.Linear(d, d),
                "k_proj": nn.Linear(d, s.n_head_kv * hd),
                "v_proj": nn.Linear(d, s.n_head_kv * hd),
                "o_proj": nn.Linear(d, d, bias=False),
            }
        )
        self.mlp = nn.ModuleDict(
            {
                "gate_proj": nn.Linear(d, s.n_ff, bias=False),
                "up_proj": nn.Linear(d, s.n_ff, bias=False),
                "down_proj": nn.Linear(s.n_ff, d, bias=False),
            }
        )

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        b, n, d = x.shape
        h, a = self.input_layernorm(x), self.self_attn
        q, k, v = (a[f"{name}_proj"](h).view(b, n, -1, d // self.heads[0]).transpose(1, 2) for name in "qkv")
        out = attend(rotate(q, cos, sin), rotate(k, cos, sin), v, causal=True)
        x = x + a["o_proj"](out.transpose(1, 2).reshape(b, n, d))
        h = self.post_attention_layernorm(x)
        return x + self.mlp["down_proj"](F.silu(self.mlp["gate_proj"](h)) * self.mlp["up_proj"](h))


class Text(nn.Module):
    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.s = s
        self.embed_tokens = nn.Embedding(s.n_vocab, s.n_embd)
        nn.init.normal_(self.embed_tokens.weight, std=0.1)
        self.layers = nn.ModuleList(TextBlock(s) for _ in range(s.n_layer))
        self.norm = nn.RMSNorm(s.n_embd, s.eps)

    def forward(self, x: Tensor, planes: Tensor) -> Tensor:
        """(batch, n, n_embd) at positions (3, n) → the last hidden rows, normalised."""
        cos, sin = text_rope(planes, self.s)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.norm(x)


class Reader(nn.Module):
    """Both halves; the output layer is the token table (tied)."""

    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.s = s
        self.visual = Visual(s)
        self.language_model = Text(s)

    def forward(self, patches: Tensor, grid: tuple[int, int], before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures between two runs of tokens (n,) or (batch, n) → the hidden rows of `after`, and the media rows."""
        media = self.visual(patches, grid)
        table = self.language_model.embed_tokens
        parts = [table(before).expand(len(media), -1, -1), media, table(after)]
        planes = positions(before.shape[-1], (grid[0] // 2, grid[1] // 2), after.shape[-1])
        hidden = self.language_model(torch.cat([p.to(media.dtype) for p in parts], 1), planes)
        return hidden[:, -after.shape[-1] :], media

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.language_model.embed_tokens.weight)


@lru_cache(maxsize=512)
def vision_rope(grid: tuple[int, int], width: int, merge: int) -> tuple[Tensor, Tensor]:
    h, w = grid
    yx = torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"))
    yx = yx.view(2, h // merge, merge, w // merge, merge).permute(0, 1, 3, 2, 4).reshape(2, -1)
    f = 1.0 / 10000.0 ** (torch.arange(0, width // 2, 2) / (width // 2))
    angle = torch.cat([yx[0, :, None] * f, yx[1, :, None] * f], -1).repeat(1, 2)
    return angle.cos(), angle.sin()


def positions(n_before: int, grid: tuple[int, int], n_after: int) -> Tensor:
    """(3, n) planes t, y, x: text counts on, a picture stands on its grid, the text behind it starts past both sides."""
    h, w = grid
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    media = torch.stack([torch.zeros(h * w, dtype=torch.long), y.flatten(), x.flatten()]) + n_before
    tail = torch.arange(n_after).expand(3, -1) + n_before + max(h, w)
    return torch.cat([torch.arange(n_before).expand(3, -1), media, tail], 1)


def text_rope(planes: Tensor, s: Sizes) -> tuple[Tensor, Tensor]:
    half = s.n_embd // s.n_head // 2
    f = 1.0 / s.theta ** (torch.arange(half) / half)
    plane = torch.repeat_interleave(torch.arange(3), torch.tensor(s.sections))
    angle = (planes[plane].float().T * f).repeat(1, 2)  # (n, head width)
    return angle.cos(), angle.sin()
