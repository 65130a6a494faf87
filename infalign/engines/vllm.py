"""A model behind servers that speak vLLM's `/v1/completions`: token ids there, token ids back.

Every field of sampling is sent, because what is left out comes from the served model's own
generation_config. A request is one prompt with all of its responses: the i-th of them is drawn from
the request's seed plus i, in vLLM as here, so that a response depends on its stream, prompt and
index, and on nothing that it is drawn beside.
"""

from __future__ import annotations

import copy
import json
import queue
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

from infalign.engines.asking import Failed, Remedies, fetch, key_of, patiently, waits_within
from infalign.errors import InputError
from infalign.settings.reading import shown
from infalign.settings.servers import Generation


class Drawn(NamedTuple):
    """One response.

    Attributes:
        tokens: its ids, the one that ended it included.
        logp: log-probability of each, nats, without a temperature.
        finished: whether it ended by itself.
    """

    tokens: list[int]
    logp: list[float]
    finished: bool


class Wanted(NamedTuple):
    """How responses are drawn: no longer than `longest` tokens, to one of `ends`."""

    longest: int
    ends: tuple[int, ...]
    temperature: float = 1.0


class Engine:
    """A model by its name on servers, which share the work.

    Args:
        settings: where they are, and how patiently they are asked.
        urls: in place of those of the settings, where servers were started here.
        model: its name there.
        sleep: what waits between tries.
        section: of params.yaml that has `urls`.
    """

    def __init__(
        self,
        settings: Generation,
        urls: Sequence[str],
        model: str,
        sleep: Callable[[float], None] = time.sleep,
        section: str = "generation",
    ) -> None:
        self.model, self.section, self._settings, self._sleep = model, section, settings, sleep
        self._key = key_of(settings.api_key_variable, "generation.api_key_variable")
        self._remedies = Remedies(
            late="raise it, or lower generation.concurrency",
            missing=f"start it {self._how()}",
        )
        self.urls = self._serving(urls)

    def named(self, model: str) -> Engine:
        """Another model of the same servers."""
        other = copy.copy(self)
        other.model = model
        return other

    def _how(self) -> str:
        """How a server comes by the model's name, as the rest of a sentence."""
        named = f"with --served-model-name {self.model}"
        if self.section == "serving":
            return f"with the version's policy, and {named}"
        return f"with `infalign engine start --model {self.model}`, or name it there {named}"

    def _serving(self, urls: Sequence[str]) -> list[str]:
        """The servers that have the model; one sentence where there is none."""
        try:
            found = patiently(partial(self._look, urls), self._pauses(), self._sleep)
        except Failed as error:
            raise InputError(
                f"{self.section}.urls: no server has {self.model!r}: {error}."
            ) from None
        own = [url for url, names in found.items() if self.model in names]
        if own:
            return own
        there = "; ".join(f"{url} has {', '.join(names)}" for url, names in found.items())
        raise InputError(
            f"{self.section}.urls: no server has the model {self.model!r}: {there}: start one "
            f"{self._how()}."
        )

    def _look(self, urls: Sequence[str]) -> dict[str, list[str]]:
        """The names of models on every server; Failed where none has it and one did not answer."""
        found: dict[str, list[str]] = {}
        failed: list[Failed] = []
        for url in urls:
            try:
                answer = self._fetch(f"{url}/v1/models", None)
                found[url] = [str(row["id"]) for row in answer["data"]]
            except Failed as error:
                failed.append(Failed(f"{url} {error}", error.again))
            except (KeyError, TypeError):
                failed.append(Failed(f"{url} has no list of models at /v1/models", False))
        if failed and not any(self.model in names for names in found.values()):
            raise Failed("; ".join(map(str, failed)), any(error.again for error in failed))
        return found

    def draw(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], samples: int, wanted: Wanted
    ) -> list[Drawn]:
        """Responses to each prompt, prompt-major.

        Args:
            prompts: token ids.
            seeds: of each prompt's first response, as `randomness.engine_seed` makes them.
            samples: responses a prompt.
        """
        who = f"{self.section}.urls: the server of {self.model!r}"
        places: queue.SimpleQueue[str] = queue.SimpleQueue()
        for _ in range(self._settings.concurrency):
            for url in self.urls:
                places.put(url)

        def ask(prompt: Sequence[int], seed: int) -> list[Drawn]:
            body = json.dumps(self._body(prompt, seed, samples, wanted)).encode()
            answer = self._patiently(places, body)
            return _read(answer, samples, wanted, who)

        many = min(self._settings.concurrency * len(self.urls), max(1, len(prompts)))
        with ThreadPoolExecutor(many) as pool:
            try:
                return [one for drawn in pool.map(ask, prompts, seeds) for one in drawn]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def post(self, path: str, body: dict[str, Any]) -> None:
        """Tell every server something."""
        for url in self.urls:
            ask = partial(self._fetch, f"{url}{path}", json.dumps(body).encode(), False)
            try:
                patiently(ask, self._pauses(), self._sleep)
            except Failed as error:
                raise InputError(f"{self.section}.urls: {url}{path} {error}.") from None

    def _patiently(self, places: queue.SimpleQueue[str], body: bytes) -> Any:
        """The answer of whichever server has room, another one after a failure."""

        def ask() -> Any:
            url = places.get()
            try:
                return self._fetch(f"{url}/v1/completions", body)
            except Failed as error:
                raise Failed(f"{url} {error}", error.again) from None
            finally:
                places.put(url)

        try:
            return patiently(ask, self._pauses(), self._sleep)
        except Failed as error:
            raise InputError(f"{self.section}.urls: the server {error}.") from None

    def _pauses(self) -> Iterable[float]:
        return waits_within(self._settings.patience_seconds)

    def _fetch(self, url: str, body: bytes | None, reads: bool = True) -> Any:
        seconds = self._settings.timeout_seconds
        return fetch(
            url,
            body,
            timeout_seconds=seconds,
            key=self._key,
            remedies=self._remedies,
            reads=reads,
        )

    def _body(
        self, prompt: Sequence[int], seed: int, samples: int, wanted: Wanted
    ) -> dict[str, Any]:
        return {
            "model": self.model,
            "prompt": list(prompt),
            "n": samples,
            "seed": seed,
            "max_tokens": wanted.longest,
            "stop_token_ids": list(wanted.ends),
            "temperature": wanted.temperature,
            "top_p": 1.0,
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "min_tokens": 0,
            "ignore_eos": False,
            "stop": [],
            "logprobs": 0,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            "skip_special_tokens": False,
            "stream": False,
        }


def _read(answer: Any, samples: int, wanted: Wanted, who: str) -> list[Drawn]:
    """The responses of an answer, in the order of their indices; one sentence for any other."""
    try:
        choices = sorted(answer["choices"], key=lambda choice: int(choice["index"]))
        drawn = [
            Drawn(
                [int(token) for token in choice["token_ids"]],
                [float(value) for value in choice["logprobs"]["token_logprobs"]],
                choice["finish_reason"] == "stop",
            )
            for choice in choices
        ]
        if len(drawn) != samples or any(len(d.tokens) != len(d.logp) for d in drawn):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise InputError(
            f"{who} gave no {samples} choices with token_ids and token_logprobs of equal length, "
            f"but {shown(answer)}: it needs vLLM's return_token_ids and logprobs."
        ) from None
    for one in drawn:
        _check_end(one, wanted, who)
    return drawn


def _check_end(one: Drawn, wanted: Wanted, who: str) -> None:
    """Raise where a response ended otherwise than by one of its ends, or by being too long."""
    ended = bool(one.tokens) and one.tokens[-1] in wanted.ends
    if one.finished != ended or (not ended and len(one.tokens) != wanted.longest):
        raise InputError(
            f"{who} ended a response after {len(one.tokens)} tokens, neither by one of the tokens "
            f"{list(wanted.ends)} nor at {wanted.longest} tokens: start it with "
            "--generation-config vllm and a --max-model-len that holds prompt and response."
        )
