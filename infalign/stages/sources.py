"""sources: what every objective's rewards come from, checked and described.

Reads the files of one's own that params.yaml names: functions, local models. Writes to
results/sources: O.json, what the reward and the judge of an objective are made of, and
trained/O.json, which of the two have to be trained. An edit of one function changes one of these
files, and makes that objective stale alone. Functions and servers are tried on two small dialogues.
"""

from __future__ import annotations

from infalign.files.sources import check_listed, own_files
from infalign.files.workspace import Needs, Workspace, write_json
from infalign.rewards.description import described, trained_halves
from infalign.rewards.trial import try_sources
from infalign.settings.params import Params


def needs(params: Params) -> Needs:
    """What the stage depends on."""
    keys = ("reward", "judge")
    return Needs(
        inputs=tuple(own_files("sources", params)),
        params=(
            "run.objectives",
            *(f"objectives.{name}.{key}" for name in params.run.objectives for key in keys),
        ),
        outputs=("results/sources",),
    )


def run(workspace: Workspace) -> None:
    """Try, describe, write."""
    params, out = workspace.params, workspace.out / "sources"
    check_listed("sources", params, workspace.root)
    try_sources(params, workspace.root)
    for name, objective in params.running.items():
        write_json(out / f"{name}.json", described(objective, workspace.root))
        write_json(out / "trained" / f"{name}.json", trained_halves(objective))
