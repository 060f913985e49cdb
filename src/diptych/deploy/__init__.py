"""Deployments: the directories that bind both halves of a model."""

from __future__ import annotations

from diptych.deploy.find import Deployment, find

__all__ = ["Deployment", "find"]
