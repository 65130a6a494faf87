"""contend: one policy for an objective, variant, KL budget and seed, trained and answered.

A contender of `infalign compare`: the stages align and evaluate once more, at a budget and with a
training seed of its own, on the same reference policy, reward models and stored samples. Writes to
results/contend/O/V/KL/SEED: samples.parquet and rewards.parquet (as evaluate writes them, of this
policy alone), history.jsonl, and metrics.json, whose names are the same for every contender. The
policy itself is not kept. A contender takes one process: there are many to run side by side.
"""

from __future__ import annotations

from infalign.files.workspace import Needs, Workspace
from infalign.measuring.contenders import compete, parse_budget
from infalign.settings.params import Params, contender_params, policy_inputs


def needs(params: Params, objective: str, variant: str, kl_nats: str, seed: str) -> Needs:
    """What the stage depends on."""
    parse_budget(kl_nats, seed)
    return Needs(
        inputs=policy_inputs(objective),
        params=contender_params(objective, variant),
        outputs=(f"results/contend/{objective}/{variant}/{kl_nats}/{seed}",),
    )


def run(workspace: Workspace, objective: str, variant: str, kl_nats: str, seed: str) -> None:
    """Train, sample, score, measure."""
    out = workspace.out / "contend" / objective / variant / kl_nats / seed
    compete(workspace, objective, variant, parse_budget(kl_nats, seed), out)
