"""Deployments: the directories that bind both halves of a model."""

from __future__ import annotations

from diptych.deploy.deployment import Deployment, Encoder, OnnxHalf
from diptych.deploy.find import find

__all__ = ["Deployment", "Encoder", "OnnxHalf", "find"]
