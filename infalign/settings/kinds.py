"""Defaults that go by the kind of model: what teaches a new model destroys a trained one.

`scratch` is built here, `base` has learnt to go on with a text, `instruct` to answer behind a chat
template. The classes hold the defaults of `scratch`.
"""

from __future__ import annotations

from collections.abc import Mapping
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
# With align.lora_rank, for what was trained before.
ADAPTER: dict[str, float | None] = {"align.learning_rate": 1.0e-4}


def defaults(kind: str, adapter: bool) -> Mapping[str, float | None]:
    """The defaults of a kind by dotted key.

    Args:
        adapter: an adapter is trained, not all weights.
    """
    return DEFAULTS[kind] | (ADAPTER if adapter and kind != "scratch" else {})


def with_defaults(tree: dict[Any, Any]) -> dict[Any, Any]:
    """A tree of params.yaml with what its kind of model brings, where the tree says nothing.

    What is not sound stays as it is.
    """
    model, align = (tree.get(name, {}) for name in ("model", "align"))
    kind = model.get("kind") if isinstance(model, dict) else None
    if kind not in ("base", "instruct") or not isinstance(align, dict):
        return tree
    filled = dict(tree)
    for key, value in defaults(kind, align.get("lora_rank") is not None).items():
        name, last = key.split(".")
        section = filled.get(name, {})
        if isinstance(section, dict):
            filled[name] = {last: value} | section
    return filled


def fits(kind: str, found: str) -> bool:
    """Whether a model may be taken for a kind; base models with a chat template are not rare."""
    return kind == found or (kind, found) == ("base", "instruct")
