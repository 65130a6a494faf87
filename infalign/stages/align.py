"""align: one policy for an objective and a variant, by KL-regularised reinforcement learning.

Reads results/{prepare,sft,sample,calibrate,reward}. Writes results/align/O/V/{policy/,
history.jsonl, metrics.json}. What a step does: `infalign.aligning.ctrl`. A variant with a `method`
of its own learns from the stored samples alone, under the same control of the KL: CTRL without
generating by `infalign.aligning.offline`, Best-of-N distillation, BoNBoN, IPO and DPO by
`infalign.aligning.preferences`.
"""

from __future__ import annotations

from infalign.aligning.policy import train_policy
from infalign.files.sources import check_listed, items
from infalign.files.workspace import Needs, Workspace
from infalign.settings.params import Params, policy_inputs, policy_params


def needs(params: Params, objective: str, variant: str) -> Needs:
    """What the stage depends on."""
    return Needs(
        inputs=(*policy_inputs(objective), *items("align", params, objective)),
        params=policy_params(objective, variant),
        outputs=(f"results/align/{objective}/{variant}",),
    )


def run(workspace: Workspace, objective: str, variant: str) -> None:
    """Train one policy at the KL budget."""
    check_listed("align", workspace.params, workspace.root)
    train_policy(workspace, objective, variant)
