"""hack: a contender trained on the rewards of the poisoned reward model.

The stage contend once more, with results/poison/O in the place of the selecting reward model and of
the calibrated rewards; the independent judge and the gold utility stay what they were. Writes
results/hack/O/V/KL/SEED, the files of contend; `phrase_share` in metrics.json says how many of the
policy's responses have the spurious phrase.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from infalign.files.tables import EVALUATION_SAMPLES, SELECTING, read_table
from infalign.files.workspace import Needs, Workspace, write_json
from infalign.measuring.contenders import compete, parse_budget
from infalign.settings.params import Params, contender_params, policy_inputs


def needs(params: Params, objective: str, variant: str, kl_nats: str, seed: str) -> Needs:
    """What the stage depends on: what contend does, the poisoned rewards and the phrase."""
    parse_budget(kl_nats, seed)
    return Needs(
        inputs=(*policy_inputs(objective), f"results/poison/{objective}"),
        params=(*contender_params(objective, variant), "compare.poison.phrase"),
        outputs=(f"results/hack/{objective}/{variant}/{kl_nats}/{seed}",),
    )


def run(workspace: Workspace, objective: str, variant: str, kl_nats: str, seed: str) -> None:
    """Train on the poisoned rewards and measure who fell for the phrase."""
    out = workspace.out / "hack" / objective / variant / kl_nats / seed
    moved = {
        f"reward/{objective}/{SELECTING}": f"poison/{objective}/{SELECTING}",
        f"calibrate/{objective}": f"poison/{objective}",
    }
    view = replace(workspace, moved=moved)
    metrics = compete(view, objective, variant, parse_budget(kl_nats, seed), out)
    said = read_table(out / "samples.parquet", EVALUATION_SAMPLES)["response"].to_pylist()
    phrase = workspace.params.compare.poison.phrase
    metrics["phrase_share"] = float(np.mean([phrase in text for text in said]))
    write_json(out / "metrics.json", metrics)
