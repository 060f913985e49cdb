"""The same picture again, in a new conversation: seconds to the first token, with and without encoding it.

    python benchmarks/again.py --cache /var/tmp/diptych-bench --size 504

Both sides have the text half of benchmarks/model.py and the tower of benchmarks/encode.py. libmtmd encodes the picture for
every question. Diptych encodes it for the first one; the second comes in another conversation, with other words before the
picture, so that nothing of the KV cache fits; the third asks something else of a conversation that begins like the second.
Each side is a process of its own, and they take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from encode import N_EMBD, N_HEAD, N_LAYER, N_OUT
from measure import made as made_tower
from measure import picture, processor, qwen2vl

from model import made

KINDS = ("first", "other words before it", "same words before it")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("/var/tmp/diptych-bench"), help="folder the model is kept in")
    parser.add_argument("--size", type=int, default=504, help="pixels a side")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int, default=N_LAYER, help="of the tower")
    parser.add_argument("side", nargs="?", choices=("onnx", "mtmd"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    shape = qwen2vl("tower" if args.layers == N_LAYER else f"tower-{args.layers}", args.layers, N_EMBD, N_HEAD, N_OUT)
    text, mmproj = made(args.cache)[0], made_tower(shape, args)
    if args.side:
        return print(json.dumps(asyncio.run(questions(text, mmproj, args))))
    print(f"{processor()}, {args.threads} threads; {args.size}×{args.size}", flush=True)
    rows: dict[str, list[list[float]]] = {"onnx": [], "mtmd": []}
    for _ in range(args.rounds):
        for side, found in rows.items():
            command = [
                sys.executable,
                __file__,
                side,
                *(f"--{n}={getattr(args, n)}" for n in ("cache", "size", "threads", "layers")),
            ]
            out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            found.append(json.loads(out.splitlines()[-1]))
            print(side, ", ".join(f"{kind}: {t:.2f} s" for kind, t in zip(KINDS, found[-1], strict=True)), flush=True)
    ours, theirs = ([statistics.median(column) for column in zip(*rows[side], strict=True)] for side in ("onnx", "mtmd"))
    for kind, a, b in zip(KINDS, ours, theirs, strict=True):
        print(f"{kind:24} diptych {a:6.2f} s, libmtmd {b:6.2f} s: {b / a:5.1f} times as fast")


async def questions(text: Path, mmproj: Path, args: argparse.Namespace) -> list[float]:
    """Seconds to the first token of each kind of question."""
    import io

    from PIL import Image

    from diptych import Engine, Message, Options, Request, Sampling
    from diptych.types import Source

    options = Options.model_validate({
        "n_ctx": 8192, "n_parallel": 2, "threads": args.threads, "max_pixels": args.size**2, "warmup": True, "precision": "auto",
        "media_backend": args.side, "encode_cache_mib": 512 if args.side == "onnx" else 0, "encode_disk_mib": 0,
    })  # fmt: skip
    file = io.BytesIO()
    Image.fromarray(picture(args.size)).save(file, "PNG")
    shown = Source("image", data=file.getvalue())

    async def ask(engine: Engine, system: str, question: str) -> float:
        parts = (Message("system", (system,)), Message("user", (shown, question)))
        request = Request(parts, Sampling(seed=1, ignore_eos=True), 4, cache_prompt=args.side == "onnx")
        start = time.perf_counter()
        first = 0.0
        async for _ in engine.generate(request):
            first = first or time.perf_counter() - start
        return first

    with Engine.load(model=text, mmproj=mmproj, options=options) as engine:
        out = [await ask(engine, "Be brief.", "What is it?")]
        runs = engine.stats().encoder.runs if args.side == "onnx" else 0
        out.append(await ask(engine, "Answer in French, with all you know.", "How many squares are there?"))
        out.append(await ask(engine, "Answer in French, with all you know.", "Which colour is the first?"))
        if args.side == "onnx" and engine.stats().encoder.runs != runs:
            raise SystemExit("the picture was encoded again")
    return out


if __name__ == "__main__":
    main()
