"""One client's line: uvicorn's HTTP/1.1 over h11, that gives up who holds the line and does nothing with it."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 15.0  # for the head of a request, and for the rest of a body that was answered already
STALL_SECONDS = 60.0  # in which a client takes at least `STALL_BYTES` of what waits to be read, or all of it
STALL_BYTES = 16 * 2**10


class Protocol(H11Protocol):
    """A connection. Bodies have bounds of their own (`bodies.py`)."""

    head_seconds = HEAD_SECONDS
    stall_seconds = STALL_SECONDS

    _owed: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None
    _unread = 0  # bytes that the client had still to take when they were counted last

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The line stands."""
        super().connection_made(transport)
        if self.limit_concurrency is not None and len(self.connections) > self.limit_concurrency:
            return transport.abort()  # each is a file to the system, and it has not many
        self._expect()

    def data_received(self, data: bytes) -> None:
        """The client sent something."""
        super().data_received(data)
        if self._owes():
            self._expect()
        elif self._owed is not None:
            self._owed.cancel()
            self._owed = None

    def pause_writing(self) -> None:
        """The client reads more slowly than we write."""
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        """It has caught up."""
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def timeout_keep_alive_handler(self) -> None:
        """Nothing has come for a while: close, and do not wait for ever for what was never read."""
        super().timeout_keep_alive_handler()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """The line is dead."""
        for timer in (self._owed, self._stalled):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def _owes(self) -> bool:
        """Whether the client has begun something that nobody but this class waits for."""
        if self.conn.their_state is h11.IDLE:
            return bool(self.conn.trailing_data[0])
        return self.conn.their_state is h11.SEND_BODY and self.cycle.response_complete

    def _expect(self) -> None:
        if self._owed is None:
            self._owed = self.loop.call_later(self.head_seconds, self.transport.abort)

    def _watch(self) -> None:
        """See to it that the client takes what is there to read."""
        if self._stalled is None:
            self._unread = self.transport.get_write_buffer_size()
            self._stalled = self.loop.call_later(self.stall_seconds, self._look)

    def _look(self) -> None:
        self._stalled = None
        left = self.transport.get_write_buffer_size()
        if left and self._unread - left < STALL_BYTES:
            self.transport.abort()
        elif left:
            self._watch()
