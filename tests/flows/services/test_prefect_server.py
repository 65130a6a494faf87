"""The Prefect server: ports in use, addresses that are not Prefect's."""

from __future__ import annotations

import http.server
import socket
import threading
from pathlib import Path

import pytest

from flows.services.prefect_server import Server, answers, prefect_server
from infalign.errors import InputError


def test_a_port_in_use_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setenv("INFALIGN_PREFECT_PORT", str(port))
        with pytest.raises(InputError, match=f"port {port} is in use"), prefect_server(tmp_path):
            pass


def test_an_address_that_is_not_prefect_is_a_sentence(tmp_path: Path) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as other:
        thread = threading.Thread(target=other.serve_forever)
        thread.start()
        url = f"http://user:hidden@127.0.0.1:{other.server_port}/api"
        try:
            with pytest.raises(InputError, match="not answered by a Prefect server") as caught:
                Server(url, tmp_path).wait()
        finally:
            other.shutdown()
            thread.join()
    assert "hidden" not in str(caught.value)


def test_pages(tmp_path: Path, prefect_api: str) -> None:
    assert answers(prefect_api)
    assert not answers(prefect_api.replace("/api", "/nothing"))
    url = "http://127.0.0.1:4200/api"
    assert Server(url, tmp_path).page("x") == "http://127.0.0.1:4200/runs/flow-run/x"
