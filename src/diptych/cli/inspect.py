"""`diptych inspect`: a picture of what the model sees."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diptych.cli import console, model
from diptych.cli.flags import with_options
from diptych.errors import InputError, OutputError
from diptych.files import check_output, whole_file
from diptych.options import Options


@with_options(
    "min_pixels", "max_pixels", "image_min_tokens", "image_max_tokens", "media_max_pixels", "media_max_bytes",
)  # fmt: skip
def command(
    image: Annotated[str, typer.Option("--image", help="A picture (path or URL).")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The .png file to write.")],
    deployment: model.Name = None,
    mmproj: model.Mmproj = None,
    hf: model.Hf = None,
    hf_revision: model.Revision = None,
    offline: model.Offline = False,
    force: console.Force = False,
    *,
    options: Options,
) -> None:
    """Draw a picture as the model sees it.

    Its sizes, its patches, the tokens they are merged to, and where these stand in the decoder's positions.
    """
    from diptych.families import open_family
    from diptych.media.access import Access
    from diptych.media.draw import overlay, seen
    from diptych.media.load import load
    from diptych.types import Source

    if output.suffix.lower() != ".png":
        raise OutputError(f"{output} does not end in .png, which is what is drawn; name it so")
    files = model.chosen(deployment, mmproj=mmproj, hf=hf, revision=hf_revision, offline=offline, text_needed=False)
    if files.mmproj is None:
        raise InputError("the model has its media half as ONNX files alone, and inspect needs an mmproj; give one with --mmproj")
    inputs = [files.mmproj, *([] if "://" in image else [Path(image)])]
    check_output(output, force=force, inputs=inputs)
    family = open_family(files.mmproj)
    chunks = family.preprocess(load(Source("image", url=image), Access.local(options)), options.media)
    chunk, hp = chunks[0], family.hp
    fed = next(iter(chunk.pieces[0].inputs.values()))
    pixels = seen(fed, chunk.used, hp.patch_size, hp.n_merge, hp.mean, hp.std)
    drawn = overlay(
        pixels,
        family.positions(chunk, 0)[0],
        grid=(chunk.grid.t, chunk.grid.h, chunk.grid.w),
        patch=hp.patch_size,
        merge=hp.n_merge,
        size=chunk.size,
        title=Path(image).name,
    )
    with whole_file(output, force=force, inputs=inputs) as part:
        drawn.save(part, format="PNG")
    tokens = sum(c.n_tokens for c in chunks)
    console.out.print(
        f"{chunks[0].size[0]}×{chunks[0].size[1]} seen as {chunks[0].used[0]}×{chunks[0].used[1]}, {tokens} tokens → {output}"
    )
