"""Slots saved to files, restored from them, and erased: `POST /slots/ID?action=…`, as llama-server has it."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Literal

from fastapi import APIRouter

from diptych.errors import InputError, NotSupported
from diptych.server.asking.fields import Body, ShortText
from diptych.server.serving import Served, Serving

router = APIRouter(tags=["server"])
_NAME = re.compile(r"[\w-][\w.-]{0,199}", re.ASCII)  # no path, nothing hidden


class SlotBody(Body):
    """Which file; to erase takes none."""

    filename: ShortText | None = None


@router.post("/slots/{number}")
async def act(number: int, action: Literal["save", "restore", "erase"], serving: Served, body: SlotBody | None = None) -> object:
    """Save what an idle slot holds of its last prompt and answer, pictures too, restore it, or forget it."""
    folder, store = _folder(serving), serving.engine.store
    if action == "erase":
        return {"id_slot": number, "n_erased": await asyncio.to_thread(store.erase, number)}
    path = folder / _checked(body.filename if body else None)
    if action == "save":
        kept = await asyncio.to_thread(store.save, number, path)
        told = {"n_saved": kept.n_tokens, "n_written": kept.n_bytes, "timings": {"save_ms": kept.ms}}
    else:
        kept = await asyncio.to_thread(store.restore, number, path)
        told = {"n_restored": kept.n_tokens, "n_read": kept.n_bytes, "timings": {"restore_ms": kept.ms}}
    return {"id_slot": number, "filename": path.name, **told}


def _folder(serving: Serving) -> Path:
    folder = serving.options.slot_save_path
    if folder is None:
        raise NotSupported("slots are neither saved nor erased here; start the server with --slot-save-path DIRECTORY")
    return folder


def _checked(name: str | None) -> str:
    if name is None or not _NAME.fullmatch(name):
        raise InputError(f"filename is {str(name)[:40]!r}; it must be a name of letters, digits, dots, _ and -, without a folder")
    return name
