"""Which files a model consists of, in whichever way it is named."""

from __future__ import annotations

from pathlib import Path

from diptych import deploy
from diptych.errors import InputError


def locate(
    deployment: str | Path | deploy.Deployment | None, model: Path | None, mmproj: Path | None, hf: str | None, absolute: bool
) -> deploy.Deployment:
    """The files that are named in one way or another."""
    if hf is None and not isinstance(deployment, deploy.Deployment):
        return deploy.find(deployment, model=model, mmproj=mmproj, absolute=absolute)
    if model or mmproj or (hf and deployment):
        raise InputError("a deployment, the files of its halves, and hf are three ways to name a model; name it in one")
    if isinstance(deployment, deploy.Deployment):
        return deployment
    from diptych.hub import download as hub

    return hub.fetch(str(hf))
