"""The sections of params.yaml about what happens to finished policies.

No stage reads them, but for the report, which says what the gate will by the bounds in `promotion`.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from infalign.settings.methods import MOST, Name, Positive, Rate, Section, Several, Share
from infalign.settings.rewards import FunctionReward
from infalign.settings.servers import Addresses


class Suite(Section):
    """A rule over pinned prompts: those of `data.suites` by the same name, which train nobody."""

    rule: Literal["win_rate", "mean", "share"] = Field(
        description="win_rate over the reference, by the judge; mean of the reward; share above"
    )
    objective: Name | None = Field(default=None, description="whose candidates; null: all")
    reward: FunctionReward | None = Field(
        default=None,
        description="the function whose mean or share it is; null: the selecting reward",
    )
    above: float | None = Field(default=None, description="of `share`: the reward to be above")
    at_least: float | None = Field(default=None, description="bound, where more is better")
    at_most: float | None = Field(default=None, description="bound, where less is better")
    margin: float | None = Field(
        default=None, ge=0, description="what may be lost against the champion; null: not compared"
    )

    @model_validator(mode="after")
    def _whole(self) -> Suite:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("give at_least or at_most: which of them says what is better")
        if (self.rule == "share") != (self.above is not None):
            raise ValueError("above belongs to rule: share, which needs it")
        if self.rule == "win_rate" and (self.reward or self.at_most is not None):
            raise ValueError("rule: win_rate goes by the judge, and has at_least alone")
        return self


class Promotion(Section):
    """Which version of a model becomes the champion; the report alone reads its bounds."""

    after_run: bool = Field(
        default=False, description="register, gate and promote when a pipeline run ends"
    )
    approval: bool = Field(
        default=False, description="a pipeline run waits for a human before it promotes"
    )
    approval_seconds: Positive = Field(default=86400, description="how long it waits")
    variant: Name = Field(default="ctrl", description="name in `run.variants` that is registered")
    temperature: float = Field(
        default=1.0,
        ge=0.01,
        le=10,
        description="of sampling where it is deployed, and so in arena and suites; a run measures "
        "win rates and KL at 1",
    )
    win_rate: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="lower bound of the interval of the win rate over the reference",
    )
    champion_margin: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="win rate below one half that may be lost against the champion, bound included",
    )
    looks: Positive = Field(
        default=365, description="candidates, one after the other, that the level is shared out to"
    )
    looks_level: Share = Field(
        default=0.05,
        description="chance that a candidate worse by the margin is ever promoted in so many looks",
    )
    arena_prompts: Several = Field(
        default=256, description="evaluation prompts on which candidate and champion meet, at most"
    )
    arena_samples: Several = Field(
        default=16, description="responses of each to a prompt; more where procedures need more"
    )
    kl_nats: Rate | None = Field(
        default=None,
        description="largest KL from the reference, nats a response; null: the policy's own budget "
        "and a tenth of it",
    )
    length_ratio: list[Rate] = Field(
        default=[0.8, 1.25],
        min_length=2,
        max_length=2,
        description="smallest and largest mean length as a share of the reference's",
    )
    truncated: float = Field(
        default=0.05, ge=0, le=1, description="largest share of responses that were cut"
    )
    calibration_error: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="largest mean error of calibrated rewards at the K trained with",
    )
    judge_margin: float = Field(
        default=0.15,
        ge=0,
        le=1,
        description="win rate by the selecting reward above that by the judge, at most",
    )
    other_margin: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="win rate that may be lost to the reference on other objectives",
    )
    other_samples: Positive = Field(
        default=8, description="responses to each prompt of other objectives"
    )
    bootstrap: int = Field(
        default=1000, ge=100, le=MOST, description="replicates of the bootstrap over prompts"
    )
    suites: dict[Name, Suite] = Field(
        default={}, description="rules over pinned prompts, by their names in data.suites"
    )

    def suites_of(self, objective: str) -> dict[str, Suite]:
        """The suites that an objective's candidates have to pass."""
        return {
            name: suite
            for name, suite in self.suites.items()
            if suite.objective in (None, objective)
        }

    @model_validator(mode="after")
    def _ordered(self) -> Promotion:
        low, high = self.length_ratio
        if low >= high:
            raise ValueError("length_ratio must rise: smallest, then largest")
        return self


class Intake(Section):
    """Data that comes in: what is added, and what a night asks of it before it trains."""

    contrary: Literal["keep", "drop"] = Field(
        default="keep", description="added pairs that an old one says the opposite of"
    )
    dropped_share: Share | None = Field(
        default=0.3, description="rows that cannot be used (ties can), of all, at most; null: any"
    )
    size: list[Rate] | None = Field(
        default=[0.8, 5.0],
        min_length=2,
        max_length=2,
        description="smallest and largest number of pairs or prompts, over the last version's",
    )
    agreement_loss: Share | None = Field(
        default=0.1,
        description="how much more seldom the present reward model agrees with new pairs than "
        "with held-out ones, at most, beyond chance",
    )
    length_shift: Share | None = Field(
        default=0.3,
        description="Kolmogorov-Smirnov distance of new responses' lengths from old ones', at most",
    )
    language_shift: Share | None = Field(
        default=0.2,
        description="distance of new responses' letters from old ones' beyond chance, at most",
    )
    agreement_pairs: Positive = Field(
        default=512, description="new pairs that the reward model is asked about, at most"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Intake:
        if self.size is not None and self.size[0] >= self.size[1]:
            raise ValueError("size must rise: smallest, then largest")
        return self


class Schedule(Section):
    """Scheduled runs: what happens to those that overlap, come late or fall silent."""

    overlap: Literal["skip", "wait"] = Field(
        default="wait", description="a run that is due while another one has the workspace"
    )
    wait_minutes: Rate = Field(
        default=240.0, description="longest wait for the other run, minutes; then: skipped"
    )
    missed: Literal["skip", "latest"] = Field(
        default="latest",
        description="runs that were due while nothing served them: none, or the latest only",
    )
    late_minutes: Rate = Field(
        default=60.0, description="a run that begins so long after its time was missed"
    )
    silent_minutes: float = Field(
        default=3.0,
        ge=1,
        description="a running flow without a heartbeat for so long is dead, minutes",
    )
    source: str | None = Field(
        default=None,
        description="folder, file or OWNER/NAME of the hub in which a night looks for new data",
    )
    into: Name | None = Field(
        default=None, description="folder of data/raw to which a night adds what is new there"
    )
    branch: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")] | None = Field(
        default="nights", description="git branch that gets one commit a night; null: none"
    )
    push: bool = Field(
        default=False, description="push a night's results to DVC's remote and its commit to git's"
    )
    notify: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = Field(
        default=None,
        description="environment variable that holds the address of a webhook, which is told of "
        "refusals, breaches, drift and failures",
    )

    @model_validator(mode="after")
    def _whole(self) -> Schedule:
        if (self.source is None) != (self.into is None):
            raise ValueError("source and into go together: give both, or neither")
        if self.push and self.branch is None:
            raise ValueError("push needs a branch")
        return self


class Drift(Section):
    """The check of a champion on fresh, logged or pinned prompts."""

    prompts: Several = Field(default=64, description="fresh or logged prompts an objective")
    samples: Several = Field(
        default=16, description="responses a prompt, of champion and reference"
    )
    win_rate: Share = Field(default=0.05, description="loss of win rate that raises the alarm")
    reward_distance: Share = Field(
        default=0.2,
        description="Kolmogorov-Smirnov distance of the reference's or the policy's rewards that "
        "raises the alarm",
    )
    length_distance: Share = Field(
        default=0.2,
        description="Kolmogorov-Smirnov distance of the prompts' lengths that raises the alarm",
    )
    hidden_distance: Share = Field(
        default=0.05,
        description="energy distance of the reward model's hidden means, 0 to 1, that raises the "
        "alarm",
    )
    novel_share: Share = Field(
        default=0.1,
        description="rise of the share of prompts unlike any in training that raises the alarm",
    )
    p_value: Share = Field(
        default=0.05,
        description="chance of any alarm without drift in all looks together, at most",
    )
    looks: Positive = Field(
        default=365, description="checks of an objective that the chance is shared out to"
    )
    logs: dict[Name, str] = Field(
        default={}, description="folder of `infalign serve --log`, by objective"
    )
    log_days: Rate = Field(default=7.0, description="age of logged prompts, at most, days")


class Serving(Section):
    """The scoring server: its bounds, and who draws."""

    engine: Literal["builtin", "vllm"] = Field(
        default="builtin",
        description="who draws the responses: builtin: the process that serves; vllm: servers of "
        "vLLM, as `generation` starts or asks them",
    )
    urls: Addresses = Field(
        default=[],
        description="of servers of vLLM that have the version by its name, as infalign-helpful/3; "
        "empty: one is started for each version, on this machine",
    )
    request_bytes: Positive = Field(default=65536, description="longest request")
    prompts: Positive = Field(default=16, description="prompts a request")
    n: Positive = Field(
        default=64, description="largest N of a procedure: responses drawn for a prompt"
    )
    new_tokens: Positive = Field(default=256, description="longest response, tokens")
    poll_seconds: Rate = Field(default=1.0, description="time between two looks at the alias")
    drain_seconds: Rate = Field(
        default=60.0, description="time that a replaced server has to finish its answers"
    )
    request_seconds: Rate = Field(
        default=20.0, description="time that a request has to arrive whole"
    )
    connections: Positive = Field(
        default=256, description="open at once; beyond, the slowest request makes room"
    )
    waiting: Positive = Field(
        default=64, description="prompts that wait or are answered, at most; beyond, 429"
    )
    side_by_side: Positive = Field(
        default=256,
        description="responses drawn side by side for all who wait; 1: each prompt alone, the same "
        "bytes in any company",
    )
    keep_former: bool = Field(
        default=True,
        description="keep the former version's server loaded, so that a rollback is at once",
    )
    log_share: float = Field(
        default=1.0, ge=0, le=1, description="share of the answers that --log writes"
    )
    log_rows: Positive = Field(default=1000, description="rows of one file of the log")
    log_bytes: Positive = Field(
        default=1_000_000_000, description="of the log in all; beyond, the oldest files go"
    )
    redact: str | None = Field(
        default=None,
        description="file.py:function, text -> text: what may be written of a text",
    )
    allowed_hosts: list[str] = Field(
        default=[],
        description="hosts by which it may be called, beside localhost and the address that it "
        "listens on: names or addresses without port, * for any characters",
    )

    @field_validator("allowed_hosts")
    @classmethod
    def _hosts(cls, hosts: list[str]) -> list[str]:
        for host in hosts:
            if not re.fullmatch(r"[\w.*-]+|[0-9a-fA-F:.]*::?[0-9a-fA-F:.]*", host):
                raise ValueError(f"{host!r} is no host: give it without scheme, port and brackets")
        return hosts
