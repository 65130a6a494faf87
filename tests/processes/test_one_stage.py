"""`python -m infalign`: arguments, exit codes, a full disk, and what it can do without."""

import contextlib
import errno
import gc
import os
import subprocess
import sys

import pytest
import torch
import yaml
from smoke import ROOT

from infalign.files import workspace
from infalign.files.stages import STAGES, stage_of
from infalign.processes.one_stage import apply_threads, import_stage, main
from infalign.settings.params import Run


@pytest.fixture
def project(tmp_path, smoke_tree):
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(smoke_tree))
    with contextlib.chdir(tmp_path):
        yield tmp_path


def test_instance_names():
    assert STAGES["align"].instance("helpful", "ctrl") == "align@helpful-ctrl"
    assert STAGES["evaluate"].instance("helpful") == "evaluate@helpful"
    assert STAGES["corpus"].instance() == "corpus"
    assert STAGES["hack"].instance("helpful", "ipo", "0.5", "1") == "hack@helpful-ipo-0.5-1"
    assert stage_of("align@helpful-ctrl") is STAGES["align"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["nothing"],
        ["align"],
        ["align", "--objective", "helpful"],
        ["sft", "--variant", "ctrl"],
        ["align", "--objective", "helpful", "--variant", "ctrl", "--kl-nats", "0.5"],
        ["contend", "--objective", "helpful", "--variant", "ipo", "--kl-nats", "0.5"],
    ],
)
def test_wrong_arguments_exit_with_2(project, arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "python -m infalign" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sft"], "results/prepare does not exist: run the stage that writes it"),
        (["align", "--objective", "x", "--variant", "ctrl"], "--objective 'x' is not one of"),
        (["align", "--objective", "helpful", "--variant", "y"], "--variant 'y' is not one of"),
        (
            ["hack", "--objective", "helpful", "--variant", "ipo", "--kl-nats=-1", "--seed", "0"],
            "--kl-nats -1 --seed 0: a KL budget must lie within 0.001 to 5 nats",
        ),
        (["corpus", "--params", "none.yaml"], "none.yaml does not exist"),
    ],
)
def test_bad_input_is_one_sentence_and_2(project, arguments, words, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (project / "results").exists()


def test_a_check_of_the_run_itself_that_fails_is_one_sentence_and_1(project, monkeypatch, capsys):
    from infalign.aligning.control import check_start

    monkeypatch.setattr(
        import_stage("corpus"), "run", lambda _: check_start(0.5, torch.zeros(2), 10, "cpu")
    )
    assert main(["corpus"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("corpus: before its first step the policy is not the reference")
    assert error.count("\n") == 1
    assert not (project / "results").exists()


def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(project, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(workspace.os, "replace", full)
    assert main(["corpus"]) == 1
    error = capsys.readouterr().err
    assert "No space left on device" in error
    assert "free space" in error
    assert not (project / "results" / "corpus").exists()
    monkeypatch.undo()
    assert main(["corpus"]) == 0
    assert (project / "results/corpus/corpus.json").exists()


def test_results_that_cannot_be_written_are_one_sentence(project):
    """The kernel refuses files of more than a KiB: no part of them is in results."""
    limited = f"ulimit -f 1; exec {sys.executable} -m infalign corpus"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        ["bash", "-c", limited], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr == (
        "corpus: File too large: free space or permit writing, then run again: finished work is "
        "kept.\n"
    )
    assert not (project / "results").exists()


def test_needs_no_prefect_mlflow_or_dvc(project):
    code = """
import sys
from importlib.machinery import PathFinder
class Hide(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.split(".")[0] in ("prefect", "mlflow", "dvc", "flows"):
            return None
        return super().find_spec(name, path, target)
sys.meta_path = [Hide if finder is PathFinder else finder for finder in sys.meta_path]
from importlib import import_module
from infalign.files.stages import STAGES
from infalign.processes.one_stage import main
for stage in STAGES:
    import_module(f"infalign.stages.{stage}")
for stage in ("corpus", "prepare", "sft"):
    assert main([stage]) == 0
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (project / "results/sft/policy/model.safetensors").exists()


def test_theory_imports_neither_torch_nor_pandas():
    code = "import sys, infalign.theory; print({'torch', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "set()", done.stderr


def test_garbage_is_looked_for_again_once_a_stage_is_loaded():
    assert import_stage("corpus").__name__ == "infalign.stages.corpus"
    assert gc.isenabled()
    with pytest.raises(ModuleNotFoundError):
        import_stage("nothing")
    assert gc.isenabled()


@pytest.mark.parametrize("text", ["run: {threads: 3}", "run: {}", "{}"])
def test_threads_that_the_file_lacks_are_the_default_ones(text, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "9")
    (tmp_path / "params.yaml").write_text(text)
    apply_threads(str(tmp_path / "params.yaml"))
    given = yaml.safe_load(text).get("run", {})
    assert os.environ["OMP_NUM_THREADS"] == str(Run(**given).threads)
