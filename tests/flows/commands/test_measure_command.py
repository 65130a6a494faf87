"""`infalign measure` in a folder that is no project."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from flows.cli import main
from infalign.instrument.measuring import measure


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with samples and nothing else."""
    rng = np.random.default_rng(0)
    for name, shift in (("ref", 0.0), ("mine", 0.7), ("other", 0.4)):
        rows = (
            {"prompt": f"q{p}", "score": float(r), "judge": float(r + rng.normal()), "kl": 0.4}
            for p in range(20)
            for r in rng.normal(shift, 1, 8)
        )
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(["measure", *arguments])
    captured = capsys.readouterr()
    return int(end.value.code or 0), captured.out, captured.err


GIVEN = ("--reference", "ref.jsonl", "--policy", "mine.jsonl", "--policy", "b=other.jsonl")


def test_the_command_says_what_the_function_does(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--reward", "score", "--judge", "judge", "--bootstrap", "50", "--seed", "3")
    status, out, err = said(capsys, *GIVEN, *options, "--json", "--page", "page.html")
    found = measure(
        "ref.jsonl",
        {"mine": "mine.jsonl", "b": "other.jsonl"},
        reward="score",
        judges=["judge"],
        replicates=50,
        seed=3,
    )
    assert status == 0
    assert json.loads(out) == json.loads(found.to_json())
    assert err == "Written to page.html.\n"
    assert "<svg" in (place / "page.html").read_text()
    status, out, _ = said(capsys, *GIVEN, *options, "--transform", "mine=exp:10")
    assert status == 0
    assert "method's limit" in out
    assert not (place / ".infalign").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (GIVEN, "ref.jsonl has no column 'reward' but prompt, score, judge, kl: name one"),
        (("--reference", "no.jsonl", "--policy", "mine.jsonl"), "no.jsonl does not exist."),
        (("--reference", "ref.jsonl"), "no policy is given"),
        ((*GIVEN, "--page", "page.txt"), "--page page.txt must end in .html"),
        ((*GIVEN, "--policy", "mine.jsonl"), "mine is given twice"),
        ((*GIVEN, "--transform", "mine"), "--transform mine: write NAME=SPELLING"),
        ((*GIVEN, "--reward", "score", "--procedure", "best_of"), "best_of"),
        ((*GIVEN, "--reward", "score", "--procedure", "best_of:16"), "the procedure draws 16"),
        ((*GIVEN, "--reward", "score", "--width", "0"), "width is 0"),
        ((*GIVEN, "--reward", "score", "--bootstrap", "0"), "replicates is 0"),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: tuple[str, ...], words: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = said(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("infalign: ")
    assert words in err
    assert len(err.splitlines()) == 1
