"""reward: Bradley-Terry reward models, for the objectives whose reward or judge is trained.

Reads results/prepare, results/sft and results/sources/trained.json. Writes
results/reward/O/{selecting,independent}/ (plain Hugging Face sequence classifiers) where they are
trained, their histories beside them, and metrics.json; O/none.json where none is. The independent
judge learns from the other half of the preference pairs, with another seed.
"""

from __future__ import annotations

import json

from infalign.aligning.reward_models import train_model
from infalign.files.weights import folders
from infalign.files.workspace import Needs, Workspace, write_json
from infalign.processes.ranks import join
from infalign.settings.params import TRAINING, Params


def needs(params: Params) -> Needs:
    """What the stage depends on."""
    return Needs(
        inputs=(
            "results/prepare",
            "results/sft",
            "results/sources/trained.json",
            *folders(params.reward),
        ),
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
    trained = json.loads(workspace.results("sources", "trained.json").read_text())
    measured = {
        objective: {half: train_model(workspace, objective, half) for half in trained[objective]}
        | {"accuracy_ceiling": prepared[objective]["accuracy_ceiling"]}
        for objective in workspace.params.run.objectives
    }
    if not join(workspace.params.run).main:
        return
    out = workspace.out / "reward"
    for objective, halves in trained.items():
        if not halves:  # DVC wants what calibrate depends on to be there
            write_json(out / objective / "none.json", {"trained": halves})
    write_json(out / "metrics.json", measured)
