"""The Prefect server: who is let in, ports in use, addresses that are not Prefect's."""

from __future__ import annotations

import asyncio
import http.server
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from flows.runs.approval import note_path, resume
from flows.services.prefect_app import AUTH, authorization, key_path, project_key
from flows.services.prefect_server import Server, answers, check_server, prefect_server
from infalign.errors import InputError
from tests.flows.conftest import PREFECT_KEY
from tests.flows.services.strangers import PATIENCE, check_strangers


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
    url = "http://127.0.0.1:4300/api"
    assert Server(url, tmp_path).page("x") == "http://127.0.0.1:4300/runs/flow-run/x"


def test_the_temporary_server_takes_nothing_from_strangers(prefect_api: str) -> None:
    known = authorization(PREFECT_KEY)
    asked = httpx.get(f"{prefect_api}/csrf-token?client=me", headers=known, timeout=PATIENCE)
    csrf = {"Prefect-Csrf-Client": "me", "Prefect-Csrf-Token": asked.json()["token"]}
    check_strangers(prefect_api, known, csrf)


def test_a_server_with_another_key_is_a_sentence(
    prefect_api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in (PREFECT_KEY, None, "another"):
        monkeypatch.delenv(AUTH)
        if key is not None:
            monkeypatch.setenv(AUTH, key)
        if key == PREFECT_KEY:
            check_server(prefect_api)
            continue
        with pytest.raises(InputError, match=f"asks for another key: set {AUTH}"):
            check_server(prefect_api)
        monkeypatch.setenv(AUTH, PREFECT_KEY)


def test_an_approval_finds_the_projects_key_and_sends_it_to_its_own_server_only(
    prefect_api: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, told = key_path(tmp_path), {"url": prefect_api, "own": True}
    path.parent.mkdir()
    path.touch(0o600)
    path.write_text(PREFECT_KEY)
    monkeypatch.delenv("PREFECT_API_URL")
    for own, words in ((True, "there is no flow run"), (False, f"401: set {AUTH} to its key")):
        note_path(tmp_path).write_text(json.dumps(told | {"own": own}))
        monkeypatch.setenv(AUTH, "the key of another server")
        with pytest.raises(InputError, match=words):
            asyncio.run(resume(tmp_path, str(uuid4())))


def test_the_key_is_made_once_and_for_its_owner(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as many:
        keys = set(many.map(project_key, [tmp_path] * 16))
    assert len(keys) == 1
    assert len(keys.pop()) == 43
    assert project_key(tmp_path) != project_key(tmp_path / "other")
    path = key_path(tmp_path)
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    with pytest.raises(InputError, match="can be read by others: delete it"):
        project_key(tmp_path)
    path.chmod(0o600)
    path.write_text("")
    with pytest.raises(InputError, match="is not whole: delete it"):
        project_key(tmp_path)
