"""`infalign run --promote` and the other commands, on real Prefect, DVC and MLflow."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from promotion_case import write_made

from flows.registry.registry import open_registry
from tests.flows.conftest import PLANTED, ROOT, Project, artifacts, write_toy
from tests.flows.runs.test_pipeline import prefect_tasks, wait_for

PAGE = ROOT / "docs" / "production.md"
SECTION = "## Registry, gate and promotion"


@pytest.fixture(scope="module")
def promoted(
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: Any,
    quiet: dict[str, str],
    prefect_api: str,
) -> Iterator[tuple[Project, str]]:
    """A project that was run and promoted once, and what the command said."""
    root = tmp_path_factory.mktemp("promoted") / "project"
    write_toy(root)
    (root / "toy_stage.py").unlink()
    write_made(root, tokenizer)
    project = Project(root, quiet | {"PREFECT_API_URL": prefect_api, "HF_HUB_OFFLINE": "1"})
    status, output = project.run("run", "--promote", timeout=400, PLANTED_TOKEN=PLANTED)
    assert status == 0, output
    yield project, output
    project.end()


@pytest.fixture(scope="module")
def worse(
    promoted: tuple[Project, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Project, str]]:
    """The project after a run with fewer steps, whose candidate is worse."""
    made = copied(promoted[0], tmp_path_factory.mktemp("worse"))
    status, output = made.run("run", "--promote", "--set", "align.steps=5", timeout=400)
    assert status == 0, output
    yield made, output
    made.end()


def copied(project: Project, folder: Path) -> Project:
    """A copy of a project, to change."""
    root = Path(shutil.copytree(project.root, folder / "project", symlinks=True))
    return Project(root, dict(project.environment))


def aliases(project: Project) -> dict[str, str]:
    """Alias to version, as a reader finds them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        return open_registry(project.root).champions("helpful").aliases()


def test_a_run_registers_judges_and_promotes(
    promoted: tuple[Project, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    project, output = promoted
    assert "infalign-helpful version 1 is the champion now (as the first champion)." in output
    assert "Gate: helpful, against no champion yet" in output
    assert aliases(project) == {"champion": "1"}
    path = project.root / ".infalign" / "promotion" / "helpful.json"
    assert json.loads(path.read_text())["outcome"] == "promoted"
    tasks = asyncio.run(prefect_tasks(project, monkeypatch))
    assert tasks["arena@helpful"].state_name == "Skipped"  # there is no champion to meet
    for word in ("register", "promote"):
        assert tasks[f"{word}@helpful"].state_name == "Completed"
    runs = project.runs()
    parent = runs["pipeline"][0].info.run_id
    assert set(runs) & {"register@helpful"} == set()
    (registered,) = project.runs("-registry")["register@helpful"]
    assert registered.data.tags["infalign.run"] == parent
    model = project.tracking().get_registered_model("infalign-helpful")
    assert model.description.startswith("The champion is version 1: `ctrl` of helpful")
    gates = {key for key in asyncio.run(artifacts(project)) if key and key.startswith("gate-")}
    assert gates == {"gate-helpful"}


def test_no_secret_is_anywhere(promoted: tuple[Project, str]) -> None:
    project, output = promoted
    assert PLANTED not in output
    for path in project.root.rglob("*"):
        assert not path.is_file() or PLANTED.encode() not in path.read_bytes(), path


@pytest.mark.soak
def test_a_worse_challenger_is_refused_and_the_champion_stays(
    worse: tuple[Project, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    project, output = worse
    assert re.search(r"infalign-helpful version 2 is not promoted; failed: .*champion \(0", output)
    assert aliases(project) == {"champion": "1", "challenger": "2"}
    tasks = asyncio.run(prefect_tasks(project, monkeypatch))
    assert tasks["promote@helpful"].state_name == "Refused"
    assert tasks[""].state_name == "Refused"


NIGHTLY = """
import asyncio, os
from flows.runs.nightly import nightly
asyncio.run(nightly(root=os.getcwd(), promote=True))
"""


def test_a_refusal_by_night_is_seen_in_the_morning(
    promoted: tuple[Project, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = copied(promoted[0], tmp_path)
    params = project.root / "params.yaml"
    params.write_text(re.sub(r"\bsteps: \d+", "steps: 5", params.read_text()))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", NIGHTLY],
        cwd=project.root,
        env=project.environment,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    tasks = asyncio.run(prefect_tasks(project, monkeypatch))
    run = tasks[""]
    assert (run.state_type.value, run.state_name) == ("COMPLETED", "Refused"), done.stdout
    refused = (
        r"infalign-helpful version 2 is not promoted; failed: .*champion \(0.* must be >= 0.49, "
        r"short by 0\.\d+; 0\.\d+ on average would have passed"
    )
    assert re.match(refused, run.state.message)
    assert run.state.message.endswith("made.")
    assert tasks["arena@helpful"].state_name == "Completed"
    assert tasks["promote@helpful"].state_name == "Refused"
    assert re.match(refused, str(asyncio.run(artifacts(project))["gate-helpful"]))
    status, output = project.inside("versions")
    assert status == 0, output
    shown = " ".join(output.split())
    assert "Last refused: infalign-helpful version 2, 20" in shown
    assert re.search(r"UTC, against version 1; failed: .*champion \(0.* must be >= 0.49", shown)


def test_what_cannot_be_done_is_one_sentence(promoted: tuple[Project, str], tmp_path: Path) -> None:
    project = copied(promoted[0], tmp_path)
    params = project.root / "params.yaml"
    params.write_text(re.sub(r"\bsteps: \d+", "steps: 6", params.read_text()))
    for arguments, words in (
        (["promote"], "the results of evaluate@helpful are not up to date"),
        (["rollback"], "has no earlier champion"),
        (["approve"], "no run waits"),
        (["approve", "--run", "it"], "--run 'it' is not the id of a flow run"),
    ):
        status, output = project.inside(*arguments)
        assert status == 2, output
        assert words in output
        assert len(output.strip().splitlines()) == 1


@pytest.mark.soak
def test_a_run_waits_for_a_human_and_goes_on_when_approved(
    worse: tuple[Project, str], tmp_path: Path
) -> None:
    project = copied(worse[0], tmp_path)
    for name in ("mlflow.db", "mlartifacts"):  # as if nothing had been registered
        path = project.root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    settings = ["promotion.approval=true", "align.steps=100"]
    child = project.start("run", "--promote", *(w for s in settings for w in ("--set", s)))
    try:
        note = project.root / ".infalign" / "approval.json"
        wait_for(lambda: note.exists() or child.poll() is not None, 400)
        assert child.poll() is None, child.communicate()[0]
        waiting = json.loads(note.read_text())["waiting"]
        sentence = "infalign-helpful version 1 would be promoted (as the first champion)."
        assert waiting == [sentence]
        assert aliases(project) == {"challenger": "1"}
        wait_for(lambda: project.run("approve")[0] == 0, 120)
        output = child.communicate(timeout=400)[0]
        assert child.returncode == 0, output
        assert sentence in output
        assert "Waiting for approval" in output
        assert aliases(project) == {"champion": "1"}
        assert not note.exists()
    finally:
        project.end()


def commands() -> list[list[str]]:
    """The commands of our part of the page, in order."""
    text = PAGE.read_text(encoding="utf-8")
    section = text[text.index(SECTION) :].split("\n## ")[0]
    lines = "\n".join(re.findall(r"```bash\n(.*?)```", section, re.DOTALL)).splitlines()
    found = [shlex.split(line, comments=True) for line in lines]
    return [words for words in found if words]


@pytest.mark.soak
def test_the_commands_of_the_page_run(worse: tuple[Project, str], tmp_path: Path) -> None:
    project = copied(worse[0], tmp_path)
    listed = commands()
    assert {words[1] for words in listed} == {"run", "versions", "promote", "history", "rollback"}
    for words in listed:
        assert words[0] == "infalign"
        status, output = project.run(*words[1:], timeout=400)
        refused = words[1] == "promote" and "--force" not in words
        assert status == (1 if refused else 0), f"{words}: {output}"
    status, output = project.run("history", "--json")
    moves = json.loads(output)["helpful"]
    assert [(m["move"], m["to"], m["forced"]) for m in moves] == [
        ("promote", "1", False),
        ("promote", "2", True),
        ("rollback", "1", False),
    ]
