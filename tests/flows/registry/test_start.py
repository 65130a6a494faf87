"""`align.start: champion`: the champion's policy becomes a dependency, when align has to run."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
import yaml

from flows.project.dependencies import with_own
from flows.project.versions import Plan
from flows.registry.registry import model_name
from flows.registry.start import bring_starts
from infalign.deployment.evidence import TRAINED
from infalign.errors import InputError
from infalign.settings.params import Params, check_params
from tests.flows.conftest import ROOT, Project
from tests.flows.project.test_restoring import Copy

STALE = Plan({"align@helpful-ctrl": ()}, {"align@helpful-ctrl": "align.start modified"})
FRESH = Plan({"align@helpful-ctrl": ()}, {})


def settings(start: str) -> Params:
    """One objective that starts somewhere."""
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    tree["run"]["objectives"] = ["helpful"]
    tree["align"]["start"] = start
    return check_params(tree, "params.yaml")


def brought(project: Project, plan: Plan, start: str = "champion") -> tuple[bool, list[str]]:
    """Whether anything changed, and what was said."""
    told: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        changed = asyncio.run(bring_starts(project.root, settings(start), plan, told.append))
    return changed, told


def promote(project: Project, words: str) -> None:
    """A version with a policy of one file becomes the champion."""
    client, name = project.tracking(), model_name("helpful")
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    place = project.root / "mlartifacts" / words
    folder = place / "artifacts" / "deployed" / "policy"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_text(words)
    evidence = place / "artifacts" / "evidence"
    evidence.mkdir()
    (evidence / TRAINED).write_text(words)
    version = client.create_model_version(name, place.as_uri()).version
    client.set_registered_model_alias(name, "champion", version)


def test_the_champion_is_brought_when_align_runs_and_not_otherwise(project: Copy) -> None:
    copy = project()
    folder = copy.root / "champion" / "helpful"
    assert brought(copy, STALE, start="reference") == (False, [])
    assert not folder.exists()
    changed, told = brought(copy, FRESH)  # nothing is there yet, nor is there a champion
    assert changed
    assert told[0].startswith("align for helpful starts from the reference, so far")
    assert [p.name for p in folder.iterdir()] == ["version.json"]
    assert (copy.root / "champion" / "helpful.dvc").exists()
    promote(copy, "first")
    assert brought(copy, FRESH) == (False, [])  # a promotion alone trains nobody again
    changed, told = brought(copy, STALE)
    assert changed
    assert "starts from version 1 of infalign-helpful: commit champion/helpful.dvc" in told[0]
    assert (folder / "policy" / "model.safetensors").read_text() == "first"
    assert (folder / TRAINED).read_text() == "first"
    assert brought(copy, STALE) == (False, [])
    promote(copy, "second")
    shutil.rmtree(copy.root / "mlartifacts" / "second")
    with pytest.raises(InputError, match="the policy of version 2 of infalign-helpful, from which"):
        brought(copy, STALE)
    assert (folder / "policy" / "model.safetensors").read_text() == "first"
    assert sorted(p.name for p in folder.parent.iterdir()) == [
        ".gitignore",
        "helpful",
        "helpful.dvc",
    ]


def test_what_a_champion_was_trained_on_is_brought_or_the_run_does_not_begin(
    project: Copy,
) -> None:
    copy = project()
    folder = copy.root / "champion" / "helpful"
    promote(copy, "first")
    evidence = copy.root / "mlartifacts" / "first" / "artifacts" / "evidence"
    (evidence / TRAINED).rename(evidence.parent / "away")
    (evidence / TRAINED).symlink_to("nowhere")  # a store that does not give it now
    with pytest.raises(InputError, match=r"of version 1 of infalign-helpful, .* cannot be read"):
        brought(copy, STALE)
    assert not folder.exists()
    (evidence.parent / "away").replace(evidence / TRAINED)
    assert brought(copy, STALE)[0]
    assert (folder / TRAINED).read_text() == "first"
    promote(copy, "second")
    shutil.rmtree(copy.root / "mlartifacts" / "second" / "artifacts" / "evidence")  # as of old
    assert brought(copy, STALE)[0]
    assert sorted(path.name for path in folder.iterdir()) == ["policy", "version.json"]


def test_dvc_sees_the_policy_that_align_starts_from() -> None:
    text = Path(ROOT / "dvc.yaml").read_text()
    changed = with_own(text, settings("champion"))
    section = changed.partition("\n  align:")[2].partition("\n  evaluate:")[0]
    assert "      - champion/${item.objective}  # by params.yaml\n" in section
    assert changed.count("champion/") == 1
    assert "champion/" not in with_own(changed, settings("reference"))
    lora = settings("champion").model_dump(mode="json")
    lora["align"]["lora_rank"] = 8
    with pytest.raises(InputError, match=r"align\.start = champion trains all weights"):
        check_params(lora, "params.yaml")
