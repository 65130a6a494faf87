"""A champion is checked again, on real Prefect and MLflow: logged and pinned prompts, the alarm.

The evaluation is made up and the policies are tiny, so that whatever they answer today is drift.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from promotion_case import WORDS, write_made

from flows.runs.champion_check import Check, chosen, metrics
from flows.runs.drift_page import Past, as_markdown, page
from flows.serving.log import Log, asked_lately
from infalign.data.framing import asked
from infalign.deployment.deployed import Drawn, Request
from infalign.errors import InputError
from infalign.settings.params import Serving
from infalign.theory.procedures import best_of
from tests.flows.conftest import Project, artifacts, write_toy
from tests.flows.runs.test_notifying import heard as heard  # a fixture

pytestmark = pytest.mark.timeout(600)
WEBHOOK = "INFALIGN_TEST_WEBHOOK"


def write_log(folder: Path, model: str, texts: list[str]) -> None:
    """Answers as a server writes them."""
    log = Log(folder, Serving(), folder)
    for number, text in enumerate(texts):
        drawn = Drawn(
            dialogue=asked(text),
            prompt_tokens=4,
            procedure=best_of(2),
            temperature=1.0,
            responses=["yes", "no"],
            n_tokens=np.array([2, 2]),
            finished=np.array([True, True]),
            rewards=np.array([0.5, 0.1]),
            kept=0,
            calibrated=None,
        )
        log.add(f"chatcmpl-{number}", model, [drawn], [Request("best_of:2")], 0.01)
    log.close()


@pytest.fixture
def project(tmp_path: Path, tokenizer: Any, quiet: dict[str, str], prefect_api: str) -> Any:
    root = tmp_path / "project"
    write_toy(root)
    (root / "toy_stage.py").unlink()
    write_made(root, tokenizer)
    (root / "pinned.jsonl").write_text(
        "".join(json.dumps({"prompt": f"pinned {word}"}) + "\n" for word in WORDS)
    )
    (root / "count.py").write_text(
        "def count(dialogues, responses):\n    return [float(len(text)) for text in responses]\n"
    )
    tree = yaml.safe_load((root / "params.yaml").read_text())
    tree["data"]["suites"] = {"pinned": "pinned.jsonl"}
    count = {"kind": "function", "path": "count.py:count"}
    tree["promotion"]["suites"] = {"pinned": {"rule": "mean", "reward": count, "at_least": 0.0}}
    tree["drift"] |= {"samples": 4, "looks": 10}
    tree["schedule"]["notify"] = WEBHOOK
    (root / "params.yaml").write_text(yaml.safe_dump(tree))
    made = Project(root, quiet | {"PREFECT_API_URL": prefect_api, "HF_HUB_OFFLINE": "1"})
    yield made
    made.end()


def test_drift_is_seen_told_and_kept_over_time(
    project: Project, heard: tuple[str, list[Any]]
) -> None:
    address, told = heard
    project.environment[WEBHOOK] = address
    status, output = project.inside("run", "--promote")
    assert status == 0, output
    status, output = project.inside("evaluate-champion", "--prompts", "log")
    assert status == 2
    assert "drift.logs names no log of helpful" in output.strip().splitlines()[-1]
    params = project.root / "params.yaml"
    params.write_text(params.read_text().replace("logs: {}", "logs: {helpful: logs/helpful}"))
    log = project.root / "logs" / "helpful"
    write_log(log, "infalign-helpful/1", ["not here yet", "pinned one", "nor there"])
    told.clear()
    status, output = project.inside("evaluate-champion", "--prompts", "log")
    assert (status, told) == (0, [])
    few = "2 prompts of the last 7 days are in the log of helpful, 1 of suite left out: at least 8"
    assert few in output
    assert "monitor@helpful" not in project.runs("-registry")
    write_log(log, "infalign-harmless/1", [f"harmless {word}" for word in WORDS])
    write_log(log, "infalign-helpful/1", [f"quite another {a} {b}" for a in WORDS for b in "xy"])
    words = ["--prompts", "log", "--prompts", "suite"]
    status, output = project.inside("evaluate-champion", *words)
    assert status == 1
    last = next(line for line in output.splitlines() if "DRIFT" in line)
    assert "infalign-helpful version 1: win rate 0." in last
    assert "on 22 logged prompts" in last
    assert "suite pinned" in output
    [message] = told
    assert message["text"].startswith("infalign evaluate-champion: Drift. infalign-helpful version")
    suite, logged = project.runs("-registry")["monitor@helpful"]
    assert (suite.data.tags["infalign.prompts"], suite.data.tags["infalign.alarm"]) == (
        "suite",
        "false",
    )
    assert logged.data.tags["infalign.prompts"] == "log"
    assert "reference_reward" in logged.data.tags["infalign.drifted"]
    assert logged.data.metrics["left_out.suite"] == 1
    status, output = project.inside("evaluate-champion", "--prompts", "suite")
    assert status == 0, output
    text = (project.root / ".infalign" / "drift" / "helpful.html").read_text()
    assert "Page     .infalign/drift/helpful.html" in output
    assert "3 checks." in text
    assert text.count("<h2>") == 2
    assert text.count(f"{suite.data.metrics['suite.pinned.now']:.3f} on ") == 2  # both times
    shown = asyncio.run(artifacts(project))["drift-helpful"]
    assert "**log prompts**" in shown
    assert shown.count("| 1 | 10 |") == 2  # version and prompts of the suite's checks


def numbers(**alarms: bool) -> dict[str, Any]:
    names = ("win_rate", "reference_reward", "policy_reward", "prompt_length", "prompt_hidden")
    about = {"before": 0.8, "now": 0.7, "size": 0.1, "threshold": 0.05, "p_value": 0.2}
    found: dict[str, Any] = {name: about | {"alarm": alarms.get(name, False)} for name in names}
    found["win_rate"] |= {"low": 0.6, "high": 0.8}
    more = {"source": "fresh", "prompts": 40, "left_out": {}, "procedure": "best_of:4"}
    return found | more | {"level": 1e-5, "prompt_novel": None, "alarm": any(alarms.values())}


def test_the_sentence_names_what_has_drifted() -> None:
    calm = Check("helpful", "3", numbers()).sentence()
    assert calm.startswith("infalign-helpful version 3: win rate 0.700 on 40 fresh prompts, 0.800")
    assert "unlike training" not in calm
    assert calm.endswith(".")
    assert "DRIFT" not in calm
    said = Check("helpful", "3", numbers(prompt_length=True)).sentence()
    assert said.endswith("; beyond its bound: lengths of prompts are apart by: DRIFT.")


def test_the_page_shows_every_quantity_over_time() -> None:
    flat = metrics(numbers(win_rate=True))
    older = {name: flat[name] for name in flat if name.startswith(("win_rate", "reference"))}
    checks = [
        Past(86400.0 * day, str(day), "fresh", older if day < 3 else flat) for day in range(9)
    ]
    text = page("helpful", checks)
    assert text.count("<svg") == 5
    assert "1970-01-05 00:00" in text
    assert "0.700, alarm" in text
    assert "–" in text  # what older checks did not measure
    lines = as_markdown("helpful", checks).splitlines()
    assert lines[4].startswith("| check, UTC | version | prompts | win rate | reference reward |")
    assert lines[6].startswith("| 1970-01-09 00:00 | 8 | 40 | 0.700, alarm | 0.100 |")


@pytest.mark.parametrize("words", [["logs"], [], "new"])
def test_prompts_are_of_known_kinds(words: Any) -> None:
    with pytest.raises(InputError, match="fresh, log, suite"):
        chosen(words)


def test_what_was_asked_lately_is_of_this_model_and_not_old(tmp_path: Path) -> None:
    write_log(tmp_path, "infalign-helpful/1", ["one", "two", "one"])
    write_log(tmp_path, "infalign-harmless/2", ["three"])
    found = asked_lately(tmp_path, "infalign-helpful", 1.0)
    assert [row["prompt_id"] for row in found] == [asked("one").id, asked("two").id]
    assert asked_lately(tmp_path, "infalign-helpful", 1e-9) == []
