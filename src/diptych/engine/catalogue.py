"""Media that were seen before: by the client's own id or by their bytes, so that nothing is sent, decoded, preprocessed or
hashed twice whose rows are still there."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from diptych.errors import ReboundMedia, UnknownMedia
from diptych.families.base import Rows
from diptych.types import MediaChunk, MediaSettings, Source

K = TypeVar("K")
V = TypeVar("V")
_MOST = 4096  # of ids, and of preprocessed media; some hundred bytes each

Known = Callable[[bytes], Rows | None]  # the rows of a chunk key that are still there


@dataclass(frozen=True)
class _Bound:
    """What an id stands for: a hash of the bytes, and the address they came from."""

    digest: bytes
    url: str | None


class Catalogue:
    """Ids and what preprocessing made of media, those used last. Holds no pixels and no rows. Any thread may call.

    An id belongs to its scope (one API key), and stands for the same bytes as long as it is remembered.
    """

    def __init__(self, known: Known) -> None:
        self._known = known
        self._ids: OrderedDict[tuple[str, str], _Bound] = OrderedDict()
        self._chunks: OrderedDict[tuple[bytes, MediaSettings], tuple[MediaChunk, ...]] = OrderedDict()
        self._lock = threading.Lock()

    def by_id(self, scope: str, source: Source, settings: MediaSettings) -> list[MediaChunk] | None:
        """The chunks, with rows, of an item that is named by its id, or by the id and the address it came from before.

        None where the bytes are needed; raises UnknownMedia where there are none.
        """
        if source.id is None or source.data is not None:
            return None
        with self._lock:
            bound = self._ids.get((scope, source.id))
        same = bound is not None and (source.url is None or source.url == bound.url)
        found = self.by_digest(bound.digest, settings) if bound is not None and same else None
        if found is None and source.url is None:
            what = "is not known" if bound is None else "is no longer cached, or not with these limits of size"
            raise UnknownMedia(f"the media id {source.id!r} {what}; send the item again with its data")
        return found

    def is_bound(self, scope: str, source: Source) -> bool:
        """Whether an id stands for what came from this address before."""
        with self._lock:
            bound = self._ids.get((scope, source.id)) if source.id is not None else None
        return bound is not None and bound.url == source.url

    def bind(self, scope: str, source: Source, data: bytes) -> bytes:
        """The digest of bytes that were read, for which the source's id stands from now on.

        Raises ReboundMedia where it stands for others.
        """
        digest = hashlib.sha256(source.kind.encode() + b" " + data).digest()
        if source.id is not None:
            url = None if (source.url or "").startswith("data:") else source.url
            with self._lock:
                bound = self._ids.setdefault((scope, source.id), _Bound(digest, url))
                if bound.digest != digest:
                    raise ReboundMedia(f"the media id {source.id!r} stands for other content; give this item another id")
                _use(self._ids, (scope, source.id))
        return digest

    def by_digest(self, digest: bytes, settings: MediaSettings) -> list[MediaChunk] | None:
        """The chunks of bytes that were preprocessed in the same way before, if the rows of all are still there."""
        with self._lock:
            chunks = self._chunks.get((digest, settings))
            if chunks is None:
                return None
            _use(self._chunks, (digest, settings))
        found = [replace(chunk, rows=self._known(chunk.key)) for chunk in chunks]
        return found if all(chunk.rows is not None for chunk in found) else None

    def keep(self, digest: bytes, settings: MediaSettings, chunks: list[MediaChunk]) -> None:
        """Remember what preprocessing made, without what the encoder takes."""
        light = tuple(replace(c, pieces=tuple(replace(piece, inputs={}) for piece in c.pieces)) for c in chunks)
        with self._lock:
            self._chunks[digest, settings] = light
            _use(self._chunks, (digest, settings))


def _use(entries: OrderedDict[K, V], key: K) -> None:
    """Note that an entry was used, and drop those that were used longest ago."""
    entries.move_to_end(key)
    while len(entries) > _MOST:
        entries.popitem(last=False)
