"""`infalign restore`: a commit in a folder of its own, run again and compared."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.commands.restore import find_origin
from flows.project.restoring import check_target, exact_commit, resolve, restore
from infalign.errors import InputError
from infalign.settings.params import load_params
from tests.flows.conftest import Project, git
from tests.flows.runs.test_pipeline import files

Copy = Callable[[], Project]


def committed(project: Project) -> str:
    """Commit all there is; the commit."""
    git(project.root, "add", "--all")
    git(project.root, "commit", "--quiet", "--message", "results")
    return git(project.root, "rev-parse", "HEAD")


def no_line(line: str) -> None:
    """Say nothing."""


def test_a_commit_is_restored_and_run_again_with_the_same_hashes(project: Copy) -> None:
    copy = project()
    commit = committed(copy)
    before = files(copy.root)
    (copy.root / "params.yaml").write_text("another: version\n")
    git(copy.root, "commit", "--quiet", "--all", "--message", "broken")
    shutil.rmtree(copy.root / "results")
    status, output = copy.run("restore", "--commit", "HEAD~1", "--verify")
    assert status == 0, output
    folder = copy.root / ".infalign" / "restored" / commit[:12]
    assert f"Commit {commit[:12]} with its results and data is in {folder}" in output
    assert output.endswith("Every stage gave the same files.\n")
    assert files(folder) == before
    assert git(folder, "status", "--porcelain") == ""
    assert git(copy.root, "status", "--porcelain") == ""
    assert not (copy.root / "results").exists()
    assert copy.survivors() == []


@pytest.mark.soak
def test_hooks_do_not_run_and_links_stay_links(project: Copy, tmp_path: Path) -> None:
    copy, template = project(), tmp_path / "template"
    ran = tmp_path / "ran"
    for folder in (template / "hooks", copy.root / ".githooks"):
        folder.mkdir(parents=True)
        for name in ("post-checkout", "post-merge", "reference-transaction"):
            (folder / name).write_text(f"#!/bin/sh\ntouch {ran}\n")
            (folder / name).chmod(0o755)
    (copy.root / "link").symlink_to("toy_stage.py")
    (copy.root / "folder").symlink_to("results/align")
    committed(copy)
    git(copy.root, "config", "core.hooksPath", ".githooks")
    there = ["restore", "--commit", "HEAD", "--verify", "--into", str(tmp_path / "there")]
    status, output = copy.run(*there, GIT_TEMPLATE_DIR=str(template))
    assert status == 0, output
    assert output.endswith("Every stage gave the same files.\n")
    assert not ran.exists()
    assert (tmp_path / "there" / "link").readlink() == Path("toy_stage.py")
    assert (tmp_path / "there" / "folder").is_symlink()


@pytest.mark.soak
def test_the_first_stage_that_differs_is_named(project: Copy, tmp_path: Path) -> None:
    copy = project()
    committed(copy)
    there = ["restore", "--commit", "HEAD", "--verify", "--into", str(tmp_path / "there")]
    status, output = copy.run(*there, TOY_SLOW="align", TOY_STEPS="2")
    assert status == 1, output
    lines = output.splitlines()
    assert lines[-1].startswith(
        "align@harmless-ctrl is the first stage that gave other files: results/align/harmless/ctrl "
    ) or lines[-1].startswith(
        "align@helpful-ctrl is the first stage that gave other files: results/align/helpful/ctrl "
    )
    assert [line.split(":")[0] for line in lines[2:-1]] == ["corpus", "prepare"]


@pytest.mark.soak
def test_what_the_cache_lost_comes_from_the_remote(project: Copy, tmp_path: Path) -> None:
    copy = project()
    before, tells = files(copy.root), no_line
    (copy.root / ".dvc" / "config.local").write_text(
        f"['remote \"store\"']\n    url = {tmp_path / 'remote'}\n[core]\n    remote = store\n"
    )
    commit = committed(copy)
    dvc = ["python", "-m", "dvc", "push", "--quiet"]
    subprocess.run(dvc, cwd=copy.root, env=copy.environment, check=True)
    shutil.rmtree(copy.root / ".dvc" / "cache")
    folder = asyncio.run(restore(copy.root, commit, tmp_path / "there", tells))
    assert files(folder) == before
    assert (folder / ".dvc" / "config.local").stat().st_mode & 0o077 == 0
    shutil.rmtree(copy.root / ".dvc" / "cache")
    shutil.rmtree(tmp_path / "remote")
    missing = r"not in DVC's cache, nor in the remote either: dvc\.lock: DVC says: .*results/align"
    with pytest.raises(InputError, match=missing):
        asyncio.run(restore(copy.root, commit, tmp_path / "elsewhere", tells))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["project0", "there"]


def _outside(root: Path) -> None:
    lock = root / "dvc.lock"
    lock.write_text(lock.read_text().replace("path: results/corpus\n", "path: ../../stolen\n"))


def _linked(root: Path) -> None:
    (root / "data").symlink_to("/tmp")


def _pointer(root: Path) -> None:
    (root / "data").mkdir()
    out = {"md5": "0" * 32, "path": "../../../x", "hash": "md5"}
    (root / "data" / "x.dvc").write_text(yaml.safe_dump({"outs": [out]}))


def _hooks(root: Path) -> None:
    lock = root / "dvc.lock"
    lock.write_text(lock.read_text().replace("path: results/corpus\n", "path: .git/hooks\n"))


def _edited(root: Path) -> None:
    (root / "toy_stage.py").write_text("# something else")


def _unlocked(root: Path) -> None:
    (root / "dvc.lock").unlink()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_outside, "stolen, which lies outside its folder"),
        (_linked, "data of this commit is a link out of its folder"),
        (_pointer, "data/x.dvc of this commit has the output"),
        (_hooks, ".git/hooks, which lies outside its folder"),
        (_edited, "dvc.lock is not of its own files"),
        (_unlocked, "has no dvc.lock"),
    ],
)
def test_what_cannot_be_restored_exactly_leaves_nothing(
    project: Copy, tmp_path: Path, spoil: Callable[[Path], None], words: str
) -> None:
    copy = project()
    committed(copy)
    spoil(copy.root)
    git(copy.root, "add", "--all", "--force", ".")
    git(copy.root, "rm", "-r", "--quiet", "--cached", "--ignore-unmatch", ".infalign", ".dvc/cache")
    git(copy.root, "commit", "--quiet", "--message", "spoilt")
    commit = git(copy.root, "rev-parse", "HEAD")
    with pytest.raises(InputError, match=words):
        asyncio.run(restore(copy.root, commit, tmp_path / "there", no_line))
    assert [p.name for p in tmp_path.iterdir()] == ["project0"]


def test_folders_that_are_taken_or_in_the_project_are_refused(tmp_path: Path) -> None:
    root, full = tmp_path / "project", tmp_path / "full"
    for folder in (root, full / "inside"):
        folder.mkdir(parents=True)
    (tmp_path / "link").symlink_to(full / "inside")
    for into in (full, tmp_path / "link"):
        with pytest.raises(InputError, match="is there already"):
            check_target(root, into)
    for into in (root / "results" / "x", root / "new", tmp_path / "full" / ".." / "project" / "x"):
        with pytest.raises(InputError, match="lies in the project"):
            check_target(root, into)
    assert check_target(root, full / "inside") == full / "inside"
    with pytest.raises(InputError, match="'--all' is no commit"):
        resolve(Path(__file__).parent, "--all")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["restore"], "--version V, --commit REV or --date DAY"),
        (["restore", "--version", "1", "--commit", "HEAD"], "--date DAY, one of them"),
        (["restore", "--commit", "nothing"], "'nothing' is no commit"),
        (["restore", "--version", "7"], "no version '7' of infalign-helpful or infalign-harmless"),
        (["run", "--dry-run", "--push"], "leave out --push"),
        (["run", "--push"], "--push needs a default DVC remote"),
    ],
)
def test_bad_input_is_one_sentence(project: Copy, arguments: list[str], words: str) -> None:
    status, output = project().inside(*arguments)
    assert status == 2, output
    assert words in output
    assert len(output.strip().splitlines()) == 1


def registered(project: Project, **tags: str) -> str:
    """A version with these tags beside those that the present state has."""
    client: Any = project.tracking()
    if not client.search_registered_models("name = 'infalign-helpful'"):
        client.create_registered_model("infalign-helpful")
    tree = load_params(project.root / "params.yaml").model_dump(mode="json")
    state = {
        "infalign.commit": git(project.root, "rev-parse", "HEAD"),
        "infalign.dirty": "true",
        "infalign.dvc_lock": hashlib.sha256((project.root / "dvc.lock").read_bytes()).hexdigest(),
        "infalign.params": hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest(),
    }
    given = state | {f"infalign.{key}": value for key, value in tags.items()}
    version = client.create_model_version("infalign-helpful", "file:///nowhere", tags=given)
    return str(version.version)


def test_versions_are_restored_from_the_commit_that_holds_their_lock(project: Copy) -> None:
    copy = project()
    root = copy.root
    version = registered(copy)
    with pytest.raises(InputError, match="made from uncommitted changes"):
        exact_commit(root, find_origin(root, version, None))
    commit = committed(copy)
    assert exact_commit(root, find_origin(root, version, None)) == commit
    clean = registered(copy, dirty="false")
    assert exact_commit(root, find_origin(root, clean, "helpful")) == commit
    copy.tracking().set_registered_model_alias("infalign-helpful", "champion", clean)
    assert find_origin(root, "champion", None).name == "infalign-helpful champion"
    forged = registered(copy, dirty="false", dvc_lock="0" * 64)
    with pytest.raises(InputError, match="its tags, or the commit, were changed"):
        exact_commit(root, find_origin(root, forged, None))
    changed = registered(copy, params="0" * 64)
    with pytest.raises(InputError, match="made from uncommitted changes"):
        exact_commit(root, find_origin(root, changed, None))
