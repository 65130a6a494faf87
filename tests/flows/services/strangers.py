"""What a web page in the operator's browser, and anyone without the key, would ask of a server."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

PAGE = "http://page.example"
REBOUND = "page.example:4200"  # a name that the page's owner points at 127.0.0.1
PATIENCE = 60.0  # seconds for an answer, on a busy machine


def settled(ask: Callable[[], httpx.Response]) -> httpx.Response:
    """What a server answers that was not busy: Prefect says 503 while its database is locked."""
    for _ in range(10):
        answer = ask()
        if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
            break
        time.sleep(1.0)
    return answer


def deploy(api: str, headers: dict[str, str]) -> httpx.Response:
    """Have the worker run a command, as a page would: the first refusal, or the deployment."""
    with httpx.Client(base_url=api, headers=headers, timeout=PATIENCE) as page:
        flow = settled(lambda: page.post("/flows/", json={"name": "strange"}))
        if flow.is_error:
            return flow
        variables = {"command": "touch stranger-was-here"}
        body = {"name": "strange", "flow_id": flow.json()["id"], "job_variables": variables}
        return settled(lambda: page.post("/deployments/", json=body))


def check_refused(api: str, headers: dict[str, str]) -> None:
    """Neither done, nor may a page read why not."""
    answer = deploy(api, headers)
    assert answer.status_code in (400, 401, 403), answer.text
    assert "access-control-allow-origin" not in answer.headers


def check_strangers(api: str, known: dict[str, str], csrf: dict[str, str]) -> None:
    """Every way in is closed, and the same request by someone with the key is taken.

    Args:
        api: the server's address.
        known: the header with the key.
        csrf: those that a client with the key asks the server for.
    """
    wrong = {"Authorization": f"Basic {base64.b64encode(b'x' * 43).decode()}"}
    for headers in (
        {"Origin": PAGE},
        {"Origin": "null"},
        {},
        wrong,
        wrong | csrf,
        csrf | {"Origin": PAGE},
        known,  # without a CSRF token
        known | csrf | {"Host": REBOUND},
        {"Host": REBOUND, "Origin": f"http://{REBOUND}"},
    ):
        check_refused(api, headers)
    with httpx.Client(base_url=api, timeout=PATIENCE) as client:
        for path in ("/flows/filter", "/variables/filter", "/admin/settings"):
            assert client.get(path).status_code == 401
        asks = {"Access-Control-Request-Method": "POST", "Origin": PAGE}
        preflight = client.options("/deployments/", headers=asks)
        assert preflight.status_code == 400
        assert "access-control-allow-origin" not in preflight.headers
        check_sockets(api)
        made = deploy(api, known | csrf)
        assert made.status_code == 201, made.text
        path = f"/deployments/{made.json()['id']}"
        done = settled(lambda: client.delete(path, headers=known | csrf))
        assert done.status_code == 204, done.text


def check_sockets(api: str) -> None:
    """Browsers let any page open a web socket: events, logs and work are closed as well."""
    for path in ("events/in", "events/out", "logs/out"):
        url = f"{api.replace('http', 'ws', 1)}/{path}"
        opened = partial(connect, url, origin=PAGE, open_timeout=PATIENCE)
        with pytest.raises(InvalidStatus):  # the old protocol, without a key
            opened()
        with pytest.raises(InvalidStatus):
            opened(subprotocols=["prefect"], additional_headers={"Host": REBOUND})
        with opened(subprotocols=["prefect"]) as socket:
            socket.send(json.dumps({"type": "auth", "token": "x" * 43}))
            with pytest.raises(ConnectionClosed):
                socket.recv(timeout=PATIENCE)


def files_with(root: Path, key: str) -> list[str]:
    """The files below a folder that hold the key, as it is or as it is sent."""
    forms = (key.encode(), base64.b64encode(key.encode()))
    files = [path for path in root.rglob("*") if path.is_file()]
    return [
        str(path.relative_to(root))
        for path in files
        if any(form in path.read_bytes() for form in forms)
    ]
