"""How a pipeline run ended, as a state of Prefect's: what the stages did, who was refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefect.states import Completed, State

REFUSED = "Refused"


def in_words(outcomes: Mapping[str, str]) -> str:
    """What the stages did."""
    words = list(outcomes.values())
    return ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))


def ending(done: Mapping[str, Any]) -> State:
    """Completed, since nothing failed; under another name where the gate refused a candidate.

    The message says every refusal first, with its rules, numbers and bounds, then who was promoted.

    Args:
        done: what the pipeline gives: `outcomes` of the stages and `decisions` of the gate.
    """
    decisions = sorted(done["decisions"], key=lambda decision: decision.outcome != "refused")
    refused = bool(decisions) and decisions[0].outcome == "refused"
    said = [decision.sentence() for decision in decisions]
    message = " ".join([*said, f"{in_words(done['outcomes'])}."])
    return Completed(name=REFUSED if refused else "Completed", message=message, data=dict(done))
