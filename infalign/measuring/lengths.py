"""How long prompts and responses are in a model's tokens."""

from __future__ import annotations

from collections.abc import Callable

from infalign.data.shown import Measure
from infalign.lm.models import named_format
from infalign.settings.params import Model


def token_lengths(model: str) -> Measure:
    """The unit, and what counts it; a prompt is rendered as the model is asked."""
    form = named_format(Model(name_or_path=model))

    def counted(encode: Callable[..., list[list[int]]]) -> Callable[..., list[int]]:
        return lambda texts: [len(ids) for ids in encode(texts)]

    return "tokens", counted(form.encode_prompts), counted(form.encode_responses)
