"""Rewards by a server, asked over HTTP: in batches, some side by side, again where one fails.

Three forms of a request:

- plain: `{"dialogues": [[{"role", "content"}, …], …], "responses": […]}` gives `{"rewards": […]}`;
- classify: vLLM's `/classify`, a dialogue with its response a request, gives `data[0].probs`;
- pooling: vLLM's `/pooling`, the same, gives `data[0].data`, the last token's where it has several.

vLLM is asked for what the classifier's head gives, without softmax or sigmoid.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from infalign.data.dialogue import Dialogue
from infalign.engines.asking import Failed, Remedies, fetch, key_of, patiently, waits
from infalign.errors import InputError
from infalign.files.squares import Array
from infalign.rewards.source import as_rewards
from infalign.settings.reading import shown
from infalign.settings.rewards import ServerReward

REMEDIES = Remedies("raise it, or lower batch or concurrency", "lower batch")


@dataclass(frozen=True)
class Server:
    """A source of rewards.

    Attributes:
        field: where its settings stand in params.yaml.
        sleep: what waits between tries.
    """

    settings: ServerReward
    field: str
    sleep: Callable[[float], None] = time.sleep

    def rewards(self, dialogues: Sequence[Dialogue], responses: Sequence[str]) -> Array:
        """As every source of rewards."""
        size = self.settings.batch if self.settings.form == "plain" else 1
        starts = range(0, len(responses), size)
        key = key_of(self.settings.api_key_variable, f"{self.field}.api_key_variable")

        def ask(start: int) -> Array:
            chosen = slice(start, start + size)
            return self._ask(dialogues[chosen], responses[chosen], key)

        found = [np.empty(0)]
        with ThreadPoolExecutor(min(self.settings.concurrency, max(1, len(starts)))) as pool:
            try:
                found += pool.map(ask, starts)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return np.concatenate(found)

    @property
    def _name(self) -> str:
        return f"{self.field}.url = {self.settings.url!r}"

    def _ask(
        self, dialogues: Sequence[Dialogue], responses: Sequence[str], key: str | None
    ) -> Array:
        body = json.dumps(self._body(dialogues, responses)).encode()
        answer = self._patiently(body, key)
        return as_rewards(self._values(answer), responses, f"{self._name}: the server")

    def _body(self, dialogues: Sequence[Dialogue], responses: Sequence[str]) -> dict[str, Any]:
        named = {} if self.settings.model is None else {"model": self.settings.model}
        if self.settings.form == "plain":
            asked = [dialogue.messages for dialogue in dialogues]
            return {"dialogues": asked, "responses": list(responses), **named}
        said = {"role": "assistant", "content": responses[0]}
        return {
            "messages": [*dialogues[0].messages, said],
            "add_generation_prompt": False,
            "use_activation": False,
            **named,
        }

    def _patiently(self, body: bytes, key: str | None) -> Any:
        """The answer to a request; it is sent again after failures that may pass."""
        seconds = self.settings.timeout_seconds
        ask = partial(
            fetch, self.settings.url, body, timeout_seconds=seconds, key=key, remedies=REMEDIES
        )
        try:
            return patiently(ask, islice(waits(), self.settings.retries), self.sleep)
        except Failed as error:
            raise InputError(f"{self._name}: the server {error}.") from None

    def _values(self, answer: Any) -> list[object]:
        """The rewards of an answer, of whatever form; one sentence where it has another."""
        try:
            if self.settings.form == "plain":
                values = answer["rewards"]
                if not isinstance(values, list):
                    raise TypeError
                return [_number(value) for value in values]
            first = answer["data"][0]
            return [self._output(first["probs" if self.settings.form == "classify" else "data"])]
        except (KeyError, TypeError, IndexError):
            wanted = {
                "plain": '{"rewards": […]}',
                "classify": '{"data": [{"probs": […]}]}',
                "pooling": '{"data": [{"data": […]}]}',
            }[self.settings.form]
            raise InputError(
                f"{self._name}: the server's answer is not {wanted}, but {shown(answer)}: correct "
                f"the address, or {self.field}.form = {self.settings.form!r}."
            ) from None

    def _output(self, values: Any) -> object:
        """The reward among the outputs of a classifier: of the last token, if it gives several."""
        if values and isinstance(values[-1], list):
            values = values[-1]
        if self.settings.label is None and len(values) != 1:
            raise InputError(
                f"{self._name}: the model there has {len(values)} outputs: set {self.field}.label "
                f"to the one that is the reward, 0 to {len(values) - 1}."
            )
        label = self.settings.label or 0
        if label >= len(values):
            raise InputError(
                f"{self.field}.label = {label}, but the model at {self.settings.url!r} has "
                f"{len(values)} outputs: 0 to {len(values) - 1}."
            )
        return _number(values[label])


def _number(value: object) -> object:
    """JSON has no NaN: servers write null, or a word."""
    if value is None or (isinstance(value, str) and value.strip().lower() in ("nan", "null")):
        return math.nan
    return value
