"""What runs are called in MLflow and Prefect: by what they are, and by what changed.

And which numbers of the stages become metrics there, each under one name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from flows.project.dependencies import CODE
from flows.project.versions import COMPARISON, RUN, Plan
from infalign.files.names import HEADLINE
from infalign.files.stages import STAGES, stage_of
from infalign.files.workspace import lookup
from infalign.settings.params import Params
from infalign.theory.procedures import parse_procedure

POLICIES = ("align", "contend", "hack")  # stages whose instances are policies
CURVES = ("loss", "kl", "reward", "calibrated", "accuracy", "response_tokens")  # of a history
EVALUATED = (  # of a policy's evaluation, the headline first
    *HEADLINE,
    "win_rate_independent",
    "win_rate_gold",
    "phrase_share",
)
FINAL = {  # of a stage's metrics.json
    "sft": ("held_out_perplexity",),
    "sample": ("entropy_nats", "repeated_share"),
    "calibrate": ("uniformity_ks",),
}
_CHANGED = re.compile(r"(\S+) (?:modified|new|deleted)")
_HASHES = {f"{CODE}/{word}" for word in STAGES}  # of the code, in a project without it
_LONGEST = 100


def names_of(instance: str) -> dict[str, str]:
    """What an instance's name says: `contend@helpful-ctrl-0.5-0` is a variant, budget and seed."""
    names = instance.partition("@")[2].split("-")
    return dict(zip(("objective", "variant", "kl_nats", "seed"), filter(None, names), strict=False))


def about(instance: str, params: Params) -> dict[str, str]:
    """What a run is compared by: of a policy also its method, reward, budget and seed."""
    names = names_of(instance)
    word = instance.split("@")[0]
    if word not in POLICIES:
        return names
    objective, variant = names["objective"], names["variant"]
    budget = "" if params.align.beta is not None else f"{params.align.kl_nats:g}"
    own = {"kl_nats": budget, "seed": str(params.run.seed)}
    own |= {
        "reward": params.reward_spelling(objective, variant),
        "method": params.align.variants[variant].method,
        "procedure": str(parse_procedure(params.objectives[objective].procedure)),
    }
    return {key: value for key, value in (own | names).items() if value}


def run_name(instance: str, params: Params) -> str:
    """`helpful-ctrl kl 0.5 seed 0` for a policy, `calibrate helpful` for other stages."""
    word, own = instance.split("@")[0], about(instance, params)
    if word not in POLICIES:
        return " ".join((word, *own.values()))
    budget = f"kl {own['kl_nats']}" if "kl_nats" in own else f"beta {params.align.beta:g}"
    kind = "" if word == "align" else f"{word} "
    return f"{kind}{own['objective']}-{own['variant']} {budget} seed {own['seed']}"


def what_changed(
    plan: Plan, params: Params, settings: Mapping[str, Any], target: str = RUN, first: bool = False
) -> str:
    """A name for a whole run: what was set, or else what DVC found changed.

    Args:
        settings: what `--set` and a recipe wrote into params.yaml.
        first: nothing has been made yet.
    """
    if not plan.stale:
        words = ["no change"]
    elif settings:
        words = [f"{key} {value}" for key, value in settings.items()]
    elif first:
        words = ["first run"]
    else:
        own = [why for why in plan.stale.values() if not why.startswith("after ")]
        found = [name for why in own for name in _CHANGED.findall(why)]
        words = list(dict.fromkeys(_in_words(name, params) for name in found)) or ["changes"]
    text = ", ".join(words)
    text = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
    return f"compare: {text}" if target == COMPARISON else text


def _in_words(name: str, params: Params) -> str:
    """A changed thing: a setting with its value, the code, the data, or a result."""
    if name.endswith(".py") or name.startswith("infalign/") or name in _HASHES:
        return "code"
    if "/" not in name:
        try:
            value = lookup(params.model_dump(mode="json"), name)
        except (LookupError, TypeError):
            return name
        return f"{name} {value}" if not isinstance(value, dict) else name
    return "results" if name.startswith("results/") else name


def curve(name: str) -> str | None:
    """What a number of a history is called: `training/kl`; None where it is left out.

    Args:
        name: as followers give it, `selecting/loss` of a reward model.
    """
    return f"training/{name}" if name.rpartition("/")[2] in CURVES else None


def finals(instance: str, numbers: Mapping[str, Any]) -> list[tuple[str, float, int]]:
    """The few numbers of a stage's metrics.json that are metrics: name, value, step."""
    word = stage_of(instance).word
    if word in ("contend", "hack"):
        return evaluated(numbers)
    rows = [(key, float(numbers[key]), 0) for key in FINAL.get(word, ()) if key in numbers]
    if word == "calibrate":  # a curve: the step is the number of references
        errors = numbers.get("calibration_error", {})
        rows += [("calibration_error", float(error), int(many)) for many, error in errors.items()]
    if word == "reward":
        rows += [
            (f"accuracy/{judge}", float(found["accuracy"]), 0)
            for judge, found in numbers.items()
            if isinstance(found, dict) and "accuracy" in found
        ]
    return rows


def evaluated(numbers: Mapping[str, Any]) -> list[tuple[str, float, int]]:
    """What a policy's evaluation found, under the names that the table of runs shows."""
    found = ((key, numbers.get(key)) for key in EVALUATED)
    return [(key, float(value), 0) for key, value in found if isinstance(value, int | float)]


def policy_words(numbers: Mapping[str, Any], procedure: str) -> str:
    """A policy's headline in a sentence."""
    missing = [key for key in ("win_rate", "low", "high", "kl") if numbers.get(key) is None]
    if missing:
        return f"Evaluated under {procedure}."
    text = (
        f"Win rate over the reference under {procedure}: {numbers['win_rate']:.3f} "
        f"({numbers['low']:.3f} to {numbers['high']:.3f}) at {numbers['kl']:.2f} nats"
    )
    if numbers.get("limit") is None or numbers.get("efficiency") is None:
        return f"{text}."
    return f"{text}; limit {numbers['limit']:.3f}, efficiency {numbers['efficiency']:.2f}."
