"""The report as it is published: a copy of results/report that says which run made it.

`results/` keeps its bytes from run to run. Date, commit, hashes, duration, versions and links, and
what the whole gate said of these results, stand in a copy in `.infalign/report/`, which is logged
to MLflow and opened by `infalign report`. `run.json` in it has the facts.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from flows.children.processes import redact
from flows.project.git import git
from flows.project.versions import git_state, lock_entries
from flows.registry.promotion import Decision, read_decision
from flows.registry.registry import model_name, open_registry
from flows.services.mlflow_store import said
from infalign import __version__
from infalign.files.workspace import write_json, write_text
from infalign.page.published import Fact, Ruling, published
from infalign.settings.params import Params

LIBRARIES = ("torch", "transformers", "numpy")
SHORT = 10  # characters of a hash that are shown


def folder_of(root: Path) -> Path:
    """Where the copy is."""
    return root / ".infalign" / "report"


def publish(root: Path, params: Params, run: Sequence[Fact] | None = None) -> Path | None:
    """Make the copy of a finished report anew; None where there is no report.

    Args:
        run: the facts of the run that is ending; None for those of the run that last ended with
            this report, or else what can be known without one.
    """
    page, folder = root / "results" / "report" / "index.html", folder_of(root)
    if not page.is_file():
        return None
    digest = _sha256(page)
    facts = list(run) if run is not None else _kept(folder, digest) or facts_of(root)
    rulings = {
        objective: ruling
        for objective in params.run.objectives
        if (decision := read_decision(root, params, objective)) is not None
        and (ruling := ruling_of(decision, params.promotion.variant)) is not None
    }
    fresh = folder.with_name(f".report.{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(page.parent, fresh)
    write_text(fresh / "index.html", published(page.read_text(encoding="utf-8"), facts, rulings))
    write_json(fresh / "run.json", {"page": digest, "facts": [fact._asdict() for fact in facts]})
    shutil.rmtree(folder, ignore_errors=True)
    fresh.replace(folder)
    return folder


def renew(root: Path, params: Params, run_id: str | None) -> None:
    """Say in the copy what was decided since, and in the one in MLflow, if that answers."""
    folder = publish(root, params)
    if folder is None or run_id is None:
        return
    try:
        open_registry(root).client.log_artifacts(run_id, str(folder), "report")
    except Exception as error:
        words = said(error, 200)
        print(
            f"MLflow did not take the report with its verdict ({words}): `infalign report` has it."
        )


def _kept(folder: Path, digest: str) -> list[Fact]:
    """The facts of the run that last ended with this page."""
    try:
        tree = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        return [Fact(**fact) for fact in tree["facts"]] if tree["page"] == digest else []
    except (OSError, ValueError, KeyError, TypeError):
        return []


def facts_of(
    root: Path, seconds: float | None = None, page: str = "", serve: str = ""
) -> list[Fact]:
    """What differs from run to run.

    Args:
        seconds: how long the run took.
        page: where MLflow shows the run.
        serve: the command that serves the page, where no server does.
    """
    state = git_state(root)
    changed = " and changes that are not committed" if state["dirty"] == "true" else ""
    commit = state["commit"]
    facts = [
        Fact("Published", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")),
        Fact("Commit", commit[:SHORT] + changed, commit_link(root, commit)),
        Fact("Data’s hash", _data_hash(root)),
        Fact("Params’ hash", _sha256(root / "params.yaml")[:SHORT]),
    ]
    if seconds is not None:
        facts.append(Fact("Run took", f"{int(seconds) // 60} min {int(seconds) % 60} s"))
    facts.append(Fact("Versions", ", ".join(_versions())))
    if page:
        facts.append(Fact("MLflow", "this run", page))
        facts += [Fact("served by", serve)] if serve else []
    return [Fact(*map(redact, fact)) for fact in facts]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _data_hash(root: Path) -> str:
    """DVC's hash of what prepare made of the data."""
    outs = lock_entries(root).get("prepare", {}).get("outs", [])
    found = next((str(out["md5"]) for out in outs if "md5" in out), "")
    return found[:SHORT] or "unknown"


def _versions() -> list[str]:
    found = [f"infalign {__version__}", f"Python {platform.python_version()}"]
    for name in LIBRARIES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:  # a library that this installation does without
            continue
    return found


def commit_link(root: Path, commit: str) -> str:
    """The page of a commit, where `origin` is a server that has one; without credentials."""
    told = git(root, "remote", "get-url", "origin", fails=True)
    url = told.removesuffix("/").removesuffix(".git")
    host = r"(\w[\w.-]*\.\w+"
    over_web = re.fullmatch(rf"https?://(?:[^@/]*@)?{host}(?::\d+)?)/(\S+)", url)
    over_ssh = re.fullmatch(rf"(?:ssh://)?[^@/]*@{host})(?::\d+/|[:/])(\S+)", url)
    found = over_web or over_ssh
    if found is None or commit == "none":
        return ""
    return f"https://{found[1]}/{found[2]}/commit/{commit}"


def ruling_of(decision: Decision, variant: str) -> Ruling | None:
    """What became of a candidate, for the report's first screen."""
    yes = decision.outcome in ("promoted", "champion")  # what was forced, the gate refused
    version_name = f"{model_name(decision.objective)} version {decision.version}"
    answer = {
        "promoted": f"Yes: {variant} is the champion now, {version_name}.",
        "forced": f"By force: {variant} is the champion now, {version_name}.",
        "champion": f"Yes: {variant} is the champion, {version_name}.",
        "refused": f"No: {variant} was refused, {version_name}.",
    }.get(decision.outcome)
    if answer is None:
        return None
    asked = ""
    if decision.verdict is not None:
        passed = sum(rule.passed for rule in decision.verdict.rules)
        names = ", ".join(rule.name for rule in decision.verdict.rules)
        asked = f" Of {len(decision.verdict.rules)} rules it passed {passed}: {names} were asked."
    return Ruling(yes, answer, redact(decision.sentence() + asked))
