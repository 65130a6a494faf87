"""Servers asked over HTTP: JSON there and back, and again where the next time may be better."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, TypeVar
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from infalign.errors import InputError
from infalign.settings.reading import shown

T = TypeVar("T")
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds before a request is sent again
MOST_BYTES = 64 * 2**20  # of an answer
AGAIN = (408, 425, 429)  # and 500 and above: it may be better the next time


class Failed(Exception):
    """Why a request failed, and whether it is worth another try."""

    def __init__(self, words: str, again: bool) -> None:
        super().__init__(words)
        self.again = again


@dataclass(frozen=True)
class Remedies:
    """What to do about failures that depend on how a server is used.

    Attributes:
        late: about an answer that does not come in time.
        large: about one that is too large.
        missing: about an answer 404.
    """

    late: str = "raise it"
    large: str = "ask for less"
    missing: str = "correct the address"


def waits() -> Iterator[float]:
    """Seconds between tries, for ever: doubled up to a bound."""
    wait = FIRST_WAIT
    while True:
        yield wait
        wait = min(2 * wait, LONGEST_WAIT)


def waits_within(seconds: float) -> Iterator[float]:
    """The same while their sum stays below so many seconds."""
    total = 0.0
    for wait in waits():
        total += wait
        if total > seconds:
            return
        yield wait


def patiently(
    ask: Callable[[], T], pauses: Iterable[float], sleep: Callable[[float], None] = time.sleep
) -> T:
    """The answer to a request; it is sent again after failures that may pass.

    Args:
        pauses: seconds before each further try.

    Raises:
        Failed: of the last try, with how many there were.
    """
    for tried, pause in enumerate([*pauses, None], 1):
        try:
            return ask()
        except Failed as error:
            if not error.again or pause is None:
                times = f" ({tried} times)" if tried > 1 else ""
                raise Failed(f"{error}{times}", error.again) from None
            sleep(pause)
    raise AssertionError


def key_of(variable: str | None, field: str) -> str | None:
    """A secret, from the environment alone.

    Args:
        field: what names the variable in params.yaml.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise InputError(
            f"{field} = {variable!r}: the environment has no such variable: set it, or null where "
            "the server asks for no key."
        )
    return key


def fetch(
    url: str,
    body: bytes | None,
    *,
    timeout_seconds: float,
    key: str | None = None,
    remedies: Remedies | None = None,
    reads: bool = True,
) -> Any:
    """What a server answers, read as JSON.

    Args:
        body: JSON to POST; None: GET.
        key: sent as Bearer.
        reads: whether the answer is JSON, or of no interest.

    Raises:
        Failed: with words that go on behind `the server`.
    """
    remedies = remedies or Remedies()
    headers = {"Content-Type": "application/json"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    request = Request(url, body, headers, method="GET" if body is None else "POST")
    late = Failed(
        f"gave no answer within timeout_seconds = {timeout_seconds:g}: {remedies.late}", True
    )
    try:
        with urlopen(request, timeout=timeout_seconds) as answer:
            text = answer.read(MOST_BYTES + 1)
    except HTTPError as error:
        raise _refused(error, remedies) from None
    except TimeoutError:
        raise late from None
    except URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise late from None
        raise Failed(f"cannot be reached ({error.reason}): start it", True) from None
    except (OSError, HTTPException) as error:
        raise Failed(f"broke off ({type(error).__name__}: {error})", True) from None
    if len(text) > MOST_BYTES:
        raise Failed(f"gave more than {MOST_BYTES} bytes: {remedies.large}", False)
    if not reads:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise Failed(f"gave no JSON, but {shown(text[:100])}", False) from None


def _refused(error: HTTPError, remedies: Remedies) -> Failed:
    status, again = error.code, error.code >= 500 or error.code in AGAIN
    try:
        said = shown(" ".join(error.read(1000).decode("utf-8", "replace").split()))
    except (OSError, HTTPException):
        said = "nothing more"
    hint = "look at its log"
    if status in (401, 403):
        hint = "set api_key_variable to the variable of the environment that holds the key"
    elif status == 404:
        hint = remedies.missing
    return Failed(f"answered {status} {error.reason} and said {said}: {hint}", again)
