"""The published copy of a report: the facts of a run, the registry's verdict, results untouched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from smoke import ROOT
from typer.testing import CliRunner

from flows.cli import app
from flows.registry.promotion import Decision
from flows.runs.published import commit_link, facts_of, folder_of, publish, ruling_of
from infalign.deployment.gate import Rule, Verdict
from infalign.errors import InputError
from infalign.page.published import RUN
from infalign.page.verdict import answer_line, framed
from infalign.settings.params import Params, load_params
from tests.flows.conftest import git

PAGE = f"<body>{RUN}{framed('helpful', answer_line('Yes: by results.', True, ''))}</body>"
LOCK = {
    "stages": {
        "prepare": {"outs": [{"path": "results/prepare", "md5": "0123456789abcdef.dir"}]},
        "evaluate@helpful": {"outs": [{"path": "results/evaluate/helpful", "md5": "e1.dir"}]},
    }
}


@pytest.fixture
def project(tmp_path: Path) -> tuple[Path, Params]:
    """A folder with a finished report in a repository."""
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    (tmp_path / ".gitignore").write_text("/results\n/.infalign\n")
    (tmp_path / "dvc.lock").write_text(json.dumps(LOCK))
    folder = tmp_path / "results" / "report"
    (folder / "plots").mkdir(parents=True)
    (folder / "index.html").write_text(PAGE)
    (folder / "plots" / "a.png").write_bytes(b"x")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    return tmp_path, load_params(tmp_path / "params.yaml")


def copy_of(root: Path) -> str:
    return (folder_of(root) / "index.html").read_text()


def test_a_copy_says_what_made_it_and_results_keep_their_bytes(project) -> None:  # type: ignore[no-untyped-def]
    root, params = project
    facts = facts_of(root, 125.0, "http://127.0.0.1:5000/#/experiments/1/runs/r", "mlflow ui")
    folder = publish(root, params, facts)
    assert folder is not None
    assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} == {
        "index.html",
        "plots/a.png",
        "run.json",
    }
    copy, commit = copy_of(root), git(root, "rev-parse", "HEAD")
    for words in (commit[:10], "0123456789", "2 min 5 s", "Python 3.", "torch 2.", "UTC"):
        assert f"{words}" in copy
    assert '<a href="http://127.0.0.1:5000/#/experiments/1/runs/r">' in copy
    assert ("served by", "mlflow ui") in [fact[:2] for fact in facts]
    assert "not committed" not in copy
    assert (root / "results" / "report" / "index.html").read_text() == PAGE


def test_facts_stay_with_the_page_that_they_are_of(project) -> None:  # type: ignore[no-untyped-def]
    root, params = project
    publish(root, params, facts_of(root, 125.0))
    publish(root, params)
    assert "2 min 5 s" in copy_of(root)
    (root / "results" / "report" / "index.html").write_text(PAGE + "\n")  # dvc repro, say
    (root / "params.yaml").write_text((root / "params.yaml").read_text() + "\n")
    publish(root, params)
    assert "Run took" not in copy_of(root)
    assert "and changes that are not committed" in copy_of(root)


def test_what_was_decided_of_these_results_is_said_and_nothing_else(project) -> None:  # type: ignore[no-untyped-def]
    from flows.registry.registry import result_digest

    root, params = project
    rules = (Rule("kl", True, 0.5, "<= 0.55", ""), Rule("champion", False, 0.4, ">= 0.49", "", 0.1))
    refused = Decision("helpful", "3", "2", Verdict(rules), "refused")
    path = root / ".infalign" / "promotion" / "helpful.json"
    path.parent.mkdir(parents=True)
    digest = result_digest(root, params, "helpful")
    path.write_text(json.dumps(refused.as_tree() | {"result": digest}))
    publish(root, params)
    assert "No: ctrl was refused, infalign-helpful version 3." in copy_of(root)
    assert "failed: champion (0.400, must be &gt;= 0.49, short by 0.1)" in copy_of(root)
    assert "Of 2 rules it passed 1: kl, champion were asked." in copy_of(root)
    assert "by results" not in copy_of(root)
    for other in ({"result": "another"}, {}):
        path.write_text(json.dumps(refused.as_tree() | other))
        publish(root, params)
        assert "Yes: by results." in copy_of(root)
    path.write_text("{")
    publish(root, params)
    assert "Yes: by results." in copy_of(root)


def test_every_outcome_has_its_answer() -> None:
    said = {
        outcome: ruling_of(Decision("helpful", "3", None, None, outcome), "ctrl")
        for outcome in ("promoted", "forced", "champion", "refused", "would promote")
    }
    assert said.pop("would promote") is None
    assert {outcome: ruling.yes for outcome, ruling in said.items() if ruling} == {
        "promoted": True,
        "forced": False,
        "champion": True,
        "refused": False,
    }


@pytest.mark.parametrize(
    ("url", "link"),
    [
        ("git@github.com:o/r.git", "https://github.com/o/r/commit/c"),
        ("https://user:token@git.example.org/a/b/r.git", "https://git.example.org/a/b/r/commit/c"),
        ("https://git.example.org:8443/a/r", "https://git.example.org:8443/a/r/commit/c"),
        ("ssh://git@git.example.org:22/a/r", "https://git.example.org/a/r/commit/c"),
        ("/srv/git/r.git", ""),
        ("../r", ""),
        (None, ""),
    ],
)
def test_a_commit_is_linked_where_it_has_a_page(project, url: str | None, link: str) -> None:  # type: ignore[no-untyped-def]
    root, _ = project
    if url is not None:
        git(root, "remote", "add", "origin", url)
    assert commit_link(root, "c") == link
    assert commit_link(root, "none") == ""


def test_the_command_says_where_the_copy_is(project, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    root, _ = project
    opened: list[str] = []
    monkeypatch.setattr("typer.launch", opened.append)
    monkeypatch.chdir(root)
    done = CliRunner().invoke(app, ["report", "--open"])
    assert done.output == "Report   .infalign/report/index.html\n"
    assert opened == [(folder_of(root) / "index.html").resolve().as_uri()]
    for quiet in (["report"], ["report", "--no-open"]):  # not from a terminal
        assert CliRunner().invoke(app, quiet).exit_code == 0
    assert len(opened) == 1
    (root / "results" / "report" / "index.html").unlink()
    done = CliRunner().invoke(app, ["report"])
    assert isinstance(done.exception, InputError)
    assert "run `infalign run` first" in str(done.exception)
