"""A policy as it is deployed: draw N responses, keep one by the procedure, say what it is worth.

Reads one folder (`package.py` writes it): `policy/`, `reward/`, `reward.json`, `settings.json` and
`references.parquet`. The same prompt, settings and seed give the same bytes, whatever else is in
the request: every prompt is decoded on its own, and every token follows from a counter. A server
may draw what several threads ask for side by side (`together`): the tokens still follow from the
same counters, but sums are rounded in another order. Servers of vLLM may draw in place of the
built-in sampler (`served.py`): they put together themselves what many ask for.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import torch

from infalign.data.dialogue import Dialogue, read_marked
from infalign.data.framing import asked
from infalign.deployment.together import Together
from infalign.engines.samplers import BuiltIn, Sampler
from infalign.errors import InputError
from infalign.files.tables import Table, read_table
from infalign.files.weights import PICKLES
from infalign.lm.formats import Format
from infalign.lm.memory import Budget
from infalign.lm.models import load_format, load_policy, pick_device
from infalign.lm.sampling.randomness import derive_seed
from infalign.lm.sampling.sampler import Responses
from infalign.rewards.classifier import Passes
from infalign.rewards.packaged import classifiers, open_packaged
from infalign.rewards.source import RewardSource
from infalign.theory.calibration import calibrate
from infalign.theory.procedures import Procedure, best_of, parse_procedure, worst_of

Prompt: TypeAlias = "str | Sequence[Mapping[str, str]]"  # a text, or messages
MOST_PROMPTS = 64  # in a request
MOST_CHARACTERS = 20_000  # in a prompt, looked at before it is tokenised
MOST_RESPONSES = 4096  # in a request: prompts times N
TEMPERATURES = (0.01, 10.0)
_NEEDED = ("objective", "procedure", "prompt_tokens", "response_tokens")
_DEFAULTS = {
    "threads": 1,
    "device": "auto",
    "precision": "float32",
    "temperature": 1.0,
}  # of older packages
REFERENCES = Table(
    "references",
    pa.schema(
        [
            pa.field("dialogue", pa.string(), nullable=False),
            pa.field("rewards", pa.list_(pa.float64()), nullable=False),
        ]
    ),
    ("dialogue",),
    {"rewards": (-math.inf, math.inf)},
    former={"prompt": "dialogue"},
)


class NotDrawn(RuntimeError):
    """A sound request could not be answered: its reward failed, say."""


@dataclass(frozen=True)
class Request:
    """How to answer.

    Attributes:
        procedure: a spelling such as `best_of:4`.
        n: responses drawn, in place of the N of best-of or worst-of; 0 leaves it.
        max_new_tokens: of a response, EOS included; 0 is as long as the policy was trained for.
        temperature: of sampling; None: as it is deployed.
        seed: of the stream of random numbers.
    """

    procedure: str
    n: int = 0
    max_new_tokens: int = 0
    temperature: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class Answer:
    """The kept response, its reward, and the share of the reference's responses it beats.

    `calibrated` is None where the prompt has no reference responses.
    """

    response: str
    reward: float
    calibrated: float | None


@dataclass(frozen=True)
class Drawn:
    """All that was drawn for a prompt.

    Attributes:
        dialogue: the prompt.
        prompt_tokens: its length as the policy reads it.
        procedure: which draws N and keeps one.
        temperature: of the draws.
        responses: N texts.
        n_tokens: their lengths, the end included [N].
        finished: which ended by themselves [N].
        rewards: by the selecting reward [N].
        kept: which one the procedure keeps.
        calibrated: the share of the reference's responses that it beats; None without references.
    """

    dialogue: Dialogue
    prompt_tokens: int
    procedure: Procedure
    temperature: float
    responses: list[str]
    n_tokens: np.ndarray
    finished: np.ndarray
    rewards: np.ndarray
    kept: int
    calibrated: float | None

    @property
    def answer(self) -> Answer:
        """What is said of it."""
        return Answer(self.responses[self.kept], float(self.rewards[self.kept]), self.calibrated)


@dataclass(frozen=True)
class _Ask:
    """One prompt, how to answer it, and what was drawn for it already."""

    dialogue: Dialogue
    tokens: int
    procedure: Procedure
    temperature: float
    request: Request
    drawn: Responses | None = None

    @property
    def seed(self) -> int:
        """Of its stream."""
        return derive_seed(self.request.seed, "deployed")


@dataclass(frozen=True)
class Deployed:
    """A policy with the reward that its procedure selects by.

    Attributes:
        objective: what it was aligned for.
        procedure: the objective's own, used where a request names none.
        temperature: alike.
        prompt_tokens, response_tokens: the lengths that it was trained and evaluated with.
        folder: the policy's.
        sampler: draws from it.
        references: dialogue to the reference's rewards.
        together: responses drawn and scored side by side for several threads or prompts, at most;
            1: every prompt is drawn for alone.
    """

    objective: str
    procedure: str
    temperature: float
    prompt_tokens: int
    response_tokens: int
    folder: Path
    sampler: Sampler
    form: Format
    reward: RewardSource
    references: Mapping[Dialogue, Sequence[float]]
    together: int = 1
    _turns: Together[_Ask, Drawn] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        turns = Together(self._work, lambda ask: ask.procedure.n, self.together)
        object.__setattr__(self, "_turns", turns)

    def answer(self, prompts: Sequence[Prompt], request: Request) -> list[Answer]:
        """One answer a prompt; InputError, one sentence, for what is out of bounds.

        Args:
            prompts: texts, or messages as chat templates take them.
        """
        return [drawn.answer for drawn in self.draw(prompts, [request] * len(prompts))]

    def draw(self, prompts: Sequence[Prompt], requests: Sequence[Request]) -> list[Drawn]:
        """What is drawn for each prompt; bounds and errors as `answer`.

        Args:
            requests: one a prompt, which may differ in all they say.
        """
        _check_count("prompts", len(prompts), 1, MOST_PROMPTS, "send several requests")
        checked = {request: self._checked(request) for request in requests}
        total = sum(checked[request][0].n for request in requests)
        _check_count("prompts times n", total, 1, MOST_RESPONSES, "send several requests")
        asks = []
        for position, (prompt, request) in enumerate(zip(prompts, requests, strict=True)):
            dialogue, tokens = self._read(position, prompt)
            asks.append(_Ask(dialogue, tokens, *checked[request]))
        try:
            return self._turns.ask(self._drawn(asks) if self.sampler.at_once else asks)
        except InputError as error:  # what was asked is checked: it is not the caller's
            raise NotDrawn(str(error)) from error

    def _checked(self, request: Request) -> tuple[Procedure, float, Request]:
        """Procedure, temperature, and the request with its length filled in, or one sentence."""
        procedure = chosen_procedure(request.procedure or self.procedure, request.n)
        longest = request.max_new_tokens or self.response_tokens
        _check_count("max_new_tokens", longest, 1, self.response_tokens, "ask for fewer")
        low, high = TEMPERATURES
        temperature = self.temperature if request.temperature is None else request.temperature
        if not low <= temperature <= high:
            raise InputError(
                f"temperature is {temperature:g}, but must lie between {low:g} and {high:g}: 1 is "
                "what win rates are measured at."
            )
        if not 0 <= request.seed < 2**63:
            raise InputError(f"seed is {request.seed}, but must lie between 0 and 2^63 - 1.")
        return procedure, temperature, replace(request, max_new_tokens=longest)

    def _read(self, position: int, prompt: Prompt) -> tuple[Dialogue, int]:
        """A prompt's dialogue and its length, tokens, or one sentence."""
        try:
            dialogue = asked(prompt)
        except ValueError as error:
            raise InputError(f"prompt {position} {error}.") from None
        characters = sum(len(turn.content) for turn in dialogue.turns)
        if characters > MOST_CHARACTERS:
            raise InputError(
                f"prompt {position} has {characters} characters, at most {MOST_CHARACTERS} are "
                "taken: leave out its first turns."
            )
        tokens = len(self.form.encode_prompts([dialogue])[0])
        if tokens > self.prompt_tokens:
            raise InputError(
                f"prompt {position} has {tokens} tokens, the policy was trained for at most "
                f"{self.prompt_tokens}: leave out its first turns."
            )
        return dialogue, tokens

    def _work(self, asks: list[_Ask]) -> list[Drawn]:
        """Draw for some prompts, unless servers have, and keep by their procedures."""
        asks = asks if self.sampler.at_once else self._drawn(asks)
        each = [ask.dialogue for ask in asks for _ in range(ask.procedure.n)]
        texts = [text for ask in asks for text in _responses(ask).text]
        ends = np.cumsum([ask.procedure.n for ask in asks])
        rewards = np.split(self.reward.rewards(each, texts), ends[:-1])
        return [self._kept(*pair) for pair in zip(asks, rewards, strict=True)]

    def _drawn(self, asks: Sequence[_Ask]) -> list[_Ask]:
        """Draw for some prompts, those side by side that want as many responses of one kind."""
        alike: dict[tuple[int, int, float], list[int]] = {}
        for place, ask in enumerate(asks):
            key = (ask.procedure.n, ask.request.max_new_tokens, ask.temperature)
            alike.setdefault(key, []).append(place)
        found: dict[int, _Ask] = {}
        for (n, longest, temperature), places in alike.items():
            drawn = self.sampler.draw(
                [asks[place].dialogue for place in places],
                [asks[place].dialogue.id for place in places],
                np.tile(np.arange(n), (len(places), 1)),
                seed=[asks[place].seed for place in places],
                longest=longest,
                temperature=temperature,
            )
            for row, place in enumerate(places):
                found[place] = replace(asks[place], drawn=drawn.of_prompt(row, n))
        return [found[place] for place in range(len(asks))]

    def _kept(self, ask: _Ask, rewards: np.ndarray) -> Drawn:
        """One prompt's responses, and which of them the procedure keeps."""
        uniform = np.random.default_rng(derive_seed(ask.seed, "keep", ask.dialogue.id)).random(2)
        kept, drawn = keep(ask.procedure, rewards, *uniform), _responses(ask)
        reference = self.references.get(ask.dialogue)
        calibrated = None
        if reference is not None:
            calibrated = float(calibrate(rewards[None, kept : kept + 1], [reference])[0, 0])
        return Drawn(
            ask.dialogue,
            ask.tokens,
            ask.procedure,
            ask.temperature,
            drawn.text,
            drawn.n_tokens,
            drawn.finished,
            rewards,
            kept,
            calibrated,
        )


def _responses(ask: _Ask) -> Responses:
    assert ask.drawn is not None
    return ask.drawn


def reference_prompt(text: str) -> Dialogue:
    """A prompt with references; older packages hold it as a text with markers."""
    return read_marked(text) or Dialogue.parse(text)


def _check_count(name: str, value: int, low: int, high: int, remedy: str) -> None:
    if not low <= value <= high:
        raise InputError(f"{name}: {value}, but must lie between {low} and {high}: {remedy}.")


def chosen_procedure(spelling: str, n: int) -> Procedure:
    """The procedure with N in place of its own, or one sentence."""
    try:
        procedure = parse_procedure(spelling)
        kind = procedure.name.partition(":")[0]
        if n == 0 or n == procedure.n:
            return procedure
        if kind == "best_of" and n > 0:
            return best_of(n)
        if kind == "worst_of" and n > 0:
            return worst_of(n)
    except ValueError as error:
        raise InputError(str(error)) from None
    if n < 0:
        raise InputError(f"n is {n}, but must be positive, or 0 for the procedure's own.")
    raise InputError(
        f"n is {n}, but procedure {procedure} draws {procedure.n}: leave n out, or choose best_of "
        "or worst_of."
    )


def keep(procedure: Procedure, rewards: np.ndarray, member: float, rank: float) -> int:
    """Which response is kept; equal rewards rank by their order.

    Args:
        procedure: with N responses, or a mixture of such.
        rewards: [N].
        member, rank: uniforms in [0, 1) that choose a member of a mixture, and a rank.
    """
    shares = np.cumsum([share for share, _ in procedure.parts])
    part = procedure.parts[min(int(np.searchsorted(shares, member, "right")), len(shares) - 1)][1]
    drawn = rewards[: part.n]
    weights = np.cumsum(part.weights)
    position = int(np.searchsorted(weights, rank * weights[-1], "right"))
    return int(np.argsort(drawn, kind="stable")[position])


def check_safetensors(folder: Path) -> None:
    """Raise for a model's folder whose weights are not safetensors alone."""
    found = [f.name for f in folder.glob("*") if f.suffix in PICKLES]
    if found or not list(folder.glob("*.safetensors")):
        raise InputError(
            f"{folder} must hold its weights as safetensors"
            + (f", and not {found[0]}, which may run code when it is read." if found else ".")
        )


def _read_settings(folder: Path) -> dict[str, Any]:
    """settings.json, with the defaults of what an older package does not say."""
    try:
        settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} holds no packaged policy: {error}.") from None
    settings = _DEFAULTS | settings if isinstance(settings, dict) else {}
    if missing := [name for name in _NEEDED if name not in settings]:
        raise InputError(
            f"{folder / 'settings.json'} does not say {missing[0]}: register the policy again."
        )
    return settings


def load_deployed(folder: Path, threads: int | None = None) -> Deployed:
    """Read a packaged policy; safetensors only, no remote code.

    Args:
        folder: what `infalign.deployment.package` wrote.
        threads: CPU threads of this process; None takes those that it was evaluated with, because
            their number changes rounding, and so bytes.
    """
    settings = _read_settings(folder)
    for inside in (folder / "policy", *classifiers(folder)):
        check_safetensors(inside)
    torch.set_num_threads(threads or settings["threads"])
    device = pick_device(settings["device"])
    precision = settings["precision"]
    table = read_table(folder / "references.parquet", REFERENCES)
    prompts = map(reference_prompt, table["dialogue"].to_pylist())
    references = dict(zip(prompts, table["rewards"].to_pylist(), strict=True))
    form, limits = load_format(folder / "policy"), (MOST_RESPONSES, Budget())
    return Deployed(
        settings["objective"],
        settings["procedure"],
        settings["temperature"],
        settings["prompt_tokens"],
        settings["response_tokens"],
        folder / "policy",
        BuiltIn(load_policy(folder / "policy", device, precision, frozen=True), form, *limits),
        form,
        open_packaged(folder, settings["device"], precision, Passes()),
        references,
    )
