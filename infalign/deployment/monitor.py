"""A champion, measured again: `python -m infalign.deployment.monitor --objective O --seed N M OUT`

Reads the package of a registered version (M: `deployed/`, `evidence/` and `reference/`) and the
prompts in results/prepare. `--source fresh`: evaluation prompts that the version's own evaluation
did not use. `--source log --logged FILE`: prompts that users asked. Champion and reference answer
them anew; win rate, rewards and the prompts themselves are compared with those of the version's
evaluation. `--source suite`: the champion answers pinned prompts, with the same random numbers
every time, and keeps to the suites' bounds or not. Writes OUT, a JSON file.
"""

from __future__ import annotations

import math
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from infalign.deployment import command
from infalign.deployment.asked import (
    Asked,
    TooFew,
    evaluated,
    fresh_prompts,
    learnt,
    logged_prompts,
    taken,
)
from infalign.deployment.evidence import Evidence, read_evidence
from infalign.deployment.remeasuring import (
    Remeasuring,
    columns_here,
    compare,
    test_level,
    token_lengths,
)
from infalign.errors import InputError
from infalign.files.workspace import write_json
from infalign.settings.params import Params
from infalign.theory.procedures import parse_procedure
from infalign.theory.winrates import bootstrap_interval, win_rates

FRESH, LOG, SUITE = "fresh", "log", "suite"
SOURCES = (FRESH, LOG, SUITE)


def check(
    root: Path,
    params: Params,
    objective: str,
    model: Path,
    seed: int,
    source: str = FRESH,
    logged: Path | None = None,
) -> dict[str, Any]:
    """The champion's numbers on some prompts, beside those of its evaluation.

    Args:
        source: of SOURCES.
        logged: the file of logged prompts, for `log`.
    """
    if source == SUITE:
        return {"source": source} | suites(root, params, objective, model)
    evidence = read_evidence(model / "evidence")
    folders = (model / "deployed", _reference(root, model, evidence))
    procedure = parse_procedure(evidence.facts.procedure)
    if procedure.n > params.drift.samples:
        raise InputError(
            f"drift.samples = {params.drift.samples}, but {procedure} draws {procedure.n} "
            "responses: give drift.samples at least as many."
        )
    if source == LOG:
        assert logged is not None
        asked = logged_prompts(root, params, objective, evidence, logged, seed)
    else:
        asked = Asked(fresh_prompts(root, params, objective, evidence, seed))
    asked = taken(asked, *token_lengths(folders[0], list(asked.prompts.values())))
    measuring = Remeasuring(params, folders, columns_here(root, objective))
    rewards = measuring.rewards(asked.prompts, seed)
    known = (
        learnt(root, objective, evidence, model),
        evaluated(root, objective, evidence, model),
    )
    found = compare(params, evidence, rewards, seed) | measuring.shifts(known, asked.prompts, seed)
    numbers = {name: None if drift is None else asdict(drift) for name, drift in found.items()}
    wins = np.clip(win_rates(procedure, *rewards), 0.0, 1.0)
    low, high = bootstrap_interval(wins, replicates=params.evaluate.bootstrap, seed=seed)
    numbers["win_rate"] |= {"low": low, "high": high}  # type: ignore[operator]
    return {
        "source": source,
        "prompts": len(asked.prompts),
        "left_out": dict(asked.left_out),
        "procedure": str(procedure),
        "level": test_level(params),
        **numbers,
        "alarm": any(drift is not None and drift.alarm for drift in found.values()),
    }


def suites(root: Path, params: Params, objective: str, model: Path) -> dict[str, Any]:
    """The champion's number in every suite, and whether it keeps to the suite's bound.

    Draws are the same every time, so that chance has no part in a change: the suite has changed,
    its reward, or what computes.
    """
    from infalign.deployment.arena import Arena, measure_suites
    from infalign.deployment.bouts import Field, draws_of
    from infalign.deployment.systems import System
    from infalign.files.workspace import Workspace

    wanted = params.promotion.suites_of(objective)
    if not wanted:
        raise InputError(
            f"promotion.suites has no suite of {objective}: name one, or check it on fresh or "
            "logged prompts."
        )
    champion = System.open("champion", model)
    workspace = Workspace(params, root, f"arena@{objective}")
    with workspace.locked():
        arena = Arena(workspace, Field({}), draws_of(params, champion.evidence, None))
        measured = measure_suites(arena, objective, [champion])
    found: dict[str, Any] = {}
    for name, suite in wanted.items():
        number = measured[name].candidate
        low = -math.inf if suite.at_least is None else suite.at_least
        high = math.inf if suite.at_most is None else suite.at_most
        found[name] = {
            "now": number,
            "bound": suite.at_least if suite.at_least is not None else suite.at_most,
            "prompts": measured[name].prompts,
            "alarm": not low <= number <= high,
        }
    return {
        "prompts": sum(about["prompts"] for about in found.values()),
        "suites": found,
        "alarm": any(about["alarm"] for about in found.values()),
    }


def _reference(root: Path, model: Path, evidence: Evidence) -> Path:
    """The reference policy that the champion was measured against: its package's.

    Older packages hold none: then it must still be the one in results/sft.
    """
    from infalign.deployment.package import digest

    packaged = model / "reference" / "policy"
    if packaged.is_dir():
        return packaged
    here = root / "results" / "sft" / "policy"
    if not here.is_dir() or digest(here) != evidence.facts.reference:
        raise InputError(
            "results/sft holds another reference policy than the champion was measured against, "
            "and its version is too old to hold its own: check it in a folder made by "
            "`infalign restore`, or promote a version of this one."
        )
    return here


def main(arguments: Sequence[str] | None = None) -> int:
    """Check one champion in the project of the current folder; 2 is the user's input."""
    parser = command.parser_of("monitor", __doc__)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--source", choices=SOURCES, default=FRESH)
    parser.add_argument("--logged", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)

    def work(params: Params, chosen: Namespace) -> None:
        if chosen.source == LOG and chosen.logged is None:
            raise InputError("--source log needs --logged FILE.")
        about = (chosen.objective, chosen.model, chosen.seed, chosen.source, chosen.logged)
        try:
            found = check(Path.cwd(), params, *about)
        except TooFew as error:
            if chosen.source != LOG:
                raise
            found = {"source": LOG, "too_few": str(error)}
        write_json(chosen.out, found)

    return command.run("monitor", parser, arguments, work)


if __name__ == "__main__":
    sys.exit(main())
