"""The comparisons run on a toy size, and their sides do the same work."""

import subprocess
import sys

import pytest
from smoke import ROOT

from benchmarks.bench_gpu import WORKS
from benchmarks.bench_trl import compare_samplers, compare_steps, same_work
from benchmarks.case import Case
from benchmarks.machine import gemm_flops, sampling_flops, step_flops
from benchmarks.turns import in_turns

TOY = Case(
    prompts=4,
    samples=2,
    response_tokens=6,
    vocab_size=320,
    prompt_tokens=120,
    hidden_size=16,
    intermediate_size=24,
    layers=1,
    heads=2,
    pool=8,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("case")
    TOY.save(folder)
    return folder


@pytest.mark.soak
def test_the_sampler_and_generate_draw_as_many_tokens(folder):
    steps = compare_samplers(folder, 4, warm=0, rounds=2)
    assert same_work(steps)["sampled"] == 4 * TOY.response_tokens
    assert all(step["seconds"] > 0 for taken in steps.values() for step in taken)


@pytest.mark.soak
def test_a_step_of_ours_has_the_whole_case(folder):
    (step,) = in_turns({"ours": ("ours", str(folder))}, warm=0, rounds=1)["ours"]
    assert step["sampled"] == step["trained"] == TOY.responses * TOY.response_tokens
    assert step["peak_mib"] >= step["base_mib"] > 50


def test_trl_does_the_same_work(folder):
    work = same_work(compare_steps(folder, warm=0, rounds=1))
    assert work == dict.fromkeys(("sampled", "trained"), TOY.responses * TOY.response_tokens)


def test_different_work_is_an_error():
    steps = {"ours": [{"sampled": 6, "trained": 6}], "trl": [{"sampled": 6, "trained": 5}]}
    with pytest.raises(RuntimeError, match="same work: trained"):
        same_work(steps)


def test_the_floor_of_a_step():
    """One layer, by hand: dense weights 4 * 16^2 + 3 * 16 * 24 = 2176, attention 2 * 16 a key."""
    prompt = 4 * 10 * 2 * (2176 + 32 * 5)
    reply = 4 * 2 * 6 * 2 * (2176 + 32 * 13)
    vocabulary = 4 * 2 * 6 * 2 * 16 * 320
    expected = 5 * (prompt + reply + vocabulary) + prompt + reply
    assert step_flops(TOY, 10) == expected
    assert sampling_flops(TOY, TOY.responses, 10) == prompt + reply + vocabulary
    assert gemm_flops(64, rounds=1) > 1e6


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks what is about to be renamed
def test_what_is_measured_on_a_gpu_runs_on_a_toy():
    command = [sys.executable, "-m", "benchmarks.bench_gpu", "--toy", "cpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len([line for line in lines if line.startswith("right  ")]) == 2 + 1 + 8 + 1
    assert not [line for line in lines if line.startswith("WRONG")]
    assert len([line for line in lines if " tokens/s " in line]) == len(WORKS)
    assert [line.split()[0] for line in lines if "win rate" in line] == ["helpful"] * 3 + [
        "harmless"
    ] * 3


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    from benchmarks import bench_gpu

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert bench_gpu.main([]) == 0
    assert capsys.readouterr().out == (
        "bench-gpu: torch sees no CUDA device, so nothing was measured.\n"
    )
