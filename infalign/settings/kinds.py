"""Defaults that go by the kind of model: what teaches a new model destroys a trained one.

`scratch` is built here, `base` has learnt to go on with a text, `instruct` to answer behind a chat
template. The classes hold the defaults of `scratch`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

# None: lengths that follow the data.
DEFAULTS: dict[str, dict[str, float | None]] = {
    "scratch": {
        "model.prompt_tokens": 28,
        "model.response_tokens": 20,
        "sft.epochs": 0.45,
        "sft.learning_rate": 1.2e-2,
        "reward.learning_rate": 2.0e-3,
        "align.learning_rate": 1.0e-3,
    },
    "base": {
        "model.prompt_tokens": None,
        "model.response_tokens": None,
        "sft.epochs": 1.0,
        "sft.learning_rate": 1.0e-5,
        "reward.learning_rate": 1.0e-5,
        "align.learning_rate": 1.0e-5,
    },
}
DEFAULTS["instruct"] = DEFAULTS["base"] | {"sft.epochs": 0.0}
TRAIN = ("sft", "reward", "align")
ADAPTER_RATE = 1.0e-4  # of what was trained before


def adapted(tree: Mapping[Any, Any]) -> frozenset[str]:
    """The sections of a tree of params.yaml that train an adapter, not all weights."""
    sections = {name: tree.get(name) for name in TRAIN}
    return frozenset(
        name
        for name, section in sections.items()
        if isinstance(section, Mapping) and section.get("lora_rank") is not None
    )


def defaults(kind: str, adapters: Collection[str] = ()) -> Mapping[str, float | None]:
    """The defaults of a kind by dotted key.

    Args:
        adapters: the sections that train an adapter.
    """
    rates = {} if kind == "scratch" else {f"{s}.learning_rate": ADAPTER_RATE for s in adapters}
    return DEFAULTS[kind] | rates


def with_defaults(tree: dict[Any, Any]) -> dict[Any, Any]:
    """A tree of params.yaml with what its kind of model brings, where the tree says nothing.

    What is not sound stays as it is.
    """
    model = tree.get("model", {})
    kind = model.get("kind") if isinstance(model, dict) else None
    if kind not in ("base", "instruct"):
        return tree
    filled = dict(tree)
    for key, value in defaults(kind, adapted(tree)).items():
        name, last = key.split(".")
        section = filled.get(name, {})
        if isinstance(section, dict):
            filled[name] = {last: value} | section
    return filled


def with_poisoned(tree: dict[Any, Any]) -> dict[Any, Any]:
    """A tree of params.yaml that says which of the compared objectives are poisoned.

    Where it does not, those whose reward is trained. What is not sound stays as it is.
    """
    compare, objectives = tree.get("compare"), tree.get("objectives")
    if not isinstance(compare, dict) or not isinstance(objectives, dict):
        return tree
    poison, compared = compare.get("poison", {}), compare.get("objectives")
    if not isinstance(poison, dict) or "objectives" in poison or not isinstance(compared, list):
        return tree
    trained = [name for name in compared if _is_trained(objectives.get(name))]
    return tree | {"compare": compare | {"poison": poison | {"objectives": trained}}}


def _is_trained(objective: Any) -> bool:
    reward = objective.get("reward", {}) if isinstance(objective, dict) else None
    return isinstance(reward, dict) and reward.get("kind", "train") == "train"


def fits(kind: str, found: str) -> bool:
    """Whether a model may be taken for a kind; base models with a chat template are not rare."""
    return kind == found or (kind, found) == ("base", "instruct")
