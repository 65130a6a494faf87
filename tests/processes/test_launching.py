"""A stage as a job: templates, and jobs of stand-ins for clusters: done, failed, ended."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from smoke import ROOT, merged

from infalign.errors import CheckFailed, InputError
from infalign.processes import launching
from infalign.processes.launching import CLUSTERS, Job, Kubernetes, launch, render
from infalign.settings.params import load_params
from tests.processes import kubectl, slurm

SLOW = """\
#!/bin/bash
#SBATCH --output="{{ folder }}/log"
#SBATCH --nodes={{ nodes }}
export INFALIGN_JOB="{{ folder }}"
cd "{{ root }}"
if [ -z "$SLURM_RESTART_COUNT" ]; then echo started; sleep 120; fi
exec {{ command }}
"""


def _job(**changes):
    given = {
        "root": Path("/data/project"),
        "instance": "align@my_helpful-ctrl",
        "folder": Path("/data/project/.infalign/jobs/align@my_helpful-ctrl/0a1b2c"),
        "arguments": ("align", "--objective", "my_helpful", "--variant", "ctrl"),
        "nodes": 2,
        "processes": 4,
        "threads": 3,
        "gpus": 4,
    }
    return Job(**(given | changes))


@pytest.mark.parametrize("gpus", [0, 4])
def test_slurms_template_is_a_script(tmp_path, gpus):
    text = render(ROOT / "deploy" / "slurm.sh", _job(gpus=gpus).fields)
    (tmp_path / "job.sh").write_text(text)
    assert not subprocess.run(["bash", "-n", str(tmp_path / "job.sh")], check=True).returncode
    lines = text.splitlines()
    assert lines[0] == "#!/bin/bash"
    assert "#SBATCH --nodes=2" in lines
    assert "#SBATCH --cpus-per-task=12" in lines
    assert ("#SBATCH --gpus-per-node=4" in lines) == bool(gpus)
    assert not any(line.startswith("#SBATCH") and "{" in line for line in lines)
    command = f"{sys.executable} -m infalign align --objective my_helpful --variant ctrl"
    assert lines[-1].strip() == command


@pytest.mark.parametrize("gpus", [0, 4])
def test_kubernetes_takes_the_template(tmp_path, gpus):
    """Every field is one that the API knows: what its client does not know gets lost."""
    from kubernetes.client import V1Job, V1Service

    text = render(ROOT / "deploy" / "kubernetes-job.yaml", _job(gpus=gpus).fields)
    service, job = yaml.safe_load_all(text)
    for kind, tree in ((V1Service, service), (V1Job, job)):
        assert kind.from_dict(tree).model_dump(by_alias=True, exclude_none=True) == tree
    name = job["metadata"]["name"]
    assert name == service["metadata"]["name"] == "infalign-align-my-helpful-ctrl-0a1b2c"
    assert service["spec"]["selector"] == {"job-name": name}
    spec = job["spec"]["template"]["spec"]
    assert spec["subdomain"] == name
    container = spec["containers"][0]
    assert container["args"][:3] == ["-m", "infalign", "align"]
    limits = container["resources"].get("limits")
    assert {"runAsUser", "runAsGroup"} == set(spec["securityContext"])
    assert limits == ({"nvidia.com/gpu": "4"} if gpus else None)
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("#SBATCH --time={{ hours }}\n", "'hours' is undefined: a job has name, root, folder"),
        ("a\n{% if %}\n", "job.sh, line 2: "),
    ],
)
def test_a_wrong_template_is_one_sentence(tmp_path, text, words):
    (tmp_path / "job.sh").write_text(text)
    with pytest.raises(InputError, match=r"run\.job_template: ") as found:
        render(tmp_path / "job.sh", _job().fields)
    assert words in str(found.value)


def test_without_the_clusters_commands_a_sentence(tmp_path, smoke_tree, monkeypatch):
    tree = merged(smoke_tree, {"run": {"launcher": "slurm"}})
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tree))
    params = load_params(tmp_path / "params.yaml")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="slurm needs `sbatch` on PATH"):
        launch(params, tmp_path, "prepare", ["prepare"], models=False)
    assert not (tmp_path / ".infalign").exists()


@pytest.mark.parametrize(
    ("said", "alive"),
    [
        ("", False),
        ('{"items": [{"kind": "Service"}, {"kind": "Job"}]}', True),
        ('{"items": [{"kind": "Job", "status": {"active": 1}}]}', True),
        (
            '{"items": [{"kind": "Job", "status": '
            '{"conditions": [{"type": "Failed", "status": "True"}]}}]}',
            False,
        ),
        (
            '{"kind": "Job", "status": '
            '{"conditions": [{"type": "SuccessCriteriaMet", "status": "True"}]}}',
            True,
        ),
    ],
)
def test_whether_a_job_of_kubernetes_is_alive(tmp_path, monkeypatch, said, alive):
    (tmp_path / "said").write_text(said)
    program = tmp_path / "kubectl"
    program.write_text(f'#!/bin/sh\n[ "$1" = get ] && cat {tmp_path}/said\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert Kubernetes("job", Path("job.yaml")).is_alive() == alive


def test_a_cluster_that_refuses_is_one_sentence(tmp_path, monkeypatch):
    for name in ("sbatch", "kubectl"):
        (tmp_path / name).write_text("#!/bin/sh\necho 'error: no such partition' >&2; exit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for kind in CLUSTERS.values():
        with pytest.raises(CheckFailed, match=r"did not take job\.sh: error: no such partition"):
            kind("job", Path("job.sh")).submit()


def _project(root, tree, launcher):
    """A project with the smallest settings, whose stages are jobs."""
    tree = merged(tree, {"run": {"launcher": launcher}})
    root.mkdir()
    (root / "params.yaml").write_text(yaml.safe_dump(tree))
    (root / "models" / "none").mkdir(parents=True)
    shutil.copytree(ROOT / "deploy", root / "deploy")


def _on_cluster(tmp_path, tree, launcher, standin):
    """A project's folder, and an environment with a stand-in for a cluster."""
    root, cluster = tmp_path / "a project", tmp_path / "cluster"
    _project(root, tree, launcher)
    yield root, standin.install(cluster) | {"PYTHONPATH": str(ROOT)}
    for group in cluster.glob("jobs/*/group"):
        with contextlib.suppress(OSError, ValueError):
            os.killpg(int(group.read_text()), signal.SIGKILL)


@pytest.fixture
def project(tmp_path, smoke_tree):
    yield from _on_cluster(tmp_path, smoke_tree, "slurm", slurm)


@pytest.fixture
def pods(tmp_path, smoke_tree):
    yield from _on_cluster(tmp_path, smoke_tree, "kubernetes", kubectl)


def _run(project, *arguments):
    root, environment = project
    command = [sys.executable, "-m", "infalign", *arguments]
    return subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, timeout=120
    )


def _start(project, *arguments):
    """Start a stage whose job sleeps at first; the submitter, when the job is at work."""
    root, environment = project
    (root / "deploy" / "slurm.sh").write_text(SLOW)
    command = [sys.executable, "-m", "infalign", *arguments]
    submitter = subprocess.Popen(
        command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    _wait(lambda: any(path.read_text() for path in (root / ".infalign").glob("jobs/*/*/log")))
    return submitter


def _wait(is_true):
    deadline = time.monotonic() + 60
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _jobs(project):
    return sorted(Path(project[1]["SLURM_STANDIN"]).iterdir())


def test_a_stage_is_a_job_and_its_words_and_code_come_back(project):
    root, _ = project
    failed = _run(project, "prepare")
    assert failed.returncode == 2, failed
    assert "prepare is job 1 of slurm" in failed.stdout
    assert "results/corpus does not exist: run the stage that writes it." in failed.stdout
    assert _run(project, "corpus").returncode == 0
    assert len(_jobs(project)) == 1, "a light stage is no job"
    done = _run(project, "prepare")
    assert done.returncode == 0, done
    assert (root / "results" / "prepare" / "prompts.parquet").exists()
    left = [path.name for path in (root / ".infalign" / "jobs" / "prepare").iterdir()]
    assert left in ([], ["lock"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_whoever_is_interrupted_cancels_the_job(project, number):
    submitter = _start(project, "prepare")
    submitter.send_signal(number)
    assert submitter.wait(30) != 0
    assert not (_jobs(project)[0] / "alive").exists()
    assert not list((project[0] / ".infalign").glob("jobs/*/job.json"))


def test_the_job_of_a_submitter_that_was_killed_is_ended_by_the_next(project):
    assert _run(project, "corpus").returncode == 0
    submitter = _start(project, "prepare")
    submitter.kill()
    submitter.wait()
    first = _jobs(project)[0]
    assert (first / "alive").exists()
    shutil.copy(ROOT / "deploy" / "slurm.sh", project[0] / "deploy" / "slurm.sh")
    done = _run(project, "prepare")
    assert done.returncode == 0, done
    assert not (first / "alive").exists()
    assert len(_jobs(project)) == 2


def test_a_job_that_the_cluster_queues_again_is_waited_for(project):
    assert _run(project, "corpus").returncode == 0
    submitter = _start(project, "prepare")
    subprocess.run(["scontrol", "requeue", "1"], env=project[1], check=True)
    out, _ = submitter.communicate(timeout=90)
    assert submitter.returncode == 0, out
    assert (project[0] / "results" / "prepare" / "prompts.parquet").exists()


def test_a_job_that_is_gone_without_a_word_was_killed(tmp_path, monkeypatch, smoke_tree):
    """The log and the word of its end may come late on a file system that is shared."""
    _project(tmp_path / "project", smoke_tree, "slurm")
    params = load_params(tmp_path / "project" / "params.yaml")
    for name, value in slurm.install(tmp_path / "slurm").items():
        monkeypatch.setenv(name, value)
    (tmp_path / "project" / "deploy" / "slurm.sh").write_text(SLOW.replace("sleep 120", "exit 9"))
    for name in ("POLL_SECONDS", "ASK_SECONDS", "LATE_SECONDS"):
        monkeypatch.setattr(launching, name, 0.2)
    assert launch(params, tmp_path / "project", "prepare", ["prepare"], models=False) == 137


def test_a_cluster_that_does_not_answer_for_a_while_kills_nothing(project, monkeypatch):
    assert _run(project, "corpus").returncode == 0
    submitter = _start(project, "prepare")
    busy = Path(project[1]["SLURM_STANDIN"]) / "busy"
    busy.touch()
    time.sleep(17)  # it has asked in vain
    subprocess.run(["scontrol", "requeue", "1"], env=project[1], check=True)
    _wait((project[0] / "results" / "prepare" / "prompts.parquet").exists)
    busy.unlink()
    out, _ = submitter.communicate(timeout=90)
    assert submitter.returncode == 0, out
    assert b"squeue does not answer" in out


def test_two_submitters_of_one_stage_wait_for_each_other(project):
    assert _run(project, "corpus").returncode == 0
    submitter = _start(project, "prepare")
    root, environment = project
    command = [sys.executable, "-m", "infalign", "prepare"]
    with subprocess.Popen(command, cwd=root, env=environment) as second:
        time.sleep(4)
        assert len(_jobs(project)) == 1
        submitter.kill()
        submitter.communicate()
        _wait(lambda: len(_jobs(project)) == 2)
        second.kill()


def test_two_nodes_of_two_processes_meet(project):
    """As `sft`, in which every process has a part; both nodes are this machine."""
    root, _ = project
    tree = yaml.safe_load((root / "params.yaml").read_text())
    tree["run"] |= {"processes": 2, "nodes": 2, "threads": 1, "device": "cpu"}
    (root / "params.yaml").write_text(yaml.safe_dump(tree))
    for stage in ("corpus", "prepare", "sft"):
        done = _run(project, stage)
        assert done.returncode == 0, done
    assert json.loads((root / "results" / "sft" / "metrics.json").read_text())
    assert not [p for p in psutil.process_iter() if str(root) in " ".join(_command(p))]


def test_a_stage_is_a_job_of_kubernetes(pods):
    root, environment = pods
    failed = _run(pods, "prepare")
    assert failed.returncode == 2, failed
    assert "results/corpus does not exist: run the stage that writes it." in failed.stdout
    assert _run(pods, "corpus").returncode == 0
    done = _run(pods, "prepare")
    assert done.returncode == 0, done
    assert (root / "results" / "prepare" / "prompts.parquet").exists()
    left = [path.name for path in Path(environment["KUBECTL_STANDIN"]).iterdir()]
    assert len(left) == 2
    assert all(name.endswith(".deleted") for name in left), "a job is deleted with its service"


def test_whoever_is_interrupted_deletes_the_pods(pods):
    root, environment = pods
    template = root / "deploy" / "kubernetes-job.yaml"
    template.write_text(
        template.read_text().replace("'python ", "'echo started; sleep 99; python ")
    )
    command = [sys.executable, "-m", "infalign", "prepare"]
    submitter = subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.PIPE)
    _wait(lambda: any(Path(environment["KUBECTL_STANDIN"]).glob("*/log")))
    submitter.send_signal(signal.SIGINT)
    assert submitter.wait(30) != 0
    left = [path.name for path in Path(environment["KUBECTL_STANDIN"]).iterdir()]
    assert [name.endswith(".deleted") for name in left] == [True]


def _command(process):
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []
