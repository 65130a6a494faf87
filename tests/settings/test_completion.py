"""What a params.yaml lacks is written into it: in its place, with its meaning, nothing else."""

from __future__ import annotations

import pytest
import yaml
from smoke import ROOT, merged

from infalign.errors import InputError
from infalign.settings.completion import completed
from infalign.settings.params import Objective, Params, check_params

SHIPPED = (ROOT / "params.yaml").read_text(encoding="utf-8")


def leaves(tree, prefix=""):
    for key, value in tree.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")


def without(key):
    """The shipped file without a key: its line, and the indented ones below it."""
    *parents, last = key.split(".")
    lines, at = SHIPPED.splitlines(keepends=True), 0
    for depth, part in enumerate([*parents, last]):
        start = f"{'  ' * depth}{part}:"
        at = next(i for i in range(at, len(lines)) if lines[i].startswith(start))
    deeper, end = "  " * len(parents) + " ", at + 1
    while end < len(lines) and (lines[end].startswith(deeper) or not lines[end].strip()):
        end += 1
    return "".join(lines[:at] + lines[end:])


def test_the_shipped_file_lacks_nothing():
    assert completed(SHIPPED, "params.yaml") == (SHIPPED, [])


def test_every_key_alone_is_put_back_and_all_else_stays():
    # Of an objective or a variant the file may have any; a section without a line is null.
    own = ("objectives.h", "align.variants.", "report.examples")
    keys = [key for key in leaves(yaml.safe_load(SHIPPED)) if not key.startswith(own)]
    assert len(keys) > 100
    for key in keys:
        text = without(key)
        whole, written = completed(text, "params.yaml")
        assert written == [key]
        assert check_params(yaml.safe_load(whole), "params.yaml") == Params(), key
        lines = iter(whole.splitlines())
        assert all(line in lines for line in text.splitlines()), key  # in their order
        again = completed(whole, "params.yaml")
        assert again == (whole, []), key


def test_a_key_stands_where_it_belongs_with_what_it_means():
    text = (
        "run:\n  seed: 3 # mine\n  # what follows is mine too\n  threads: 1\n\n\n# sft\nsft: {}\n"
    )
    whole, written = completed(text, "params.yaml")
    lines = whole.splitlines()
    assert lines[:3] == [
        "run:",
        "  seed: 3 # mine",
        "  objectives: [helpful, harmless]  # names in `objectives` to run",
    ]
    threads = lines.index("  threads: 1")
    assert lines[threads - 2].startswith("  device: auto  # ")
    assert lines[threads - 1] == "  # what follows is mine too"
    assert lines[threads + 1] == "  concurrency: 2  # stages side by side"
    assert "drift:  # The check of a champion on fresh, logged or pinned prompts" in lines
    assert [key for key in written if key.startswith("run.")][:1] == ["run.objectives"]
    assert "drift" in written
    assert "sft.epochs" in written
    tree = yaml.safe_load(whole)
    assert tree["sft"] == merged(yaml.safe_load(SHIPPED), {})["sft"]
    assert tree["run"]["seed"] == 3


def test_ones_own_objectives_and_variants_are_completed_too():
    text = (
        "run: {objectives: [brief], variants: [mine]}\n"
        "objectives:\n"
        "  brief:\n"
        "    procedure: best_of:2\n"
        "align:\n"
        "  variants:\n"
        "    mine: {}\n"
        "    ipo: {method: ipo}\n"
        "    far: {method: bonbon}  # why not\n"
        "compare: {variants: [mine, ipo], poison: {variants: [mine]}}\n"
        "promotion: {variant: mine}"
    )
    whole, written = completed(text, "params.yaml")
    tree = yaml.safe_load(whole)
    brief = Objective(procedure="best_of:2").model_dump()
    assert tree["objectives"] == {"brief": brief}
    assert "    mine: {reward: objective}\n" in whole
    assert "    ipo: {method: ipo}\n" in whole
    assert "    far: {method: bonbon, alpha: 0.005}  # why not\n" in whole
    assert {"objectives.brief.subset", "align.variants.mine.reward"} <= set(written)
    assert completed(whole, "params.yaml") == (whole, [])


def test_what_two_places_share_is_written_once():
    text = SHIPPED.replace(
        "  harmless:\n", "  other: &other {subset: a}\n  third: *other\n  harmless:\n"
    )
    whole, _ = completed(text, "params.yaml")
    objectives = yaml.safe_load(whole)["objectives"]
    assert objectives["other"] == objectives["third"]
    assert set(objectives["third"]) == set(Objective.model_fields)
    assert completed(whole, "params.yaml") == (whole, [])


def test_a_file_that_is_wrong_stays_as_it_is():
    for text in ("", "- 1", "run: [", "run: {sead: 1}", "drift:\n"):
        assert completed(text, "params.yaml") == (text, [])


def test_what_has_no_place_is_said():
    """What a reward and a part of a sum share: only the part has a weight."""
    text = (
        "run: {objectives: [helpful]}\n"
        "objectives:\n"
        "  helpful:\n"
        "    subset: a\n"
        "    judge: &mine\n"
        "      kind: function\n"
        "      path: mine.py:score\n"
        "    reward: {kind: sum, parts: [*mine]}\n"
    )
    check_params(yaml.safe_load(text), "params.yaml")
    with pytest.raises(InputError, match=r"lacks .*reward\.parts\.0\.weight.* \(&, \*, <<\)"):
        completed(text, "params.yaml")
