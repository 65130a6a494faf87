"""A server of rewards on this machine: it answers as it is told, and remembers what was asked."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[dict[str, Any], int], tuple[int, bytes]]


class Asked:
    """What came in.

    Attributes:
        bodies, headers: of every request.
        most: how many were under way at once.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.most = 0


@contextlib.contextmanager
def serving(answer: Answer, seconds: float = 0.0) -> Iterator[Asked]:
    """A server while the context lasts.

    Args:
        answer: status and body for a request's JSON and its number.
        seconds: how long every answer takes.
    """
    lock, under_way = threading.Lock(), [0]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(asked.bodies)
                asked.bodies.append(body)
                asked.headers.append(dict(self.headers))
                under_way[0] += 1
                asked.most = max(asked.most, under_way[0])
            time.sleep(seconds)
            status, text = answer(body, number)
            with lock:
                under_way[0] -= 1
            with contextlib.suppress(OSError):  # who asked may have left
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    asked = Asked(f"http://127.0.0.1:{server.server_port}/rewards")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def lengths(body: dict[str, Any], _: int) -> tuple[int, bytes]:
    """The length of each response, in the form `plain`."""
    return 200, json.dumps({"rewards": [len(r) for r in body["responses"]]}).encode()
