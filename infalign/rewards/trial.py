"""Functions and servers tried on two small dialogues, before anything is made. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from infalign.data.dialogue import Dialogue
from infalign.rewards.function import Columns, load_function
from infalign.rewards.server import Server
from infalign.settings.params import Params
from infalign.settings.rewards import FunctionReward, ServerReward, named_leaves

ASKED = (
    Dialogue.of([("user", "Which colour has the sky?")]),
    Dialogue.of([("user", "Hello!"), ("assistant", "Good day."), ("user", "And the sea?")]),
)
SAID = ("Blue, mostly.", "That depends on the sky.")


def try_sources(params: Params, root: Path, known: Mapping[str, Columns] | None = None) -> None:
    """Raise for a function that cannot be called, and for a server that does not answer.

    Args:
        known: by objective: some prompts of the data with their columns, for functions that need
            them; without, these are looked at and not called.
    """
    for name, field, settings in named_leaves(params.running):
        if isinstance(settings, FunctionReward):
            columns = (known or {}).get(name, {})
            function = load_function(root / settings.file, settings.name, columns=columns)
            asked = list(columns)[: len(SAID)] or list(ASKED)
            if columns or not function.needed:
                function.rewards(asked, list(SAID)[: len(asked)])
        elif isinstance(settings, ServerReward):
            once = settings.model_copy(update={"retries": 0})
            Server(once, field).rewards(ASKED, SAID)
