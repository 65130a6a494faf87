"""`infalign up`, `down` and `schedule` on real servers: nothing is left, nothing else is ended."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from flows.children.processes import end_tree
from flows.runs.deployments import read_deployments
from flows.services import services
from flows.services.database import Database
from flows.services.prefect_app import authorization, key_path, open_api, project_key
from infalign.errors import InputError
from tests.flows.conftest import ROOT, Project, write_toy
from tests.flows.services.strangers import PAGE, PATIENCE, REBOUND, check_strangers, files_with

PASSWORD = "pl4nted-p4ssword"


def free_port() -> int:
    """A port that nobody has at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, quiet: dict[str, str]) -> Iterator[Project]:
    """A toy project with its services up."""
    root = tmp_path_factory.mktemp("services") / "project"
    write_toy(root)
    write_prefect(root)
    ports = {"PREFECT_PORT": str(free_port()), "MLFLOW_PORT": str(free_port())}
    project = Project(root, quiet | ports)
    try:
        status, output = project.run("up", timeout=400)
        assert status == 0, output
        assert re.search(r"Up in \d+ s", output)
        yield project
    finally:
        status, output = project.run("down")
        assert status == 0, output
        assert project.survivors() == []
        project.end()


def write_prefect(root: Path) -> None:
    """prefect.yaml with a schedule that fires every few seconds, and without a real policy."""
    tree = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    nightly = tree["deployments"][0]
    nightly["schedules"] = [{"interval": 20, "timezone": "Etc/UTC", "active": False}]
    nightly["parameters"] = {"promote": False}
    (root / "prefect.yaml").write_text(yaml.safe_dump(tree))
    params = root / "params.yaml"
    params.write_text(params.read_text().replace("overlap: wait", "overlap: skip"))


def url(project: Project, name: str, path: str) -> str:
    """An address of one of the servers."""
    return f"http://127.0.0.1:{project.environment[f'{name}_PORT']}{path}"


def ask(project: Project, path: str, body: dict[str, Any] | None = None) -> Any:
    """What Prefect's API answers."""
    with open_api(project.root, int(project.environment["PREFECT_PORT"])) as client:
        response = client.post(path, json=body or {})
    assert response.status_code < 300, response.text
    return response.json()


def test_up_twice_changes_nothing(up: Project) -> None:
    before = services.running(up.root)
    assert sorted(before) == ["mlflow", "prefect", "worker"]
    plain = {k: v for k, v in up.environment.items() if not k.endswith("_PORT")}
    status, output = Project(up.root, plain).inside("up")
    assert status == 0, output
    assert output.startswith("Already up.")
    assert services.running(up.root) == before
    assert httpx.get(url(up, "PREFECT", "/api/health")).json() is True
    assert httpx.get(url(up, "MLFLOW", "/health")).text == "OK"


def test_up_on_other_ports_or_another_database_is_one_sentence(up: Project) -> None:
    for extra, words in (
        ({"PREFECT_PORT": str(free_port())}, "but prefect is up on port"),
        ({"DB": f"postgresql://me:{PASSWORD}@127.0.0.1/x"}, "is up on SQLite"),
    ):
        status, output = up.inside("up", **extra)
        assert status == 2, output
        assert words in output
        assert PASSWORD not in output
        assert len(output.strip().splitlines()) == 1


def test_only_loopback_is_listened_on(up: Project) -> None:
    members = [psutil.Process(n.pid) for n in services.running(up.root).values()]
    pids = {p.pid for m in members for p in [m, *m.children(recursive=True)]}
    found = [c for c in psutil.net_connections("inet") if c.pid in pids]
    assert {c.laddr.ip for c in found if c.status == psutil.CONN_LISTEN} == {"127.0.0.1"}


def test_no_web_page_can_have_the_worker_run_a_command(up: Project) -> None:
    with open_api(up.root, int(up.environment["PREFECT_PORT"])) as client:
        csrf = {name: client.headers[name] for name in client.headers if "csrf" in name}
    check_strangers(url(up, "PREFECT", "/api"), authorization(project_key(up.root)), csrf)


def test_the_operator_can_use_prefects_page(up: Project) -> None:
    """What the page does: it reads its settings, asks for the key, and then asks the API."""
    port = up.environment["PREFECT_PORT"]
    typed = authorization(key_path(up.root).read_text().strip())
    with httpx.Client(base_url=url(up, "PREFECT", ""), timeout=PATIENCE) as browser:
        assert "<html" in browser.get("/", follow_redirects=True).text
        settings = browser.get("/ui-settings").json()
        assert settings["api_url"] == url(up, "PREFECT", "/api")
        assert (settings["auth"], settings["csrf_enabled"]) == ("BASIC", True)
        for name in ("127.0.0.1", "localhost"):
            page = {"Origin": f"http://{name}:{port}"}
            asks = {"Access-Control-Request-Method": "POST"} | page
            asks["Access-Control-Request-Headers"] = "authorization,prefect-csrf-token"
            assert browser.options("/api/flows/filter", headers=asks).status_code == 200
            answer = browser.get("/api/admin/version", headers=typed | page)
            assert answer.status_code == 200
            assert answer.headers["access-control-allow-origin"] == page["Origin"]


def test_no_web_page_can_change_what_mlflow_holds(up: Project) -> None:
    create, read = "experiments/create", "experiments/get?experiment_id=0"
    address = url(up, "MLFLOW", "/api/2.0/mlflow")
    with httpx.Client(base_url=address, timeout=PATIENCE) as page:
        for headers in ({"Origin": PAGE}, {"Host": REBOUND}):
            answer = page.post(create, json={"name": "strange"}, headers=headers)
            assert answer.status_code == 403
            assert "access-control-allow-origin" not in answer.headers
        assert page.get(read, headers={"Host": REBOUND}).status_code == 403
        assert "access-control-allow-origin" not in page.get(read, headers={"Origin": PAGE}).headers
        assert page.get(read).status_code == 200


@pytest.fixture(scope="module")
def deployed(up: Project) -> Project:
    """The same project with its deployments on the server, none of them switched on."""
    status, output = up.run("schedule")
    assert status == 0, output
    assert re.search(r"^nightly +off +every 0:00:20 Etc/UTC$", output, re.MULTILINE)
    assert re.search(r"^evaluate-champion +off +0 6 \* \* \* Etc/UTC$", output, re.MULTILINE)
    assert re.search(r"^backfill +on demand$", output, re.MULTILINE)
    return up


def test_the_key_is_in_its_file_and_nowhere_else(deployed: Project) -> None:
    key = project_key(deployed.root)
    assert files_with(deployed.root, key) == [".infalign/prefect-key"]
    status, output = deployed.inside("up")
    assert status == 0, output
    assert "Key      in .infalign/prefect-key, for Prefect's page" in output
    assert key not in output
    for note in services.running(deployed.root).values():
        service = psutil.Process(note.pid)
        for process in [service, *service.children(recursive=True)]:
            assert key not in " ".join(process.cmdline())


@pytest.mark.soak
def test_a_scheduled_run_fires_by_itself(deployed: Project) -> None:
    up = deployed
    status, output = up.run("schedule", "--on", "nightly")
    assert status == 0, output
    assert re.search(r"^nightly +on +every 0:00:20 Etc/UTC$", output, re.MULTILINE)
    run = _finished(up, "nightly")
    assert run["auto_scheduled"]
    assert run["state"]["message"] in ("5 made.", "5 restored.", "5 unchanged."), run["state"]
    assert (up.root / "results" / "report" / "index.html").exists()
    assert files_with(up.root, project_key(up.root)) == [".infalign/prefect-key"]
    # Again: what is on stays on; then off, and no run is left that would still fire.
    status, output = up.run("schedule")
    assert status == 0, output
    assert re.search(r"^nightly +on ", output, re.MULTILINE)
    status, output = up.run("schedule", "--off", "nightly")
    assert status == 0, output
    assert re.search(r"^nightly +off ", output, re.MULTILINE)
    assert [a["name"] for a in ask(up, "/automations/filter")] == [
        "infalign: runs without a heartbeat"
    ]
    assert (
        ask(up, "/flow_runs/count", {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}})
        == 0
    )


def _finished(project: Project, deployment: str, seconds: float = 240) -> dict[str, Any]:
    """The first run of a deployment that came to its end, and did something."""
    deadline = time.monotonic() + seconds
    runs: list[dict[str, Any]] = []
    while time.monotonic() < deadline:
        runs = ask(project, "/flow_runs/filter", {"deployments": {"name": {"any_": [deployment]}}})
        done = [r for r in runs if r["state_type"] in ("COMPLETED", "FAILED", "CRASHED")]
        done = [r for r in done if r["state_name"] != "Skipped"]
        if done:
            assert done[0]["state_type"] == "COMPLETED", done[0]["state"]
            return done[0]
        time.sleep(0.5)
    raise AssertionError([(r["state_name"], r["expected_start_time"]) for r in runs])


@pytest.mark.soak
def test_evaluating_no_champion_is_skipped_and_a_backfill_puts_params_back(
    deployed: Project,
) -> None:
    up = deployed
    before = (up.root / "params.yaml").read_bytes()
    for name, parameters in (("evaluate-champion", {}), ("backfill", {"kl_nats": [0.25, 1.0]})):
        found = ask(up, "/deployments/filter", {"deployments": {"name": {"any_": [name]}}})
        body = {"parameters": found[0]["parameters"] | parameters, "state": {"type": "SCHEDULED"}}
        run = ask(up, f"/deployments/{found[0]['id']}/create_flow_run", body)
        state = _ended(up, run["id"])
        if name == "backfill":
            assert state["message"] == "2 budgets.", state
        else:
            assert (state["name"], state["message"]) == (
                "Skipped",
                "no model has the alias 'champion' yet.",
            )
    assert (up.root / "params.yaml").read_bytes() == before
    client = up_client(up)
    experiment = client.get_experiment_by_name("infalign").experiment_id
    names = {run.info.run_name for run in client.search_runs([experiment])}
    assert {"backfill 0.25 nats", "backfill 1 nats", "backfill: back"} <= names


def up_client(project: Project) -> Any:
    """A client of the MLflow server that is up."""
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=url(project, "MLFLOW", ""))


def _ended(project: Project, run_id: str, seconds: float = 240) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with open_api(project.root, int(project.environment["PREFECT_PORT"])) as client:
            run = client.get(f"/flow_runs/{run_id}").json()
        if run["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
            return dict(run["state"])
        time.sleep(0.5)
    raise AssertionError(run["state"])


def test_the_server_takes_the_kubernetes_work_pool(up: Project) -> None:
    template = json.loads((ROOT / "deploy" / "kubernetes-work-pool.json").read_text())
    body = {"name": "kubernetes", "type": "kubernetes", "base_job_template": template}
    assert ask(up, "/work_pools/", body)["base_job_template"] == template


@pytest.mark.soak
def test_down_ends_a_run_in_progress_and_all_of_its_processes(deployed: Project) -> None:
    """Takes the services down; the last test that needs them."""
    up = deployed
    toy = up.root / "toy_stage.py"
    toy.write_text(toy.read_text().replace("work, out = ", "time.sleep(120)\nwork, out = "))
    shutil.rmtree(up.root / "results", ignore_errors=True)
    found = ask(up, "/deployments/filter", {"deployments": {"name": {"any_": ["nightly"]}}})
    ask(up, f"/deployments/{found[0]['id']}/create_flow_run", {"state": {"type": "SCHEDULED"}})
    deadline = time.monotonic() + 120
    while not any("toy_stage.py" in line for line in up.survivors()):
        assert time.monotonic() < deadline, up.survivors()
        time.sleep(0.2)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as bystander:
        status, output = up.run("down")
        assert status == 0, output
        assert output.split("\n")[:3] == ["worker ended.", "mlflow ended.", "prefect ended."]
        assert up.survivors() == []
        assert bystander.poll() is None
        bystander.kill()
    assert services.running(up.root) == {}
    assert up.run("down") == (0, "Nothing was up.\n")


@pytest.mark.parametrize("name", ["prefect", "mlflow"])
def test_a_port_in_use_is_one_sentence_and_nothing_starts(
    tmp_path: Path, quiet: dict[str, str], name: str
) -> None:
    variable = services.VARIABLES[name]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ports = {"PREFECT_PORT": str(free_port()), "MLFLOW_PORT": str(free_port()), variable: port}
        status, output = Project(tmp_path, quiet | ports).inside("up")
    assert status == 2, output
    assert f"port {port} is not free for {name}" in output
    assert variable in output
    assert len(output.strip().splitlines()) == 1
    assert not list((tmp_path / ".infalign" / "services").glob("*.json"))


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_service_that_does_not_start_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nap = [sys.executable, "-c", "import time; time.sleep(60)"]
    fail = [
        sys.executable,
        "-c",
        "print('bad store postgresql://me:hidden@h/d'); raise SystemExit(1)",
    ]
    monkeypatch.setattr(services, "command", lambda n, *_: fail if n == "mlflow" else nap)
    monkeypatch.setattr(services, "answers", lambda name, _port: name == "prefect")
    ports = {"prefect": free_port(), "mlflow": free_port()}
    with pytest.raises(InputError, match="mlflow ended while it started") as caught:
        services.up(tmp_path, ports, "", print)
    assert "hidden" not in str(caught.value)
    assert services.running(tmp_path) == {}
    assert not list((tmp_path / ".infalign" / "services").glob("*.json"))


def test_a_process_that_got_the_same_number_later_is_not_ended(tmp_path: Path) -> None:
    folder = services.folder(tmp_path)
    folder.mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as other:
        note = {"name": "prefect", "pid": other.pid, "started": 1.0, "port": 1, "database": "x"}
        (folder / "prefect.json").write_text(json.dumps(note))
        (folder / "mlflow.json").write_text("{")
        told: list[str] = []
        services.down(tmp_path, told.append)
        assert told == ["Nothing was up."]
        assert other.poll() is None
        other.kill()


def test_a_tree_is_ended_across_sessions_and_refusals() -> None:
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "print('deaf', flush=True); time.sleep(60)"
    )
    code = (
        "import subprocess, sys\n"
        f"subprocess.Popen([sys.executable, '-c', {stubborn!r}], start_new_session=True)\n"
        "import time; time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True
    ) as leader:
        assert leader.stdout is not None
        assert leader.stdout.readline() == b"deaf\n"  # of its child: the signal is ignored
        child = psutil.Process(leader.pid).children()[0]
        begun = time.monotonic()
        end_tree(leader.pid, grace_seconds=1.0)
        assert time.monotonic() - begun >= 1.0
        assert leader.wait(60) == -signal.SIGTERM
        assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(
    "address",
    [
        f"mysql://me:{PASSWORD}@host/db",
        f"postgresql://me:{PASSWORD}@host",
        f"postgresql://me:{PASSWORD}@/db",
        f"postgresql://me:{PASSWORD}@host:port/db",
        f"host=localhost password={PASSWORD}",
    ],
)
def test_an_address_that_is_no_database_is_one_sentence_without_it(
    tmp_path: Path, quiet: dict[str, str], address: str
) -> None:
    status, output = Project(tmp_path, dict(quiet)).inside("up", DB=address)
    assert status == 2, output
    assert "DB is not the address of a PostgreSQL database" in output
    assert PASSWORD not in output
    assert len(output.strip().splitlines()) == 1


def test_both_servers_get_the_database_and_the_command_line_does_not(tmp_path: Path) -> None:
    database = Database(f"postgresql://me:{PASSWORD}@db.example:5433/infalign?sslmode=require")
    assert database.prefect_url.startswith(f"postgresql+asyncpg://me:{PASSWORD}@db.example:5433/")
    assert database.mlflow_url.endswith("?sslmode=require&options=-csearch_path%3Dmlflow")
    assert database.label == "postgresql://db.example:5433/infalign"
    assert PASSWORD not in repr(database)
    ports = {"prefect": 1, "mlflow": 2}
    for name, variable in (
        ("prefect", "PREFECT_API_DATABASE_CONNECTION_URL"),
        ("mlflow", "MLFLOW_BACKEND_STORE_URI"),
    ):
        assert PASSWORD in services.environment(name, tmp_path, ports, database)[variable]
        assert PASSWORD not in " ".join(services.command(name, tmp_path, ports))
    assert PASSWORD not in str(services.environment("worker", tmp_path, ports, database))


def test_every_deployment_is_valid_against_its_flow() -> None:
    from prefect.cli.deploy._models import PrefectYamlModel
    from prefect.flows import load_flow_from_entrypoint
    from prefect.utilities.callables import parameter_schema

    tree = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    model = PrefectYamlModel.model_validate(tree)
    assert [d.name for d in model.deployments] == ["nightly", "evaluate-champion", "backfill"]
    for deployment in read_deployments(ROOT):
        flow = load_flow_from_entrypoint(deployment["entrypoint"])
        known = parameter_schema(flow).properties
        assert set(deployment["parameters"]) <= set(known), deployment["name"]
        assert deployment["work_pool"]["name"] == services.POOL
        for schedule in deployment["schedules"]:
            assert schedule["active"] is False
            assert schedule["timezone"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--on", "weekly"], "--on 'weekly' is not a deployment with a schedule"),
        (["--off", "backfill"], "--off 'backfill' is not a deployment with a schedule"),
        (["--on", "nightly", "--off", "nightly"], "both switched on and off"),
    ],
)
def test_a_mistake_in_schedule_is_one_sentence(
    tmp_path: Path, quiet: dict[str, str], arguments: list[str], words: str
) -> None:
    for name in ("params.yaml", "prefect.yaml"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    status, output = Project(tmp_path, dict(quiet)).inside("schedule", *arguments)
    assert status == 2, output
    assert words in output
    assert len(output.strip().splitlines()) == 1
