"""The pages of a scoring server that infalign answers itself; the rest is MLflow's app's."""

from __future__ import annotations

import asyncio
import json
import math
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from flows.serving import chat
from flows.serving.answering import Answering, Busy
from flows.serving.requests import Reader, Refused, no_number
from infalign.deployment.deployed import Drawn, NotDrawn, Request
from infalign.errors import InputError

CHAT = "/v1/chat/completions"
FEEDBACK = 'send {"id": "chatcmpl-…", "rating": 1}'
RATINGS = (-1.0, 1.0)
FAULT = "the model failed on this request: the server's log says why."


class Reply(NamedTuple):
    """What is sent back."""

    status: int
    body: bytes
    kind: str = "application/json"
    headers: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(frozen=True)
class Routes:
    """Answers by a deployed policy.

    Attributes:
        answering: draws, counts, and knows the log.
        reader: of `/invocations`.
    """

    answering: Answering
    reader: Reader

    def close(self) -> None:
        """Finish the log."""
        if self.answering.log is not None:
            self.answering.log.close()

    def find(self, method: str, path: str) -> Callable[[str, bytes], Awaitable[Reply]] | None:
        """What answers a request of a method to a path, given its content type and body."""
        pages = {
            ("POST", "/invocations"): self._invocations,
            ("POST", CHAT): self._chat,
            ("POST", "/feedback"): self._feedback,
            ("GET", "/v1/models"): self._models,
            ("GET", "/metrics"): self._metrics,
        }
        return pages.get((method, path))

    async def _invocations(self, kind: str, body: bytes) -> Reply:
        tree = json.loads(self.reader.read(kind, body))
        request = Request(**{"procedure": "", **tree["params"]})
        drawn, name = await self._drawn(tree["inputs"], [request] * len(tree["inputs"]))
        said = {"predictions": [asdict(one.answer) for one in drawn]}
        return Reply(200, json.dumps(said).encode(), headers=((b"x-infalign-id", name.encode()),))

    async def _chat(self, kind: str, body: bytes) -> Reply:
        try:
            return await self._completion(kind, body)
        except Busy as error:
            body = chat.fault(429, str(error))
            return Reply(429, body, headers=((b"retry-after", str(error.seconds).encode()),))
        except Refused as error:
            return Reply(error.status, chat.fault(error.status, str(error)))

    async def _completion(self, kind: str, body: bytes) -> Reply:
        if kind != "application/json":
            raise Refused(415, "the content type must be application/json.")
        asked = chat.read_chat(body, self.reader, self.answering.model)
        longest = min(asked.params["max_new_tokens"], self.answering.deployed.response_tokens)
        seeds = chat.seeds_of(asked)
        requests = [
            Request(**(asked.params | {"seed": seed, "max_new_tokens": longest})) for seed in seeds
        ]
        drawn, name = await self._drawn([asked.dialogue] * asked.choices, requests)
        answer = chat.completion(name, self.answering.model, asked, drawn, seeds)
        if asked.stream:
            return Reply(200, chat.events(answer, asked.usage), "text/event-stream")
        return Reply(200, json.dumps(answer).encode())

    async def _drawn(self, prompts: list[str], requests: list[Request]) -> tuple[list[Drawn], str]:
        begun = time.monotonic()
        try:
            drawn = await self.answering.draw(prompts, requests)
        except NotDrawn as error:  # of a reward that fails, say: not what the client can mend
            print(f"scoring: {error}", file=sys.stderr, flush=True)
            raise Refused(503, FAULT) from None
        except InputError as error:
            raise Refused(400, str(error)) from None
        took = time.monotonic() - begun
        write = self.answering.record
        return drawn, await asyncio.to_thread(write, drawn, requests, took)

    async def _feedback(self, kind: str, body: bytes) -> Reply:
        if kind != "application/json":
            raise Refused(415, "the content type must be application/json.")
        if self.answering.log is None:
            raise Refused(404, "no log is kept here: start `infalign serve --log FOLDER`.")
        try:
            tree = json.loads(body, parse_constant=no_number)
        except (ValueError, RecursionError):
            raise Refused(400, f"the request is not JSON: {FEEDBACK}.") from None
        given = read_feedback(tree, self.reader.limits.n)
        if not await asyncio.to_thread(self.answering.log.add_feedback, *given):
            raise Refused(500, "the feedback could not be redacted, and is not written.")
        return Reply(200, b'{"status": "written"}')

    async def _models(self, _kind: str, _body: bytes) -> Reply:
        return Reply(200, json.dumps(chat.models(self.answering.model)).encode())

    async def _metrics(self, _kind: str, _body: bytes) -> Reply:
        return Reply(200, self.answering.metrics(), "text/plain; version=0.0.4; charset=utf-8")


def read_feedback(tree: Any, most: int) -> tuple[str, int, int | None, float | None, str | None]:
    """The id, choice, preferred response, rating and correction of a feedback; or Refused.

    Args:
        most: responses that are drawn for a prompt.
    """
    known = {"id", "choice", "preferred", "rating", "correction"}
    if not isinstance(tree, dict) or set(tree) - known:
        raise Refused(
            400, f"feedback has {', '.join(sorted(known))}, and nothing else: {FEEDBACK}."
        )
    tree = {name: value for name, value in tree.items() if value is not None}
    name = tree.get("id")
    if not isinstance(name, str) or not 1 <= len(name) <= 100 or not name.isprintable():
        raise Refused(400, f"id must be the id of an answer: {FEEDBACK}.")
    if not {"preferred", "rating", "correction"} & set(tree):
        raise Refused(400, f"feedback says preferred, rating or correction: {FEEDBACK}.")
    for field, bound in (("choice", most), ("preferred", most)):
        value = tree.get(field, 0)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < bound:
            raise Refused(400, f"{field} must be a whole number, 0 to {bound - 1}.")
    rating = tree.get("rating", 0.0)
    low, high = RATINGS
    if (
        isinstance(rating, bool)
        or not isinstance(rating, int | float)
        or not (math.isfinite(rating) and low <= rating <= high)
    ):
        raise Refused(400, f"rating must be a number, {low:g} (bad) to {high:g} (good).")
    correction = tree.get("correction", "text")
    if not isinstance(correction, str) or not correction.strip() or "\0" in correction:
        raise Refused(400, "correction must be the text that should have been answered.")
    rated = float(rating) if "rating" in tree else None
    return name, tree.get("choice", 0), tree.get("preferred"), rated, tree.get("correction")
