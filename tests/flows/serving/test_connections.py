"""Requests that do not arrive whole: they are closed in time, and keep nobody else out."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.flows.serving.conftest import Scoring

SECONDS, CONNECTIONS = 3.0, 40
PATIENCE = 60.0  # ours, with a slow machine
GOOD = {"inputs": ["one two"], "params": {"max_new_tokens": 1}}
HEAD = (
    b"POST /invocations HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    b"content-length: 40\r\n\r\n"
)
WHOLE = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def server(packaged: Path, scoring: Callable[..., Any]) -> Iterator[Scoring]:
    with scoring(packaged, request_seconds=SECONDS, connections=CONNECTIONS) as one:
        yield one


def until_closed(client: socket.socket, drip: bytes = b"") -> tuple[bytes, float]:
    """What a server says until it closes, and how long that takes; a byte is sent now and then."""
    began, said = time.monotonic(), b""
    client.settimeout(0.2 if drip else PATIENCE)
    while True:
        try:
            part = client.recv(65536)
        except TimeoutError:
            assert drip, "the connection stays open"
            client.sendall(drip)
            assert time.monotonic() - began < PATIENCE, "the connection stays open"
            continue
        except ConnectionResetError:  # a byte reached it when it had closed
            part = b""
        if not part:
            return said, time.monotonic() - began
        said += part


@pytest.mark.parametrize(
    ("sent", "drip"),
    [
        (b"", b""),
        (b"POST /invocations HTT", b""),
        (b"POST /invocations HTTP/1.1\r\nhost: localhost\r\n", b""),
        (b"POST /invocations HTTP/1.1\r\nhost: localhost\r\nx: ", b"x"),
        (HEAD, b""),
        (HEAD + b'{"inputs": ["', b""),
        (HEAD, b" "),
        (HEAD.replace(b"content-length: 40", b"transfer-encoding: chunked") + b"1\r\n", b""),
        (HEAD.replace(b"localhost", b"evil.example"), b" "),
        (WHOLE + HEAD, b""),
        (WHOLE + HEAD, b" "),
        (WHOLE + HEAD[:30], b"x"),
    ],
)
def test_what_does_not_arrive_whole_is_closed_in_time(
    server: Scoring, sent: bytes, drip: bytes
) -> None:
    with socket.create_connection(server.address) as client:
        client.sendall(sent)
        said, seconds = until_closed(client, drip)
    assert seconds > SECONDS - 1  # and it closes at all, also where bytes keep coming
    if b"evil" in sent:
        assert said.startswith(b"HTTP/1.1 403")
    elif sent.startswith(WHOLE):
        assert said.startswith(b"HTTP/1.1 200")
        assert said.count(b"HTTP/1.1 408") == 1
    elif not drip or said:
        assert said.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
        assert b'{"error": "the request did not arrive whole within 3 seconds: send' in said


def test_many_half_requests_keep_nobody_out(server: Scoring) -> None:
    with ExitStack() as stack:
        halves = []
        for number in range(8 * CONNECTIONS):
            client = stack.enter_context(socket.create_connection(server.address))
            client.sendall((HEAD, HEAD[:40], b"")[number % 3])
            halves.append(client)
            if number % CONNECTIONS == 0:
                assert server.post(GOOD).status_code == 200
        assert server.post(GOOD).status_code == 200
        said = [until_closed(client)[0] for client in halves]
    assert {part.split(b"\r\n")[0] for part in said} == {b"HTTP/1.1 408 Request Timeout"}
    assert b"before others needed its place" in said[0]
    assert b"within 3 seconds" in said[-1]


def test_a_kept_connection_has_its_time_anew(server: Scoring) -> None:
    with httpx.Client() as client:
        for _ in range(3):  # together longer than one request may take
            assert client.get(server.url.replace("invocations", "health")).status_code == 200
            time.sleep(SECONDS / 2)
    with socket.create_connection(server.address) as idle:
        idle.sendall(WHOLE)
        said, seconds = until_closed(idle)
        assert said.startswith(b"HTTP/1.1 200")
        assert said.count(b"HTTP/1.1") == 1
        assert seconds > SECONDS + 1  # uvicorn's own time for a connection between two requests
    with socket.create_connection(server.address) as slow:
        for part in (WHOLE[:20], WHOLE[20:]):
            time.sleep(SECONDS / 4)
            slow.sendall(part)
        assert slow.recv(65536).startswith(b"HTTP/1.1 200")
