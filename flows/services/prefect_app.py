"""Prefect's server as this project starts it: on loopback, for those who hold the project's key.

Whoever reaches its API can have the worker run any command. By itself Prefect's server takes
requests from every web page that is open in a browser of the machine. So it asks for a key, refuses
other pages' origins, wants a CSRF token with each change, and knows no host name but loopback's
(a page whose own name was pointed at loopback would else be of the server's origin).
"""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from infalign.errors import InputError

if TYPE_CHECKING:
    import httpx

HOST = "127.0.0.1"
HOST_NAMES = (HOST, "localhost")
AUTH = "PREFECT_API_AUTH_STRING"  # the key as Prefect's clients look for it
_KEY_LENGTH = 43  # of 32 random bytes in base64


def create_app() -> Any:
    """For uvicorn: Prefect's own app, asked by the right names only.

    The check stands around the app, not in it: Prefect's services ask the app under another name.
    """
    from prefect.server.api import server
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    return TrustedHostMiddleware(server.create_app(), allowed_hosts=list(HOST_NAMES))


def server_command(port: int) -> list[str]:
    """The command line of a server; the key is not on it."""
    app = ["--factory", f"{__name__}:create_app", "--lifespan", "on", "--log-level", "warning"]
    return [sys.executable, "-m", "uvicorn", *app, "--host", HOST, "--port", str(port)]


def server_environment(root: Path, port: int) -> dict[str, str]:
    """What a server needs in its environment beside a child's usual one."""
    return client_environment(root, port) | {
        "PREFECT_SERVER_API_AUTH_STRING": project_key(root),
        "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": ",".join(
            f"http://{name}:{port}" for name in HOST_NAMES
        ),
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_SERVER_UI_API_URL": api_url(port),
        "PREFECT_HOME": str(root / ".infalign" / "prefect"),
        "PREFECT__SERVER_FINAL": "1",
    }


def client_environment(root: Path, port: int) -> dict[str, str]:
    """What makes Prefect's clients talk to a server of this project."""
    return {"PREFECT_API_URL": api_url(port), AUTH: project_key(root)}


def api_url(port: int) -> str:
    """The address of a server's API."""
    return f"http://{HOST}:{port}/api"


def key_path(root: Path) -> Path:
    """Where the project's key is."""
    return root / ".infalign" / "prefect-key"


def project_key(root: Path) -> str:
    """The key of this project's servers: random, made once, its owner's alone to read."""
    path = key_path(root)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(f"{path}.lock"):
            if not path.exists():
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with open(descriptor, "w") as stream:
                    stream.write(secrets.token_urlsafe(32) + "\n")
            key = path.read_text().strip()
            open_to_others = path.stat().st_mode & 0o077
    except OSError as error:
        raise InputError(f"{path}, the key of Prefect's server, cannot be used: {error}.") from None
    if open_to_others or len(key) < _KEY_LENGTH:
        why = "can be read by others" if open_to_others else "is not whole"
        raise InputError(
            f"{path}, the key of Prefect's server, {why}: delete it, then `infalign down` and "
            "`infalign up` again, so that a new one is made."
        )
    return key


def authorization(key: str) -> dict[str, str]:
    """The header that carries a key."""
    return {"Authorization": f"Basic {base64.b64encode(key.encode()).decode()}"}


@contextlib.contextmanager
def open_api(root: Path, port: int) -> Iterator[httpx.Client]:
    """A client of the project's server at this port; or httpx's error."""
    import httpx

    own = authorization(project_key(root))
    with httpx.Client(base_url=api_url(port), headers=own, timeout=30.0) as client:
        answer = client.get("/csrf-token", params={"client": "infalign"}).raise_for_status()
        client.headers["Prefect-Csrf-Client"] = "infalign"
        client.headers["Prefect-Csrf-Token"] = answer.json()["token"]
        yield client
