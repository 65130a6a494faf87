"""What a package says of the policy: with which precision it was measured, and is to be served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from smoke import merged

from infalign.deployment.evidence import TRAINED, read_evidence
from infalign.deployment.package import digest, gather, package, source_digest
from infalign.files.sources import START
from infalign.files.tables import PROMPTS, read_table
from infalign.settings.params import check_params
from tests.stages.conftest import finished

__all__ = ["finished"]


@pytest.fixture
def packaged(finished: Path, smoke_tree: dict[str, Any], tmp_path: Path) -> Any:
    """A function that packages a policy of a finished run with some precision."""

    def make(precision: str) -> Path:
        tree = merged(smoke_tree, {"run": {"precision": precision, "device": "cpu"}})
        package(finished, check_params(tree, "smoke"), "helpful", "ctrl", tmp_path / precision)
        return tmp_path / precision

    return make


def test_the_precision_travels_and_other_objectives_are_judged_with_it(packaged: Any) -> None:
    wins = {}
    for precision, meant in (("auto", "float32"), ("float32", "float32"), ("bfloat16", "bfloat16")):
        folder = packaged(precision)
        told = json.loads((folder / "deployed" / "settings.json").read_text())
        assert told["precision"] == meant
        wins[precision] = read_evidence(folder / "evidence").other["harmless"]
    assert (wins["auto"] == wins["float32"]).all()
    assert (wins["bfloat16"] != wins["float32"]).any()
    assert np.abs(wins["bfloat16"] - wins["float32"]).mean() < 0.1


def test_a_package_holds_what_later_nights_need(packaged: Any, finished: Path) -> None:
    folder = packaged("float32")
    evidence = read_evidence(folder / "evidence")
    assert evidence.facts.system == digest(folder / "deployed")
    assert evidence.facts.reward == source_digest(folder / "deployed")
    assert evidence.facts.judged_by == source_digest(folder / "judge")
    assert evidence.facts.reward != evidence.facts.judged_by
    assert digest(folder / "reference" / "policy") == evidence.facts.reference
    table = read_table(finished / "results" / "prepare" / "prompts.parquet", PROMPTS).to_pylist()
    assert evidence.trained == {row["prompt_id"] for row in table if row["split"] == "train"}
    assert not evidence.trained & set(evidence.prompt_ids)


def test_who_starts_from_the_champion_was_trained_on_its_prompts(
    finished: Path, smoke_tree: dict[str, Any], tmp_path: Path
) -> None:
    tree = merged(smoke_tree, {"run": {"device": "cpu"}, "align": {"start": "champion"}})
    known = np.array([3, 2**64 - 1], dtype=np.uint64)
    root = tmp_path / "project"
    root.mkdir()
    (root / "results").symlink_to(finished / "results")
    (root / START / "helpful").mkdir(parents=True)
    np.save(root / START / "helpful" / TRAINED, known)
    gathered = gather(root / "results", check_params(tree, "smoke"), "helpful", "ctrl")
    assert gathered.trained is not None
    assert {f"{number:016x}" for number in known.tolist()} < gathered.trained
