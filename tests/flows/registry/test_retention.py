"""What `infalign prune` removes, and what it never does: on real git, DVC and MLflow."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import _artifact_repository_registry
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from promotion_case import ROOT, bounds, evidence, project_params, tiny_models, write_package

from flows.project import nights
from flows.registry import retention
from flows.registry.registry import open_registry, register
from flows.registry.retention import find_waste, prune
from infalign.errors import InputError
from infalign.settings.params import load_params
from tests.flows.conftest import git

DVC_YAML = """\
stages:
  evaluate:
    matrix: {objective: [helpful]}
    cmd: mkdir -p results/evaluate/${item.objective} && cp night results/evaluate/${item.objective}
    deps: [night, data/raw/mine]
    outs: ["results/evaluate/${item.objective}"]
"""
CHAMPION, KEPT, NEWEST = 1, 3, 4  # nights, each with the version of its number


def dvc(root: Path, *words: str) -> None:
    command = [sys.executable, "-m", "dvc", *words]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Iterator[Path]:
    """Four nights, each with data, results and a version of its own; the first is the champion.

    The tests go from what removes nothing to what removes most.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        for role in ("AUTHOR", "COMMITTER"):
            patch.setenv(f"GIT_{role}_NAME", "t")
            patch.setenv(f"GIT_{role}_EMAIL", "t@t")
        yield make(tmp_path_factory.mktemp("retention"), tokenizer)


def make(tmp_path: Path, tokenizer: Any) -> Path:
    place = tmp_path / "project"
    (place / "data" / "raw").mkdir(parents=True)
    shutil.copytree(ROOT / ".dvc", place / ".dvc", ignore=shutil.ignore_patterns("tmp", "cache"))
    for name in (".dvcignore", ".gitignore", "params.yaml"):
        shutil.copyfile(ROOT / name, place / name)
    (place / "dvc.yaml").write_text(DVC_YAML)
    (place / "night").write_text("0\n")
    git(place, "init", "--quiet", "-b", "main")
    git(place, "add", ".")
    git(place, "commit", "--quiet", "-m", "the project")
    models = tmp_path / "models"
    tiny_models(models, tokenizer)
    params = project_params()
    sizes = params.model.model_copy(update={"response_tokens": 12})
    params = params.model_copy(update={"promotion": bounds(), "model": sizes})
    registry = open_registry(place)
    for night in range(1, NEWEST + 1):
        (place / "night").write_text(f"night {night}\n")
        (place / "data" / "raw" / "mine").mkdir(exist_ok=True)
        (place / "data" / "raw" / "mine" / "mine.txt").write_text(f"data of night {night}\n")
        dvc(place, "add", "--quiet", "data/raw/mine")
        dvc(place, "repro", "--quiet")
        folder = write_package(place / "package", models, evidence(0.5 + 0.1 * night, seed=night))
        version = register(registry, params, "helpful", folder)
        made = {"helpful": str(version.version)}
        nights.commit(place, "nights", "completed", [], made)
        if night == CHAMPION:
            registry.champions("helpful").promote("1", None, "the first", {})
    shutil.rmtree(place / "package")
    return place


def cached(root: Path) -> set[str]:
    """What DVC's cache holds of files, by their text."""
    files = (path for path in (root / ".dvc" / "cache" / "files").rglob("*") if path.is_file())
    return {path.read_text() for path in files if not path.name.endswith(".dir")}


def everything(root: Path) -> set[Path]:
    return {path for path in root.rglob("*") if path.is_file() and "tmp" not in path.parts}


def test_whatever_is_small_enough_to_keep_is_kept(root: Path) -> None:
    before = cached(root)
    assert find_waste(root, 10, 30).versions == {"helpful": []}
    prune(root, 10, 30, True, print)
    assert cached(root) == before
    waste = find_waste(root, 0, 0)  # without any: what is in results/, aliases and champions
    assert waste.versions == {"helpful": ["2", "3"]}
    git(root, "tag", "mine", nights.nights(root, "nights")[2].commit)
    named = find_waste(root, 0, 0)
    assert named.versions == {"helpful": ["3"]}  # what the user has named stays
    git(root, "tag", "--delete", "mine")
    with pytest.raises(InputError, match="--keep-nights -1 is negative"):
        find_waste(root, 0, -1)


@pytest.mark.parametrize(
    ("versions", "newest", "kept"), [(3, 10, 3), (9, 10, 9), (10, 10, 10), (11, 10, 10), (9, 0, 0)]
)
def test_the_newest_versions_stay_however_few_there_are(
    versions: int, newest: int, kept: int
) -> None:
    every = [Mock(version=n, tags={}) for n in range(1, versions + 1)]
    champions = Mock(aliases=dict, history=list)
    newer = {str(n) for n in range(versions - kept + 1, versions + 1)}
    assert retention._needed(every, champions, newest, set()) == newer


def test_a_tag_of_the_users_own_keeps_its_commit(root: Path) -> None:
    oldest = nights.nights(root, "nights")[2].commit
    git(root, "tag", "infalign-paper", oldest)  # begins as the tags of versions do
    assert find_waste(root, 0, 0).versions == {"helpful": ["3"]}
    git(root, "tag", "--delete", "infalign-paper")


def test_whatever_was_added_to_dvc_stays_wherever_it_is(root: Path) -> None:
    """A model of the user's own, of two commits and the working tree; a file among the data."""
    model, nested = root / "mine" / "model", root / "data" / "raw" / "team" / "notes"
    model.parent.mkdir()
    for number in (1, 2, 3):
        model.write_text(f"model {number}\n")
        dvc(root, "add", "--quiet", "mine/model")
        if number < 3:
            git(root, "add", "mine")
            git(root, "commit", "--quiet", "-m", f"model {number}")
    nested.parent.mkdir(parents=True)
    nested.write_text("notes\n")
    dvc(root, "add", "--quiet", "data/raw/team/notes")
    prune(root, 10, 30, True, print)
    assert {"model 1\n", "model 2\n", "model 3\n", "notes\n"} <= cached(root)
    shutil.rmtree(root / "mine")
    shutil.rmtree(nested.parent)


def test_without_a_branch_of_nights_that_branch_is_one_of_the_users(root: Path) -> None:
    params = root / "params.yaml"
    before = params.read_text()
    tree = yaml.safe_load(before)
    tree["schedule"]["branch"] = None
    params.write_text(yaml.safe_dump(tree))
    assert load_params(params).schedule.branch is None
    # Then the tip of `nights` stays, whatever is asked: here it is that of the results.
    assert find_waste(root, 0, 0).versions == {"helpful": ["2", "3"]}
    params.write_text(before)


def test_what_nothing_needs_goes_and_all_else_stays(root: Path) -> None:
    restored = root / ".infalign" / "restored"
    commits = [night.commit for night in reversed(nights.nights(root, "nights"))]
    for commit in (commits[1], commits[KEPT - 1]):
        (restored / commit[:12]).mkdir(parents=True)
        (restored / commit[:12] / "a file").touch()
    before, told = everything(root), list[str]()
    prune(root, 1, 2, False, told.append)
    assert "infalign-helpful: 1 of 4 versions go: 2" in told
    assert told[-1] == "Nothing was removed: --remove does it."
    assert before - everything(root) == set()
    registry = open_registry(root)
    gone = registry.version("helpful", "2")
    held = registry.client.search_logged_models([registry.experiment])
    model = next(model.model_id for model in held if model.source_run_id == gone.run_id)
    # Whoever is killed, or not answered, in the middle leaves what the next one finds.
    for act, error in (
        ("delete_logged_model", MlflowException("the server is ill")),
        ("delete_logged_model", KeyboardInterrupt()),
        ("delete_run", KeyboardInterrupt()),
        ("delete_model_version", KeyboardInterrupt()),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(MlflowClient, act, Mock(side_effect=error))
            with pytest.raises(type(error)):
                prune(root, 1, 2, True, print)
        assert find_waste(root, 1, 2).versions == {"helpful": ["2"]}
    prune(root, 1, 2, True, told.append)
    assert told[-1] == "Removed."
    assert registry.client.get_run(gone.run_id).info.lifecycle_stage == "deleted"
    models = registry.client.search_logged_models([registry.experiment])
    assert model not in [one.model_id for one in models]
    assert len(models) == 3
    assert [v.version for v in registry.versions("helpful")] == [1, 3, 4]
    assert registry.champions("helpful").champion() == "1"
    for number in ("1", "3", "4"):
        assert (registry.package("helpful", number, root / "none") / "deployed").is_dir()
    assert len(list((root / "mlartifacts").rglob("evidence/facts.json"))) == 3
    nights_kept = {f"night {night}\n" for night in (CHAMPION, KEPT, NEWEST)}
    data = {f"data of night {night}\n" for night in range(1, NEWEST + 1)}  # of every night
    added = {"model 1\n", "model 2\n"}  # by the test before
    assert cached(root) - added == nights_kept | data
    assert [path.name for path in restored.iterdir()] == [commits[KEPT - 1][:12]]
    assert (root / "results" / "evaluate" / "helpful" / "night").read_text() == "night 4\n"
    told.clear()
    prune(root, 1, 2, True, told.append)  # again: there is nothing left to do
    assert "infalign-helpful: 0 of 3 versions go" in told


class Archive(LocalArtifactRepository):  # type: ignore[misc]
    """A store that removes nothing."""

    def delete_artifacts(self, artifact_path: str | None = None) -> None:
        raise NotImplementedError


def test_what_mlflow_cannot_remove_is_named(root: Path) -> None:
    _artifact_repository_registry.register("archive", Archive)
    client = open_registry(root).client
    run_id = "0" * 32  # `mlflow gc` has taken it
    version = client.create_model_version("infalign-helpful", "archive://a/b", run_id).version
    told: list[str] = []
    prune(root, 0, 2, True, told.append)
    assert f"infalign-helpful: 1 of 4 versions go: {version}" in told
    assert any(line.startswith("archive://a/b stays: ") for line in told)
    assert told[-1] == "Removed, except for what stays."
    assert find_waste(root, 0, 2).versions == {"helpful": []}


def test_a_cache_that_others_share_is_left_alone(root: Path, tmp_path: Path) -> None:
    shutil.move(root / ".dvc" / "cache", tmp_path / "shared")
    dvc(root, "cache", "dir", "--local", str(tmp_path / "shared"))
    told: list[str] = []
    before = len(list((tmp_path / "shared" / "files").rglob("*.dir")))
    prune(root, 0, 0, True, told.append)
    assert any("is shared with other projects: nothing of it is removed" in line for line in told)
    assert len(list((tmp_path / "shared" / "files").rglob("*.dir"))) == before > 0
