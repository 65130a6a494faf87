"""Scheduled runs: whose turn it is, what a killed backfill leaves, the Kubernetes job."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from flows.runs import nightly
from infalign.errors import InputError
from infalign.settings.params import check_params, load_params
from tests.flows.conftest import ROOT

RUN = str(uuid4())
HOLD = (
    "import sys; from pathlib import Path; from flows.children.locks import run_lock\n"
    "with run_lock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
)


class Server:
    """Prefect's answers about one run and those that its schedule meant for later."""

    def __init__(self, minutes_late: float, later: int = 0, **run: Any) -> None:
        due = datetime.now(UTC) - timedelta(minutes=minutes_late)
        known = {"auto_scheduled": True, "deployment_id": uuid4(), "run_count": 1}
        self.run = SimpleNamespace(**{"expected_start_time": due, **known, **run})
        self.later = [SimpleNamespace(auto_scheduled=True)] * later

    async def read_flow_run(self, _run: Any) -> Any:
        """The run itself."""
        return self.run

    async def read_flow_runs(self, flow_run_filter: Any, deployment_filter: Any) -> list[Any]:
        """Those that were due after it."""
        bounds = flow_run_filter.expected_start_time
        assert self.run.expected_start_time < bounds.after_ < bounds.before_
        assert deployment_filter.id.any_ == [self.run.deployment_id]
        return self.later

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Server]:
        """As Prefect's client is opened."""
        yield self


def params(**changes: Any) -> Any:
    """The project's params with another section `schedule`."""
    tree = load_params(ROOT / "params.yaml").model_dump(mode="json")
    return check_params({**tree, "schedule": tree["schedule"] | changes}, "params.yaml")


@pytest.mark.parametrize(
    ("server", "missed", "words"),
    [
        (Server(5), "skip", None),
        (Server(300), "skip", "and missed"),
        (Server(300), "latest", None),
        (Server(300, later=2), "latest", "a later one is due"),
        (Server(300, auto_scheduled=False), "skip", None),  # somebody asked for it
        (Server(300, run_count=2), "skip", None),  # it waited for an approval
    ],
)
def test_missed_runs(
    monkeypatch: pytest.MonkeyPatch, server: Server, missed: str, words: str | None
) -> None:
    monkeypatch.setattr(nightly, "get_client", server.opened)
    check = nightly.check_missed(RUN, params(missed=missed, late_minutes=60.0))
    if words is None:
        asyncio.run(check)
    else:
        with pytest.raises(nightly.Skipped, match=words):
            asyncio.run(check)


@pytest.mark.parametrize(
    ("overlap", "minutes", "words"),
    [("skip", "240.0", "another run is at work"), ("wait", "0.002", "for 0.002 minutes")],
)
def test_overlapping_runs_are_skipped_as_configured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overlap: str, minutes: str, words: str
) -> None:
    _project(tmp_path, overlap, minutes)
    monkeypatch.setattr(nightly, "get_client", Server(0).opened)
    monkeypatch.setattr(nightly, "POLL_SECONDS", 0.1)

    async def turn() -> None:
        async with nightly.turn(tmp_path, RUN, print):
            raise AssertionError("the workspace was taken")

    with _held(tmp_path), pytest.raises(nightly.Skipped, match=words):
        asyncio.run(turn())


def test_a_waiting_run_gets_its_turn_when_the_other_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _project(tmp_path, "wait", "1.0")
    monkeypatch.setattr(nightly, "get_client", Server(0).opened)
    monkeypatch.setattr(nightly, "POLL_SECONDS", 0.05)
    told: list[str] = []
    with _held(tmp_path) as other:

        async def turn() -> str:
            async with nightly.turn(tmp_path, RUN, lambda x: (told.append(x), other.kill())) as p:
                return str(p.schedule.overlap)

        assert asyncio.run(turn()) == "wait"
    assert told == ["Waiting for another run, which has the workspace."]


def _project(root: Path, overlap: str, minutes: str) -> None:
    text = (ROOT / "params.yaml").read_text()
    text = text.replace("overlap: wait", f"overlap: {overlap}")
    (root / "params.yaml").write_text(text.replace("minutes: 240.0", f"minutes: {minutes}"))


@contextlib.contextmanager
def _held(root: Path) -> Any:
    """Another process that has the workspace."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        try:
            yield holder
        finally:
            holder.kill()


def test_params_of_a_killed_backfill_are_put_back(tmp_path: Path) -> None:
    file = Path(shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml"))
    before = file.read_bytes()
    nightly.set_aside(tmp_path)
    file.write_text(file.read_text().replace("kl_nats: 0.5", "kl_nats: 2.0"))
    assert file.read_bytes() != before
    nightly.put_back(tmp_path)
    nightly.put_back(tmp_path)  # nothing more to do
    assert file.read_bytes() == before
    assert not (tmp_path / ".infalign" / "backfill").exists()


@pytest.mark.parametrize("budgets", [[0.5, -1.0], [0.5, 50.0], [0.5, "many"]])
def test_a_bad_budget_is_refused_before_anything_runs(budgets: Any) -> None:
    with pytest.raises(InputError, match=r"kl_nats = .*: align\.kl_nats"):
        nightly._check_budgets(params(), budgets)


POOL = json.loads((ROOT / "deploy" / "kubernetes-work-pool.json").read_text())
# What prefect-kubernetes wants to find in a job.
REQUIRED = {
    "apiVersion": "batch/v1",
    "kind": "Job",
    "metadata": {"labels": {}},
    "spec": {
        "template": {
            "spec": {
                "parallelism": 1,
                "completions": 1,
                "restartPolicy": "Never",
                "containers": [{"name": "prefect-job"}],
            }
        }
    },
}


def test_every_placeholder_of_the_work_pool_is_a_variable_and_is_used() -> None:
    import jsonschema

    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(POOL["job_configuration"])))
    assert used == set(POOL["variables"]["properties"])
    jsonschema.Draft202012Validator.check_schema(POOL["variables"])
    for name, one in POOL["variables"]["properties"].items():
        if "default" in one:
            jsonschema.validate(one["default"], one)
        assert "default" in one or name in ("name", "labels", "command", "image"), name
    jsonschema.validate({"image": "registry.example/infalign:1"}, POOL["variables"])


def test_the_kubernetes_job_is_whole() -> None:
    from jsonpatch import JsonPatch
    from prefect.utilities.templating import apply_values

    properties = POOL["variables"]["properties"]
    values = {name: one["default"] for name, one in properties.items() if "default" in one}
    values |= {"image": "registry.example/infalign:1", "gpus": 1, "labels": {"team": "a"}}
    made = apply_values(POOL["job_configuration"], values, remove_notset=False)
    job = made["job_manifest"]
    changes = JsonPatch.from_diff(job, REQUIRED)
    assert [c for c in changes if c["op"] in ("add", "replace")] == []
    assert job["metadata"]["labels"] == {"team": "a"}
    pod = job["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert container["image"] == values["image"]
    assert container["env"]["INFALIGN_ROOT"] == "/project"
    assert container["resources"]["limits"] == {"memory": "4Gi", "nvidia.com/gpu": 1}
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounted == {"project": container["env"]["INFALIGN_ROOT"]}
    assert {volume["name"] for volume in pod["volumes"]} == set(mounted)
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == "infalign"
    assert job["spec"]["ttlSecondsAfterFinished"] == 3600
    # Only what Prefect fills in when a run begins is still open.
    assert set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(job))) <= {"name", "command"}


def test_the_automation_fails_what_falls_silent_and_nothing_that_ended() -> None:
    from flows.runs.deployments import zombie_automation

    found = zombie_automation(3.0)
    assert found.trigger.within == timedelta(minutes=3)
    assert found.trigger.after == {"prefect.flow-run.heartbeat"}
    assert {"prefect.flow-run.heartbeat", "prefect.flow-run.Completed"} <= found.trigger.expect
    assert found.actions[0].state.value == "CRASHED"
