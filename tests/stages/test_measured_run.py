"""A finished run, measured as anybody's samples are: the numbers of its own summary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import infalign
from infalign.aligning.goals import calibrated_goal
from infalign.data.dialogue import read_prompts
from infalign.errors import InputError
from infalign.files.names import REFERENCE, SELECTING
from infalign.files.squares import reference_rewards
from infalign.theory.transforms import parse_transform


@pytest.mark.parametrize("objective", ["helpful", "harmless"])
@pytest.mark.parametrize("form", ["folder", "files"])
def test_the_numbers_are_the_summarys(
    objective: str, form: str, finished: Path, smoke_tree: dict[str, Any], tmp_path: Path
) -> None:
    folder = finished / "results/evaluate" / objective
    summary = json.loads((finished / "results/report/summary.json").read_text())
    summary = [row for row in summary if row["objective"] == objective]
    own = smoke_tree["objectives"][objective]
    procedures = list(dict.fromkeys([own["procedure"], *(row["procedure"] for row in summary)]))
    judges = list(dict.fromkeys(row["judge"] for row in summary))
    reference, policies = (folder, None) if form == "folder" else as_files(folder, judges, tmp_path)
    found = infalign.measure(
        reference,
        policies,
        procedures,
        reward="reward" if form == "folder" else SELECTING,
        judges=judges[1:],
        transforms={"ctrl": own["transform"], "identity": "identity", "rlhf": "raw"},
        kl_nats=smoke_tree["align"]["kl_nats"],
        replicates=smoke_tree["evaluate"]["bootstrap"],
        seed=smoke_tree["run"]["seed"],
    )
    assert len(found.rows) == len(summary) > 10
    for row in summary:
        mine = found.row(row["policy"], row["judge"], row["procedure"])
        for name in row.keys() - {"objective", "policy", "judge", "procedure"}:
            wanted = row[name] if row[name] is None else pytest.approx(row[name], abs=1e-9)
            assert mine[name] == wanted, (name, row)


def as_files(folder: Path, judges: list[str], tmp_path: Path) -> tuple[Path, dict[str, Path]]:
    """The run's samples as JSON lines, rows in the order of evaluate: a column a judge."""
    rewards, samples = (
        pq.read_table(folder / f"{word}.parquet") for word in ("rewards", "samples")
    )
    files = {}
    for name in samples["policy"].unique().to_pylist():
        rows = samples.filter(pc.field("policy") == name).to_pylist()
        by_key: dict[tuple[str, int], dict[str, float]] = {}
        for row in rewards.filter(pc.field("policy") == name).to_pylist():
            key = row["prompt_id"], row["sample_index"]
            by_key.setdefault(key, {})[row["judge"]] = row["reward"]
        path = files[name] = tmp_path / f"{name}.jsonl"
        with path.open("w") as stream:
            for row in rows:
                scores = by_key[row["prompt_id"], row["sample_index"]]
                stream.write(json.dumps(row | {judge: scores[judge] for judge in judges}) + "\n")
    return files.pop(REFERENCE), files


def test_the_calibrated_reward_of_a_run_is_what_align_trains_on(
    finished: Path, smoke_tree: dict[str, Any]
) -> None:
    objective, own = "harmless", smoke_tree["objectives"]["harmless"]
    table = finished / "results/calibrate/harmless/calibrated.parquet"
    ids, rewards = reference_rewards(table, "train")
    known = read_prompts(finished / "results/prepare/prompts.parquet", objective)
    goal = calibrated_goal(parse_transform(own["transform"]), 0.5)
    drawn = np.random.default_rng(0).normal(0, 2, (len(ids), 3))
    wanted = goal.floored(goal(drawn, np.sort(rewards[SELECTING], axis=1)), goal.beta).reshape(-1)
    for prompts in (
        [known[i].marked for i in ids for _ in range(3)],
        [known[i].messages for i in ids for _ in range(3)],
    ):
        made = infalign.CalibratedReward(
            finished / "results",
            lambda prompts, completions, **_: drawn.reshape(-1),
            own["transform"],
            kl_nats=0.5,
            objective=objective,
        )
        found = np.array(made(prompts, ["any"] * len(prompts)))
        slope = made.beta / goal.beta
        assert found - found[0] == pytest.approx(slope * (wanted - wanted[0]), abs=1e-9)
    with pytest.raises(InputError, match="holds the objectives harmless, helpful: name one"):
        infalign.CalibratedReward(finished / "results", lambda **_: [])
    with pytest.raises(InputError, match="has no rewards of the prompt 'Unheard of'"):
        made(["Unheard of"], ["any"])
