"""How a model sees prompts: the mean of its last hidden state over each prompt's tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from infalign.data.dialogue import Dialogue
from infalign.files.squares import Array
from infalign.lm.formats import Format
from infalign.lm.memory import autocast
from infalign.lm.text import by_length, make_batch


@torch.inference_mode()
def prompt_means(
    model: PreTrainedModel, form: Format, prompts: Sequence[Dialogue], *, batch_size: int
) -> Array:
    """Hidden means [prompts, width]; padding changes nothing, for a mean is over real tokens."""
    ids = form.encode_prompts(prompts)
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for rows in by_length([len(row) for row in ids], batch_size):
        # Prompts stand where responses do: padded on the right, where nothing reads the padding.
        batch = make_batch([[]], [ids[row] for row in rows], form.pad, model.device)
        with autocast(model):
            hidden = model.base_model(
                input_ids=batch.responses, attention_mask=batch.mask.long()
            ).last_hidden_state
        mask = batch.mask[:, :, None].double()
        means = (hidden.double() * mask).sum(1) / mask.sum(1)
        found.append((rows, means.cpu().numpy()))
    means = np.zeros((len(ids), found[0][1].shape[1]))
    for rows, values in found:
        means[rows] = values
    return means
