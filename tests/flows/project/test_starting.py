"""`infalign init`: a project from the package alone, as a wheel holds it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
import yaml

from flows.cli import main
from flows.commands.starting import SETTINGS, graph
from flows.project import dependencies, starting
from flows.project.configuration import set_params
from flows.project.dependencies import renew, write_own
from flows.project.versions import RUN, dvc, parse_graph
from infalign.errors import InputError
from infalign.files.stages import STAGES
from infalign.settings.params import load_params
from tests.flows.conftest import ROOT, git

PATTERNS = (ROOT / "flows/project/template.txt").read_text().split()
FILES = {str(path.relative_to(ROOT)) for pattern in PATTERNS for path in ROOT.glob(pattern)}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "t")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "t@t")
    return tmp_path / "mine"


def test_a_project_is_there_whole_and_committed(folder: Path) -> None:
    said = starting.start(folder)
    assert said[-1] == f"Next: cd {folder} && infalign run"
    assert set(git(folder, "ls-files").split()) == FILES | {f"code/{word}" for word in STAGES}
    assert git(folder, "status", "--porcelain") == ""
    assert load_params(folder / "params.yaml") == load_params(ROOT / "params.yaml")
    ours, theirs = (yaml.safe_load((f / "dvc.yaml").read_text())["stages"] for f in (ROOT, folder))
    for word, section in theirs.items():
        own = [dep for dep in ours[word]["deps"] if not dep.startswith("infalign/")]
        assert sorted(section.pop("deps")) == sorted([*own, f"code/{word}"])
        assert section == {key: value for key, value in ours[word].items() if key != "deps"}


def test_dvc_takes_it(folder: Path) -> None:
    starting.start(folder)
    command = [sys.executable, "-m", "dvc", "stage", "list", "--name-only"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "align@helpful-ctrl" in done.stdout.split()


def test_an_upgrade_makes_those_stages_stale_whose_code_has_changed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starting.start(folder)
    assert not renew(folder)
    digest = dependencies.code_digest
    monkeypatch.setattr(dependencies, "code_digest", lambda w: digest(w) if w != "sft" else "new")
    write_own(folder, load_params(folder / "params.yaml"))
    assert git(folder, "status", "--porcelain").split() == ["M", "code/sft"]


def test_a_project_with_its_source_has_no_hashes(tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text())
    assert not renew(tmp_path)
    assert not (tmp_path / "code").exists()


def test_what_is_there_is_left_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder.mkdir()
    (folder / "mine.txt").touch()
    with pytest.raises(InputError, match="is not empty: name a new folder"):
        starting.start(folder)
    with pytest.raises(SystemExit) as end:
        main(["init", str(folder)])
    assert end.value.code == 2
    assert "is not empty" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]


def test_the_demo_s_stages_are_those_of_dvc_yaml(folder: Path) -> None:
    starting.start(folder)
    params = set_params(folder / "params.yaml", SETTINGS)
    write_own(folder, params)
    told = asyncio.run(dvc(folder, "dag", "--dot", RUN))
    found, theirs = graph(params), parse_graph(told.stdout)
    assert before(found) == before(theirs), told.stderr
    seen: set[str] = set()
    for name, needs in found.items():
        assert set(needs) <= seen, name
        seen.add(name)


def before(upstream: Mapping[str, Iterable[str]]) -> dict[str, set[str]]:
    """All that has to be done before each stage."""

    def all_of(name: str) -> set[str]:
        return set(upstream[name]).union(*(all_of(need) for need in upstream[name]))

    return {name: all_of(name) for name in upstream}


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("add", "index.lock"),  # an index where git cannot write one
        ("commit", "not on a Sunday"),  # a hook of the user's
    ],
)
def test_what_git_refuses_is_said_in_its_own_words(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, words: str
) -> None:
    if command == "add":
        monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "nowhere" / "index"))
    else:
        hook = tmp_path / "template" / "hooks" / "pre-commit"
        hook.parent.mkdir(parents=True)
        hook.write_text("#!/bin/sh\necho not on a Sunday >&2\nexit 1\n")
        hook.chmod(0o755)
        monkeypatch.setenv("GIT_TEMPLATE_DIR", str(tmp_path / "template"))
        settings(monkeypatch, {"user.name": "t"})
    with pytest.raises(InputError, match=rf"git did not take it: git {command}: .*{words}"):
        starting.start(folder)


def test_without_a_name_nothing_is_committed_and_that_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith(("GIT_AUTHOR", "GIT_COMMITTER"))]:
        monkeypatch.delenv(name)
    settings(monkeypatch, {"user.useConfigOnly": "true"})
    said = starting.start(folder)
    assert said[1].startswith("git has no name for you, so nothing is committed")
    assert "params.yaml" in git(folder, "diff", "--cached", "--name-only").split()


def settings(monkeypatch: pytest.MonkeyPatch, of_git: Mapping[str, str]) -> None:
    """Git has these settings, and none of the user's."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("GIT_CONFIG_COUNT", str(len(of_git)))
    for number, (key, value) in enumerate(of_git.items()):
        monkeypatch.setenv(f"GIT_CONFIG_KEY_{number}", key)
        monkeypatch.setenv(f"GIT_CONFIG_VALUE_{number}", value)


@pytest.mark.soak
def test_a_wheel_has_all_that_a_project_needs(tmp_path: Path, folder: Path) -> None:
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("infalign-*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    packed = tmp_path / "installed" / "flows" / "project" / "template"
    assert {str(p.relative_to(packed)) for p in packed.rglob("*") if p.is_file()} == FILES
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "installed")}
    code = (
        "import flows.project.starting as s; print(s.__file__); import flows.cli; flows.cli.main()"
    )
    command = [sys.executable, "-c", code, "init", str(folder)]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "installed") in done.stdout.splitlines()[0]
    assert git(folder, "status", "--porcelain") == ""


@pytest.mark.soak
def test_the_demo_ends_with_a_page(folder: Path, quiet: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "flows", "demo", str(folder)],
        env=quiet,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Win rate over the reference" in done.stdout
    assert (folder / "results" / "report" / "index.html").is_file()
