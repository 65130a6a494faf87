"""A stand-in for the Hugging Face hub: data sets of a folder, over HTTP, as its own client asks."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "89abcdef0123456789abcdef0123456789abcdef"


class _Hub(BaseHTTPRequestHandler):
    """`OWNER/NAME` is a folder below `root`; every revision is COMMIT."""

    root: Path
    asked: list[str]

    def log_message(self, *_: object) -> None:
        """Nothing: the tests read what is asked."""

    def do_HEAD(self) -> None:
        self._answer(False)

    def do_GET(self) -> None:
        self._answer(True)

    def _answer(self, whole: bool) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(path)
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "datasets"]:
            folder, revision = self.root / "/".join(parts[2:4]), parts[5] if parts[5:] else "main"
            if not folder.is_dir() or revision not in ("main", "v1", COMMIT):
                return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, whole)
            files = sorted(f for f in folder.rglob("*") if f.is_file())
            names = [f.relative_to(folder).as_posix() for f in files]
            tree = [
                {"type": "file", "path": n, "size": f.stat().st_size, "oid": "0" * 40}
                for n, f in zip(names, files, strict=True)
            ]
            about = {"id": "/".join(parts[2:4]), "sha": COMMIT}
            about |= {"siblings": [{"rfilename": name} for name in names]}
            body = tree if "tree" in parts[4:5] else about
            return self._send(200, json.dumps(body).encode(), {}, whole)
        file = self.root / "/".join(parts[1:3] + parts[5:])
        if not file.is_file():
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, whole)
        data = file.read_bytes()
        about = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'}
        return self._send(200, data, about, whole)

    def _send(self, status: int, body: bytes, headers: dict[str, str], whole: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if whole:
            self.wfile.write(body)


@contextlib.contextmanager
def hub(root: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of a hub that has the folders OWNER/NAME, and what it is asked for."""
    asked: list[str] = []
    handler = type("Hub", (_Hub,), {"root": root, "asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
