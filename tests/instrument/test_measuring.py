"""A measurement against plain loops, its symmetries, and what it refuses."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infalign.errors import InputError
from infalign.files.names import SELECTING
from infalign.instrument.measurement import Measurement
from infalign.instrument.measuring import measure
from infalign.theory.planning import prompts_needed, samples_needed, win_rate_noise
from infalign.theory.winrates import bootstrap_interval, bootstrap_intervals

Ragged = list[list[float]]


def rows(rewards: Ragged, **columns: Ragged) -> list[dict[str, object]]:
    """Rows of one side: prompt p0, p1, … with a list of rewards each."""
    return [
        {"prompt_id": f"p{p}", "reward": reward, **{n: x[p][i] for n, x in columns.items()}}
        for p, row in enumerate(rewards)
        for i, reward in enumerate(row)
    ]


def slow(n: int, ours: list[float], theirs: list[float], judge=None, keep=max) -> float:
    """Every pair of N-subsets of one prompt; ties among the kept share equally.

    judge: the two sides' rewards by the judge; None for the selecting reward itself.
    """
    judged = judge or (ours, theirs)

    def kept(values: list[float], judged: list[float]) -> list[tuple[float, float]]:
        found = []
        for chosen in itertools.combinations(range(len(values)), n):
            best = keep(values[i] for i in chosen)
            same = [i for i in chosen if values[i] == best]
            found += [(judged[i], 1.0 / len(same)) for i in same]
        return found

    total = weight = 0.0
    for (a, wa), (b, wb) in itertools.product(kept(ours, judged[0]), kept(theirs, judged[1])):
        total += wa * wb * (1.0 if a > b else 0.5 if a == b else 0.0)
        weight += wa * wb
    return total / weight


side = st.lists(
    st.lists(st.integers(-2, 2).map(float), min_size=2, max_size=5), min_size=3, max_size=3
)


@settings(max_examples=40, deadline=None)
@given(side, side, st.sampled_from(["best_of", "worst_of"]))
def test_win_rates_of_unequal_samples_with_ties_are_those_of_plain_loops(
    ours: Ragged, theirs: Ragged, kind: str
) -> None:
    judge = [[-x * (i + 1) for i, x in enumerate(row)] for row in ours]
    other = [[x * x for x in row] for row in theirs]
    found = measure(
        rows(theirs, judge=other),
        {"mine": rows(ours, judge=judge)},
        f"{kind}:2",
        judges=["judge"],
        replicates=10,
    )
    keep = max if kind == "best_of" else min
    for n in {row["n"] for row in found.by_n}:
        for name, rated in ((SELECTING, None), ("judge", (judge, other))):
            wanted = np.mean(
                [
                    slow(n, ours[p], theirs[p], rated and (rated[0][p], rated[1][p]), keep)
                    for p in range(3)
                ]
            )
            (row,) = found.of(found.by_n, n=n, judge=name)
            assert row["win_rate"] == pytest.approx(wanted, abs=1e-12)
    assert found.row("mine")["win_rate"] == pytest.approx(
        found.of(found.by_n, n=2, judge=SELECTING)[0]["win_rate"]
    )


def random_sides(seed: int, prompts: int = 30, kl: bool = True) -> tuple[list, dict[str, list]]:
    rng = np.random.default_rng(seed)

    def one(shift: float, spent: float) -> list[dict[str, object]]:
        many = rng.integers(4, 9, prompts)
        rewards = [rng.normal(shift, 1, m).tolist() for m in many]
        kls = [rng.gamma(2, spent / 2, m).tolist() for m in many]
        judge = [(np.array(row) + rng.normal(0, 1, len(row))).tolist() for row in rewards]
        return rows(rewards, judge=judge, **({"kl": kls} if kl and spent else {}))

    return one(0, 0), {"mine": one(0.7, 0.5), "other": one(0.4, 0.3)}


def test_order_and_scale_of_what_is_read_change_nothing() -> None:
    reference, policies = random_sides(0)
    found = measure(reference, policies, "best_of:2", judges=["judge"], replicates=50)
    rng = np.random.default_rng(1)

    def turned(side: list[dict]) -> list[dict]:
        """Shuffled, the selecting reward mapped by an increasing function."""
        mapped = [row | {"reward": math.exp(row["reward"])} for row in side]
        return [mapped[i] for i in rng.permutation(len(mapped))]

    again = measure(
        turned(reference),
        {name: turned(side) for name, side in policies.items()},
        "best_of:2",
        judges=["judge"],
        replicates=50,
    )
    for row, other in zip(found.rows, again.rows, strict=True):
        for name, value in row.items():
            assert other[name] == (value if isinstance(value, str) else pytest.approx(value))
    assert again.ties == found.ties


def test_both_sides_together_win_once() -> None:
    reference, policies = random_sides(2, kl=False)
    there = measure(reference, {"mine": policies["mine"]}, "best_of:4", replicates=20)
    back = measure(policies["mine"], {"ref": reference}, "best_of:4", replicates=20)
    for n in (1, 2, 4):
        one, other = (m.of(m.by_n, n=n)[0]["win_rate"] for m in (there, back))
        assert one + other == pytest.approx(1.0, abs=1e-12)
    same = measure(reference, {"itself": reference}, "best_of:2", replicates=20)
    assert same.row("itself")["win_rate"] == pytest.approx(0.5, abs=1e-12)


def test_differences_are_paired_on_the_prompts() -> None:
    reference, policies = random_sides(3)
    found = measure(reference, policies, "best_of:2", replicates=200, seed=4)
    (gap,) = found.differences
    each = {
        name: [
            slow(
                2,
                *([r["reward"] for r in s if r["prompt_id"] == f"p{p}"] for s in (side, reference)),
            )
            for p in range(30)
        ]
        for name, side in policies.items()
    }
    order = sorted(range(30), key=lambda p: f"p{p}")  # prompts are resampled in this order
    wanted = np.array([each["mine"][p] - each["other"][p] for p in order])
    low, high = bootstrap_interval(wanted, replicates=200, seed=4)
    assert (gap["difference"], gap["low"], gap["high"]) == pytest.approx(
        (wanted.mean(), low, high), abs=1e-12
    )
    row = found.row("mine")
    low, high = bootstrap_interval([each["mine"][p] for p in order], replicates=200, seed=4)
    assert (row["low"], row["high"]) == pytest.approx((low, high), abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 40), st.integers(1, 4), st.integers(0, 3))
def test_many_intervals_are_those_of_one_at_a_time(prompts: int, columns: int, seed: int) -> None:
    data = np.random.default_rng(seed).normal(size=(columns, prompts))
    found = bootstrap_intervals(data, 60, seed)
    wanted = [bootstrap_interval(column, replicates=60, seed=seed) for column in data]
    assert found == pytest.approx(np.array(wanted), abs=1e-13)


def test_kl_is_known_from_whatever_tells_it() -> None:
    reference, policies = random_sides(5, kl=False)
    mine = policies["mine"]
    rng = np.random.default_rng(6)
    ratios = rng.normal(0.5, 0.2, len(mine))
    logp = rng.normal(-9, 1, len(mine))
    told = [row | {"log_ratio": r} for row, r in zip(mine, ratios, strict=True)]
    split = [
        row | {"logp": p, "reference_logp": p - r}
        for row, r, p in zip(mine, ratios, logp, strict=True)
    ]
    said = [
        row | {"logp": p, "response": f"y{i}"}
        for i, (row, p) in enumerate(zip(mine, logp, strict=True))
    ]
    known = [
        {
            "prompt_id": r["prompt_id"],
            "reward": r["reward"],
            "logp": p - x,
            "response": r["response"],
        }
        for r, p, x in zip(said, logp, ratios, strict=True)
    ]
    means = [np.mean(ratios[[r["prompt_id"] == f"p{p}" for r in mine]]) for p in range(30)]
    for side, base in ((told, reference), (split, reference), (said, known)):
        row = measure(base, {"mine": side}, "best_of:2", replicates=20).row("mine")
        assert row["kl"] == pytest.approx(np.mean(means))
        assert row["kl_se"] == pytest.approx(np.std(means, ddof=1) / math.sqrt(30))
    none = measure(reference, {"mine": mine}, "best_of:2", replicates=20)
    assert (
        none.row("mine")["kl"]
        is none.row("mine")["efficiency"]
        is none.row("mine")["limit"]
        is None
    )
    assert "has no column kl, log_ratio, or logp with reference_logp" in none.notes[0]
    part = measure(
        [*known[:-1], known[-1] | {"response": "else"}], {"mine": said}, "best_of:2", replicates=20
    )
    assert part.row("mine")["kl"] is None
    assert "add the column reference_logp (99 % of them" in part.notes[0]


def test_two_estimates_of_a_kl_that_disagree_are_noted() -> None:
    reference, policies = random_sides(7)
    mine = [row | {"log_ratio": row["kl"] + 3.0} for row in policies["mine"]]
    found = measure(reference, {"mine": mine}, "best_of:2", replicates=20)
    assert "one of kl and log_ratio is wrong" in found.notes[0]


def test_a_judges_peak_is_the_best_n() -> None:
    """The judge prefers the middle of what the selecting reward likes."""
    rng = np.random.default_rng(8)

    def one(shift: float) -> list[dict[str, object]]:
        x = rng.normal(shift, 1, (60, 16))
        return rows(x.tolist(), judge=(-np.abs(x - 1.2)).tolist())

    found = measure(one(0), {"mine": one(0.8)}, "best_of:4", judges=["judge"], replicates=50)
    (peak,) = found.of(found.peaks, judge="judge")
    curve = {row["n"]: row["win_rate"] for row in found.of(found.by_n, judge="judge")}
    assert set(curve) == {1, 2, 4, 8, 16}
    assert peak["n"] == max(curve, key=curve.__getitem__) < 16
    assert peak["fall"] == pytest.approx(curve[peak["n"]] - curve[16])
    assert peak["low"] > 0
    (own,) = found.of(found.peaks, judge=SELECTING)
    assert own["fall"] == pytest.approx(own["win_rate"] - found.by_n[4]["win_rate"])


def test_ties_and_few_levels_are_said() -> None:
    rng = np.random.default_rng(9)
    reference, mine = (
        rows(rng.integers(0, 2, (20, 8)).astype(float).tolist(), kl=np.full((20, 8), 0.1).tolist())
        for _ in range(2)
    )
    found = measure(reference, {"mine": mine}, "best_of:2", replicates=20)
    assert found.ties["reference"] > 0.9
    assert any("efficiencies go by an estimate with ties" in note for note in found.notes)
    row = found.row("mine")
    assert row["tied_limit"] < row["limit"]
    assert "with ties" in str(found)


def test_what_a_width_takes_holds_where_it_is_done() -> None:
    """As many prompts, or samples, as it says: the interval is that wide, by simulation."""
    rng = np.random.default_rng(10)

    def drawn(prompts: int, samples: int) -> Measurement:
        easy = rng.normal(0, 0.5, (prompts, 1))  # what prompts differ by
        reference = rng.normal(0, 1, (prompts, samples))
        mine = rng.normal(0.5, 1, (prompts, samples)) + easy
        return measure(
            rows(reference.tolist()), {"mine": rows(mine.tolist())}, "best_of:2", width=0.05
        )

    (first,) = drawn(100, 16).needed
    assert first["more_prompts"] > 20
    (second,) = drawn(first["prompts"], 16).needed
    assert second["now"] == pytest.approx(0.05, rel=0.2)
    row = drawn(first["prompts"], 16).row("mine")
    assert row["high"] - row["low"] == pytest.approx(0.05, rel=0.25)
    (wide,) = drawn(40, 16).needed
    assert wide["samples"] is None
    assert wide["why"] == "no number of samples is enough on so few prompts"


def test_samples_needed_follow_the_theory_where_prompts_are_alike() -> None:
    rng = np.random.default_rng(11)
    kl, prompts, samples = 0.3, 300, 32
    u = rng.random((prompts, samples))
    noise = win_rate_noise("standard", "identity", kl)
    found = measure(
        rows(rng.random((prompts, samples)).tolist()),
        {"mine": rows(np.sqrt(u).tolist())},
        "standard",
        width=0.012,
        replicates=50,
    )
    (row,) = found.needed
    assert row["samples"] == pytest.approx(samples_needed(noise, 0.012, prompts), rel=0.35)
    assert row["prompts"] == pytest.approx(prompts_needed(noise, 0.012, samples), rel=0.35)


def refused(*arguments: object, **options: object) -> str:
    with pytest.raises(InputError) as error:
        measure(*arguments, **options)  # type: ignore[arg-type]
    return str(error.value)


def test_sides_that_do_not_fit_are_named() -> None:
    reference, policies = random_sides(12)
    cut = [row for row in policies["mine"] if row["prompt_id"] != "p7"]
    said = refused(reference, {"mine": cut}, "best_of:2")
    assert said.startswith("mine lacks 1 prompts that reference has, such as 'p7'")
    said = refused(reference, {"mine": policies["mine"]}, "best_of:8")
    assert "samples of prompt" in said
    assert "the procedure draws 8" in said
    far = [row | {"prompt_id": f"q{row['prompt_id']}"} for row in cut]
    assert "have no prompt in common, such as 'p0' and 'qp0'" in refused(reference, {"mine": far})
    assert "no policy is given" in refused(reference)
    assert "write best_of" not in refused(reference, policies, "best_off:2")
    assert "best_off:2" in refused(reference, policies, "best_off:2")
    assert "which is none of ['mine', 'other']" in refused(
        reference, policies, transforms={"theirs": "raw"}
    )
    assert "give kl_nats" in refused(reference, policies, "best_of:2", transforms={"mine": "auto"})
    assert "transformation 'exp:many' cannot be read" in refused(
        reference, policies, "best_of:2", transforms={"mine": "exp:many"}
    )
    found = measure(reference, {"mine": cut}, "best_of:2", common=True, replicates=20)
    assert found.prompts == 29
    assert found.notes == ["1 prompts were left out that not every file has in full."]
    whole = [[r for r in s if r["prompt_id"] != "p7"] for s in (reference, policies["mine"])]
    assert measure(whole[0], {"mine": whole[1]}, "best_of:2", replicates=20).rows == found.rows


def test_ids_on_one_side_and_texts_on_both_meet_by_the_texts() -> None:
    rng = np.random.default_rng(13)
    texts = [f"Question {9 - p}?" for p in range(5)]
    reference = [
        {"prompt_id": f"p{p}", "prompt": texts[p], "reward": float(r)}
        for p, r in itertools.product(range(5), rng.normal(size=4))
    ]
    mine = [{"prompt": text, "reward": float(r)} for text in texts for r in rng.normal(size=4)]
    found = measure(reference, {"mine": mine}, "best_of:2", replicates=20)
    assert found.prompts == 5


def test_what_trl_logs_of_its_completions_is_measured(tmp_path: Path) -> None:
    """Parquet a step: conversations, completions, a column named for the reward function."""
    rng = np.random.default_rng(15)

    def log(folder: Path, shift: float) -> Path:
        folder.mkdir()
        for step in range(4):
            prompts = [[{"role": "user", "content": f"Question {p}?"}] for p in range(6)] * 2
            columns = {
                "step": [step] * 12,
                "prompt": prompts,
                "completion": [[{"role": "assistant", "content": f"{i}"}] for i in range(12)],
                "calibrated_reward": rng.normal(shift, 1, 12),
                "advantage": rng.normal(0, 1, 12),
            }
            pq.write_table(pa.table(columns), folder / f"completions_{step:05d}.parquet")
        return folder

    places = log(tmp_path / "reference", 0), [log(tmp_path / "mine", 1)]
    found = measure(*places, "best_of:4", reward="calibrated_reward", replicates=20)
    assert found.policies == ["mine"]
    assert (found.prompts, found.samples["mine"]) == (6, [8, 8, 8])
    assert found.row("mine")["win_rate"] > 0.6


def test_a_measurement_is_shown_everywhere(tmp_path: Path) -> None:
    reference, policies = random_sides(14)
    policies["<i>"] = policies.pop("other")
    found = measure(
        reference,
        policies,
        ["best_of:2", "standard"],
        judges=["judge"],
        transforms={"mine": "exp:5", "<i>": "raw"},
        replicates=50,
    )
    text = str(found)
    assert "method's limit" in text
    assert max(map(len, text.splitlines())) < 120
    again = json.loads(found.to_json())
    assert again["rows"][0]["win_rate"] == found.rows[0]["win_rate"]
    found.save_page(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    for shown in (found._repr_html_(), page):
        assert "<svg" in shown
        assert f"{100 * found.row('mine')['win_rate']:.1f}" in shown
        assert "&lt;i&gt;" in shown
        assert "<i>" not in shown
        assert ">nan" not in shown.lower()
        assert "http" not in shown
    with pytest.raises(InputError, match="cannot be written"):
        found.save_page(tmp_path / "no" / "page.html")
    with pytest.raises(KeyError):
        found.row("nobody")


@pytest.mark.soak
def test_a_million_rows(tmp_path: Path) -> None:
    """Exact, in less than 2 GiB; the time is printed."""
    import resource
    import subprocess
    import sys
    import time

    rng = np.random.default_rng(0)
    for name, shift in (("ref", 0.0), ("mine", 0.5)):
        with open(tmp_path / f"{name}.jsonl", "w") as stream:
            for p in range(10_000):
                for r in rng.normal(shift, 1, 50):
                    row = {"prompt": f"What is {p}, in a few words?", "reward": r, "kl": 0.3}
                    stream.write(json.dumps(row) + "\n")
    start = time.monotonic()
    command = [sys.executable, "-m", "flows.cli", "measure", "--reference", "ref.jsonl"]
    subprocess.run([*command, "--policy", "mine.jsonl", "--json"], cwd=tmp_path, check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"{time.monotonic() - start:.1f} s, {peak:.2f} GiB")
    assert peak < 2
