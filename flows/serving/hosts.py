"""Whose requests are answered: those that name an address of this server, or an allowed one.

A page in somebody's browser can ask any address that the browser reaches. It cannot hide where it
comes from: in `Origin`, or, where its own name was made to point here (DNS rebinding), in `Host`.
MLflow's own servers look at both; its scoring app does not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, MutableMapping
from fnmatch import fnmatchcase
from typing import Any

from flows.serving.requests import Refused

LOCAL = ("localhost", "127.0.0.1", "::1")
_HOST = re.compile(r"(?:[a-z][a-z0-9+.-]*://)?(?:\[([^\[\]@/\s]+)\]|([^\[\]:@/\s]+))(?::\d+)?")


def check_sender(scope: MutableMapping[str, Any], allowed: Iterable[str]) -> None:
    """Raise Refused for a foreign page, or for a name that is not this server's.

    Args:
        scope: of the request; `server` is the address that it reached.
        allowed: host names beside that and those of this machine; `*` stands for any characters.
    """
    names = [*LOCAL, (scope.get("server") or ("",))[0], *(name.lower() for name in allowed)]
    hosts = [value.decode("latin-1") for key, value in scope["headers"] if key == b"host"]
    origins = [value.decode("latin-1") for key, value in scope["headers"] if key == b"origin"]
    for kind, values in (("host", hosts or [""]), ("origin", origins)):
        for value in values:
            if not _is_known(value, names):
                raise Refused(
                    403,
                    f"{kind} {value[:80]!r} may not ask this server: add its host to "
                    "serving.allowed_hosts in params.yaml if it should.",
                )


def _is_known(value: str, names: list[str]) -> bool:
    found = _HOST.fullmatch(value.lower())
    host = (found[1] or found[2]) if found else None
    return host is not None and any(fnmatchcase(host, name) for name in names)
