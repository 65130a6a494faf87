"""Connections whose requests must arrive whole in time, and of which only so many are open.

uvicorn waits for ever for the rest of a request. Here a request that does not arrive whole within
`serving.request_seconds` is answered with 408, and where more than `serving.connections` are open,
the one that has waited longest for the rest of its request makes room.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from infalign.settings.params import Serving


class Timely(H11Protocol):
    """One connection.

    Args:
        limits: section `serving` of params.yaml.
    """

    def __init__(self, *arguments: Any, limits: Serving, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._limits = limits
        self._deadline: asyncio.TimerHandle | None = None
        self._since = 0.0

    @property
    def waiting(self) -> bool:
        """Whether the client has the word: its request has not arrived, or not all of it."""
        return self.conn.their_state in (h11.IDLE, h11.SEND_BODY)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Give the first request its time, and make room."""
        super().connection_made(transport)
        self._wait()
        if len(self.connections) > self._limits.connections:
            others = cast("set[Timely]", self.connections - {self})
            idle = [one for one in others if one.waiting or one.transport.is_closing()]
            if idle:
                min(idle, key=lambda one: one._since).hang_up("before others needed its place")

    def data_received(self, data: bytes) -> None:
        """Give a request its time from its first byte to its last."""
        if self._deadline is None and self.waiting:
            self._wait()
        super().data_received(data)
        if not self.waiting:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        """Await the next request, for as long as uvicorn keeps a connection alive."""
        self._since = self.loop.time()
        super().on_response_complete()
        if self.waiting and self.timeout_keep_alive_task is None:  # half of it has arrived already
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._stop_waiting()
        super().connection_lost(exc)

    def hang_up(self, when: str) -> None:
        """Close; a request that is under way is answered with one sentence."""
        asked = self._deadline is not None and not self.transport.is_closing()
        self._stop_waiting()
        self.connections.discard(self)  # at once: many may come before the loop turns
        if asked and self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            sentence = f"the request did not arrive whole {when}: send it again, all at once."
            body = json.dumps({"error": sentence}).encode()
            headers = [
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                ("connection", "close"),
            ]
            for event in (
                h11.Response(status_code=408, headers=headers, reason=b"Request Timeout"),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        if self.transport.get_write_buffer_size():  # the client does not read what it asked for
            self.transport.abort()
        self.transport.close()

    def _wait(self) -> None:
        self._stop_waiting()
        self._since = self.loop.time()
        seconds = self._limits.request_seconds
        self._deadline = self.loop.call_later(seconds, self.hang_up, f"within {seconds:g} seconds")

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
