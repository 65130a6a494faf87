"""reward: Bradley-Terry reward models, one for training and one independent judge an objective.

Reads results/prepare and results/sft. Writes results/reward/O/{selecting,independent}/ (plain
Hugging Face sequence classifiers), their histories beside them and metrics.json. The independent
judge learns from the other half of the preference pairs, with another seed.
"""

from __future__ import annotations

import json

from infalign.aligning.reward_models import train_model
from infalign.files.tables import INDEPENDENT, SELECTING
from infalign.files.weights import folders
from infalign.files.workspace import Needs, Workspace, write_json
from infalign.processes.ranks import join
from infalign.settings.params import TRAINING, Params

HALVES = (SELECTING, INDEPENDENT)


def needs(params: Params) -> Needs:
    """What the stage depends on."""
    return Needs(
        inputs=("results/prepare", "results/sft", *folders(params.reward)),
        params=(
            *TRAINING,
            "run.objectives",
            "model.response_tokens",
            "reward",
        ),
        outputs=("results/reward",),
    )


def run(workspace: Workspace) -> None:
    """Train and measure every reward model that is not finished yet."""
    prepared = json.loads(workspace.results("prepare", "metrics.json").read_text())["objectives"]
    measured = {
        objective: {half: train_model(workspace, objective, half) for half in HALVES}
        | {"accuracy_ceiling": prepared[objective]["accuracy_ceiling"]}
        for objective in workspace.params.run.objectives
    }
    if join(workspace.params.run).main:
        write_json(workspace.out / "reward" / "metrics.json", measured)
