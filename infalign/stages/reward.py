"""reward: the Bradley-Terry reward models of an objective whose reward or judge is trained.

Reads results/prepare, results/sft and results/sources/trained/O.json. Writes to results/reward/O
{selecting,independent}/ (plain Hugging Face sequence classifiers) where they are trained, their
histories beside them, and metrics.json. The independent judge learns from the other half of the
preference pairs, with another seed.
"""

from __future__ import annotations

import json

from infalign.aligning.reward_models import train_model
from infalign.files.weights import folders
from infalign.files.workspace import Needs, Workspace, write_json
from infalign.processes.ranks import join
from infalign.settings.params import TRAINING, Params


def needs(params: Params, objective: str) -> Needs:
    """What the stage depends on."""
    return Needs(
        inputs=(
            "results/prepare",
            "results/sft",
            f"results/sources/trained/{objective}.json",
            *folders(params.reward),
        ),
        params=(*TRAINING, "model.response_tokens", "reward"),
        outputs=(f"results/reward/{objective}",),
    )


def run(workspace: Workspace, objective: str) -> None:
    """Train and measure every reward model that is not finished yet."""
    prepared = json.loads(workspace.results("prepare", "metrics.json").read_text())["objectives"]
    halves = json.loads(workspace.results("sources", "trained", f"{objective}.json").read_text())
    measured = {half: train_model(workspace, objective, half) for half in halves}
    if join(workspace.params.run).main:
        measured["accuracy_ceiling"] = prepared[objective]["accuracy_ceiling"]
        write_json(workspace.out / "reward" / objective / "metrics.json", measured)
