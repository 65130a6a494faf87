"""Rewards of a sequence classifier: one trained here, or anybody's, left as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from transformers import PreTrainedConfig, PreTrainedModel

from infalign.data.dialogue import Dialogue
from infalign.errors import InputError
from infalign.files.squares import Array
from infalign.lm.formats import Format
from infalign.lm.loading import load_config
from infalign.lm.memory import Budget
from infalign.lm.models import load_classifier, load_format, load_reward_model, pick_device
from infalign.lm.scoring.scorer import LAST, Output, score_responses
from infalign.processes.ranks import ALONE, Ranks, join
from infalign.rewards.source import as_rewards
from infalign.settings.params import Run


@dataclass(frozen=True)
class Passes:
    """How a model's passes are made.

    Attributes:
        batch_size: sequences side by side; None: all that are asked for.
        ranks: the processes that share the work.
    """

    batch_size: int | None = None
    budget: Budget = field(default_factory=Budget)
    ranks: Ranks = ALONE


def passes_of(run: Run, batch_size: int) -> Passes:
    """Passes as params.yaml asks for them, in the processes of this stage."""
    return Passes(batch_size, Budget(run.batch_tokens), join(run))


@dataclass(frozen=True)
class Classifier:
    """A source of rewards."""

    name: str
    model: PreTrainedModel
    form: Format
    output: Output
    passes: Passes

    def rewards(self, dialogues: Sequence[Dialogue], responses: Sequence[str]) -> Array:
        """As every source of rewards."""
        if not responses:
            return np.empty(0)
        found = score_responses(
            self.model,
            self.form,
            dialogues,
            responses,
            batch_size=self.passes.batch_size or len(responses),
            budget=self.passes.budget,
            ranks=self.passes.ranks,
            output=self.output,
        )
        return as_rewards(found, responses, f"reward model {self.name!r}")


def trained_classifier(folder: Path, device: str, precision: str, passes: Passes) -> Classifier:
    """A reward model that was trained here."""
    model = load_reward_model(folder, pick_device(device), precision)
    return Classifier(str(folder), model, load_format(folder), LAST, passes)


def ready_classifier(
    path: str | Path,
    revision: str | None,
    label: int | str | None,
    run: tuple[str, str],
    passes: Passes,
) -> Classifier:
    """A classifier as it is.

    Args:
        label: which of several outputs is the reward.
        run: the device and the precision of passes.
    """
    config = load_config(path, revision)
    output = Output(chosen_label(config, label, str(path)), config.get_text_config().pad_token_id)
    model = load_classifier(path, pick_device(run[0]), run[1], revision)
    return Classifier(str(path), model, load_format(path, revision), output, passes)


def chosen_label(config: PreTrainedConfig, label: int | str | None, name: str) -> int:
    """The number of the output that is the reward, or one sentence that lists them."""
    if not any("ForSequenceClassification" in kind for kind in config.architectures or ()):
        raise InputError(
            f"model {name!r} is no sequence classifier ({config.architectures or 'no model'}), and "
            "gives no reward as it is: name one, or set kind: train and reward.name_or_path."
        )
    labels = {int(number): str(word) for number, word in config.id2label.items()}
    listed = ", ".join(f"{number}: {word}" for number, word in sorted(labels.items()))
    if label is None and len(labels) == 1:
        return next(iter(labels))
    found = [number for number, word in labels.items() if label in (number, word)]
    if len(found) != 1:
        given = "no label is chosen" if label is None else f"label = {label!r} is none of them"
        raise InputError(
            f"model {name!r} has {len(labels)} outputs, and {given}: set label to the one that is "
            f"the reward, by its number or name ({listed})."
        )
    return found[0]
