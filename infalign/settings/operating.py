"""The sections of params.yaml about what happens to finished policies: no stage reads them."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from infalign.settings.methods import MOST, Name, Positive, Rate, Section, Several, Share


class Promotion(Section):
    """Which version of a model becomes the champion; no stage reads this."""

    after_run: bool = Field(description="register, gate and promote when a pipeline run ends")
    approval: bool = Field(description="a pipeline run waits for a human before it promotes")
    approval_seconds: Positive = Field(description="how long it waits")
    variant: Name = Field(description="name in `run.variants` that is registered")
    win_rate: float = Field(
        ge=0, le=1, description="lower bound of the interval of the win rate over the reference"
    )
    champion_margin: float = Field(
        ge=0, le=1, description="win rate that may be lost against the champion, interval included"
    )
    kl_nats: Rate | None = Field(
        description="largest KL from the reference, nats a response; null: the policy's own budget "
        "and a tenth of it"
    )
    length_ratio: list[Rate] = Field(
        min_length=2,
        max_length=2,
        description="smallest and largest mean length as a share of the reference's",
    )
    truncated: float = Field(ge=0, le=1, description="largest share of responses that were cut")
    calibration_error: float = Field(
        ge=0, le=1, description="largest mean error of calibrated rewards at the K trained with"
    )
    judge_margin: float = Field(
        ge=0, le=1, description="win rate by the selecting reward above that by the judge, at most"
    )
    other_margin: float = Field(
        ge=0, le=1, description="win rate that may be lost to the reference on other objectives"
    )
    other_samples: Positive = Field(description="responses to each prompt of other objectives")
    bootstrap: int = Field(ge=100, le=MOST, description="replicates of the bootstrap over prompts")

    @model_validator(mode="after")
    def _ordered(self) -> Promotion:
        low, high = self.length_ratio
        if low >= high:
            raise ValueError("length_ratio must rise: smallest, then largest")
        return self


class Schedule(Section):
    """Scheduled runs: what happens to those that overlap, come late or fall silent."""

    overlap: Literal["skip", "wait"] = Field(
        description="a run that is due while another one has the workspace"
    )
    wait_minutes: Rate = Field(description="longest wait for the other run, minutes; then: skipped")
    missed: Literal["skip", "latest"] = Field(
        description="runs that were due while nothing served them: none, or the latest only"
    )
    late_minutes: Rate = Field(description="a run that begins so long after its time was missed")
    silent_minutes: float = Field(
        ge=1, description="a running flow without a heartbeat for so long is dead, minutes"
    )


class Drift(Section):
    """The check of a champion on fresh prompts."""

    prompts: Several = Field(description="fresh prompts an objective")
    samples: Several = Field(description="responses a prompt, of champion and reference")
    win_rate: Share = Field(description="loss of win rate that raises the alarm")
    reward_distance: Share = Field(
        description="Kolmogorov-Smirnov distance of the reference's rewards that raises the alarm"
    )
    p_value: Share = Field(description="an alarm's chance without any drift, at most")


class Serving(Section):
    """Bounds of the scoring server."""

    request_bytes: Positive = Field(description="longest request")
    prompts: Positive = Field(description="prompts a request")
    n: Positive = Field(description="largest N of a procedure: responses drawn for a prompt")
    new_tokens: Positive = Field(description="longest response, tokens")
    poll_seconds: Rate = Field(description="time between two looks at the alias")
    drain_seconds: Rate = Field(description="time that a replaced server has to finish its answers")
    request_seconds: Rate = Field(description="time that a request has to arrive whole")
    connections: Positive = Field(
        description="open at once; beyond, the slowest request makes room"
    )
    allowed_hosts: list[str] = Field(
        description="hosts by which it may be called, beside localhost and the address that it "
        "listens on: names or addresses without port, * for any characters"
    )

    @field_validator("allowed_hosts")
    @classmethod
    def _hosts(cls, hosts: list[str]) -> list[str]:
        for host in hosts:
            if not re.fullmatch(r"[\w.*-]+|[0-9a-fA-F:.]*::?[0-9a-fA-F:.]*", host):
                raise ValueError(f"{host!r} is no host: give it without scheme, port and brackets")
        return hosts
