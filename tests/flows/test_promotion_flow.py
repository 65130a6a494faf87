"""`infalign run --promote` and the other commands, on real Prefect, DVC and MLflow."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from promotion_case import write_made

from tests.flows.conftest import PLANTED, ROOT, Project, write_toy
from tests.flows.test_pipeline import prefect_tasks, wait_for

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
    status, output = project.run("run", "--promote", PLANTED_TOKEN=PLANTED)
    assert status == 0, output
    yield project, output
    project.end()


@pytest.fixture
def copy(promoted: tuple[Project, str], tmp_path: Path) -> Iterator[Project]:
    """The promoted project, to change."""
    root = tmp_path / "project"
    shutil.copytree(promoted[0].root, root, symlinks=True)
    made = Project(root, dict(promoted[0].environment))
    yield made
    made.end()


def versions(project: Project) -> dict[str, list[dict[str, Any]]]:
    status, output = project.run("versions", "--json")
    assert status == 0, output
    return dict(json.loads(output))


def aliases(project: Project, objective: str = "helpful") -> dict[str, str]:
    """Alias to version."""
    found = versions(project)[objective]
    return {alias: version["version"] for version in found for alias in version["aliases"]}


def test_a_run_registers_judges_and_promotes_every_objective(
    promoted: tuple[Project, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    project, output = promoted
    for objective in ("helpful", "harmless"):
        sentence = f"infalign-{objective} version 1 is the champion now (as the first champion)."
        assert sentence in output
        assert aliases(project, objective) == {"champion": "1"}
        path = project.root / ".infalign" / "promotion" / f"{objective}.json"
        assert json.loads(path.read_text())["outcome"] == "promoted"
    assert "Gate: helpful, against no champion yet" in output
    tasks = asyncio.run(prefect_tasks(project, monkeypatch))
    for word in ("register", "promote"):
        for objective in ("helpful", "harmless"):
            assert tasks[f"{word}@{objective}"].state_name == "Completed"
    runs = project.runs()
    parent = runs["pipeline"][0].info.run_id
    assert runs["register@helpful"][0].data.tags["mlflow.parentRunId"] == parent
    keys = asyncio.run(_gates(project))
    assert keys == {"gate-helpful", "gate-harmless"}


async def _gates(project: Project) -> set[str]:
    from prefect.client.orchestration import PrefectClient

    async with PrefectClient(project.environment["PREFECT_API_URL"]) as client:
        found = {artifact.key for artifact in await client.read_artifacts()}
    return {key for key in found if key and key.startswith("gate-")}


def test_no_secret_is_anywhere(promoted: tuple[Project, str]) -> None:
    project, output = promoted
    assert PLANTED not in output
    for path in project.root.rglob("*"):
        assert not path.is_file() or PLANTED.encode() not in path.read_bytes(), path


def test_the_same_run_again_moves_nothing_and_a_worse_one_is_refused(
    copy: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, output = copy.run("run", "--promote")
    assert status == 0, output
    assert "infalign-helpful version 1 is the champion already." in output
    status, output = copy.run("run", "--promote", "--set", "align.steps=5")
    assert status == 0, output
    assert re.search(r"infalign-helpful version 2 is not promoted; failed: .*champion \(-", output)
    assert aliases(copy) == {"champion": "1", "challenger": "2"}
    tasks = asyncio.run(prefect_tasks(copy, monkeypatch))
    assert tasks["promote@helpful"].state_name == "Refused"
    assert tasks[""].state_name == "Completed"
    # By hand, it is refused as well, in the exit status too.
    status, output = copy.run("promote", "--objective", "helpful")
    assert status == 1, output
    assert "failed" in output
    # Results that are not those of params.yaml are not promoted.
    params = copy.root / "params.yaml"
    params.write_text(params.read_text().replace("steps: 5", "steps: 6"))
    status, output = copy.run("promote")
    assert status == 2, output
    assert "the results of evaluate@helpful are not up to date" in output
    status, output = copy.run("rollback", "--objective", "helpful")
    assert status == 2, output
    assert "has no earlier champion" in output


def test_a_run_waits_for_a_human_and_goes_on_when_approved(
    copy: Project, promoted: tuple[Project, str]
) -> None:
    subprocess.run(["git", "add", "-A"], cwd=copy.root, check=True)
    for name in ("mlflow.db", "mlartifacts"):  # as if nothing had been registered
        path = copy.root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    child = copy.start("run", "--promote", "--set", "promotion.approval=true")
    note = copy.root / ".infalign" / "approval.json"
    wait_for(note.exists, 240)
    waiting = json.loads(note.read_text())["waiting"]
    assert "infalign-helpful version 1 would be promoted (as the first champion)." in waiting
    assert aliases(copy) == {"challenger": "1"}
    assert child.poll() is None
    wait_for(lambda: copy.run("approve")[0] == 0, 60)
    output = child.communicate(timeout=240)[0]
    assert child.returncode == 0, output
    assert "Waiting for approval" in output
    assert aliases(copy) == {"champion": "1"}
    assert not note.exists()
    status, output = copy.run("approve")
    assert status == 2, output
    assert "no run waits" in output


def commands() -> list[list[str]]:
    """The commands of our part of the page, in order."""
    text = PAGE.read_text(encoding="utf-8")
    section = text[text.index(SECTION) :].split("\n## ")[0]
    lines = "\n".join(re.findall(r"```bash\n(.*?)```", section, re.DOTALL)).splitlines()
    found = [shlex.split(line, comments=True) for line in lines]
    return [words for words in found if words]


def test_the_commands_of_the_page_run(copy: Project) -> None:
    status, output = copy.run("run", "--promote", "--set", "align.steps=5")  # version 2
    assert status == 0, output
    listed = commands()
    assert {words[1] for words in listed} == {"run", "versions", "promote", "history", "rollback"}
    for words in listed:
        assert words[0] == "infalign"
        status, output = copy.run(*words[1:])
        refused = words[1] == "promote" and "--force" not in words
        assert status == (1 if refused else 0), f"{words}: {output}"
    status, output = copy.run("history", "--json")
    moves = json.loads(output)["helpful"]
    assert [(m["move"], m["to"], m["forced"]) for m in moves] == [
        ("promote", "1", False),
        ("promote", "2", True),
        ("rollback", "1", False),
    ]
