"""The page's parts: numbers as text, colours, figures, kept responses, health."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest

from infalign.page import figures, health, palette, plots, style
from infalign.page.examples import dialogue, kept_of, own_draws, shown
from infalign.page.words import decimal, percent, percent_range, points, procedure_words


@pytest.mark.parametrize(
    ("value", "text"), [(0.0311, "+3.1"), (-0.0311, "−3.1"), (-0.0001, "0.0"), (0.0, "0.0")]
)
def test_points_have_their_sign(value, text):
    assert points(value) == text


def test_undefined_numbers_are_dashes():
    assert decimal(None) == percent(None) == "–"
    assert percent_range(None, None) == ""
    assert percent(0.87649) == "87.6"
    assert percent_range(-0.01, 1.02) == "[−1.0, 102.0]"


def test_procedures_in_words():
    assert procedure_words("worst_of:8") == "Worst-of-8"
    assert procedure_words("standard") == "Standard sampling"
    assert procedure_words("rank:2/3") == "rank:2/3"


def luminance(color: str) -> float:
    """Relative luminance of a hex colour, as WCAG 2 defines it."""
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def contrast(first: str, second: str) -> float:
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("form", ["light", "dark"])
def test_colours_stand_out(form):
    paper = getattr(palette.PAPER, form)
    for ink in palette.INKS:
        color = getattr(ink, form)
        if ink in palette.WORDS:
            for ground in (paper, getattr(palette.SHADE, form)):
                assert contrast(color, ground) >= 4.5, ink
        elif ink.name.startswith("series"):
            assert contrast(color, paper) >= 2.9, ink


def test_colours_are_told_apart_when_they_become_variables():
    assert len({ink.light for ink in palette.INKS}) == len(palette.INKS)


def test_the_page_writes_with_those_colours_only():
    """Whatever the style sheet calls `color` is an ink that stands out from the page's grounds."""
    said = set(re.findall(r"(?<![-\w])color: (?!light)([^;}]+)", style.STYLE))
    assert {f"var(--{ink.name})" for ink in palette.WORDS} <= said
    assert said <= {f"var(--{ink.name})" for ink in palette.WORDS} | {"inherit"}
    grounds = set(re.findall(r"background: ([^;}]+)", style.STYLE))
    assert grounds <= {"var(--paper)", "var(--shade)", "white"}


def small_figure():
    return figures.draw(lambda axes: axes[0].plot([0, 1], [0, 1], label="a"), 3, 2)


def test_svg_stands_alone():
    svg = figures.inline_svg(small_figure(), "mine", 'a "figure" <of> ours', "It <shows> this.")
    assert svg.startswith('<svg role="img" aria-labelledby="mine-title mine-desc"')
    assert "http" not in svg
    assert '<title id="mine-title">a &quot;figure&quot; &lt;of&gt; ours</title>' in svg
    assert '<desc id="mine-desc">It &lt;shows&gt; this.</desc>' in svg
    assert all(i.startswith("mine-") for i in re.findall(r'\bid="([^"]+)"', svg))
    assert set(re.findall(r'href="(.)', svg)) <= {"#"}
    assert "var(--muted)" in svg
    assert palette.MUTED.light not in svg


def test_files_are_the_same_every_time(tmp_path):
    for name in ("a.png", "b.png"):
        figures.save_png(small_figure(), tmp_path / name)
    first, second = ((tmp_path / name).read_bytes() for name in ("a.png", "b.png"))
    assert first == second
    assert b"Software" not in first
    svgs = {figures.inline_svg(small_figure(), "x", "", "") for _ in range(2)}
    assert len(svgs) == 1


def test_running_mean_by_hand(monkeypatch):
    monkeypatch.setattr(plots, "RUNNING", 2)
    np.testing.assert_allclose(plots._running_mean([1, 3, 5, 5]), [1, 2, 4, 5])


@pytest.mark.parametrize(("cells", "bins"), [(33, 11), (17, 17), (5, 5), (65, 13), (59, 20)])
def test_bins_share_the_cells_equally(cells, bins):
    assert plots._bins(cells) == bins


def test_policies_on_top_of_each_other_can_be_drawn():
    same = plots.Point("a", 0.5, 0.5, 0.5, 0.0, 0.0)
    panel = plots.Frontier("t", [0.0, 0.1], [0.5, 0.6], {}, [same])
    figure = plots.frontier([panel], 0.5, ["a"])
    assert all(np.isfinite([*axis.get_xlim(), *axis.get_ylim()]).all() for axis in figure.axes)
    flat = {"reference": np.zeros(4), "a": np.zeros(4)}
    plots.histograms(flat, flat, 4, ["a"])


def test_many_policies_with_long_names_can_be_drawn():
    order = [f"a_variant_with_quite_a_long_name_{i}" for i in range(14)]
    points = [plots.Point(name, 0.6, 0.5, 0.7, 0.4, 0.1) for name in order]
    methods = {name: ([0.0, 0.5], [0.5, 0.6]) for name in order}
    panel = plots.Frontier("t", [0.0, 0.5], [0.5, 0.8], methods, points)
    figure = plots.frontier([panel], 0.5, order)
    assert all(axis.get_position().height > 0.2 for axis in figure.axes)
    plots.families([plots.Family("t", [1], {p.policy: [p] for p in points})], order)


def test_more_variants_than_colours_differ_by_marker():
    styles = [palette.series(position) for position in range(12)]
    assert len({(style.color, style.marker) for style in styles}) == 12


def case(procedure: str, samples: int = 12):
    rewards = np.array([[0.2, 0.9, 0.1, 0.5, 2.0, -2.0, *[0.0] * (samples - 6)]])
    return SimpleNamespace(
        procedure=procedure, rewards={"reference": rewards, "a": rewards}, variants=["a"]
    )


@pytest.mark.parametrize(
    ("procedure", "kept"),
    [("standard", 0), ("best_of:4", 1), ("worst_of:4", 2), ("best_of:5", 4), ("rank:2/4", 0)],
)
def test_the_kept_response_is_one_of_the_first_n(procedure, kept):
    assert kept_of(case(procedure), "a", 0, list(range(6))) == kept


def test_policies_show_draws_of_other_numbers():
    found = case("best_of:5")
    assert own_draws(found, "reference") == [0, 1, 2, 3, 4]
    assert own_draws(found, "a") == [5, 6, 7, 8, 9]
    assert own_draws(case("best_of:5", 8), "a") == [5, 6, 7, 0, 1]  # no others are left
    assert own_draws(case("standard"), "a") == [4, 5, 6, 7]


def test_the_kept_draw_is_among_those_that_are_shown():
    assert shown([5, 6, 7, 8, 9], 9) == [5, 6, 7, 9]
    assert shown([5, 6, 7, 8, 9], 6) == [5, 6, 7, 8]


def test_dialogue_has_a_turn_a_line():
    text = "\n\nHuman: Hi.\n\nAssistant: Yes?\n\nHuman: Bye.\n\nAssistant:"
    assert dialogue(text) == "Human: Hi.\nAssistant: Yes?\nHuman: Bye."


def test_health_names_what_looks_wrong():
    lines = [health.Line("sft", True, ""), health.Line("sample", False, "")]
    assert health.verdict(lines) == "1 of 2 fine; look at sample"
    assert health.verdict(lines[:1]) == "1 of 1 fine"


def test_a_training_off_its_budget_is_unhealthy():
    history = [{"kl": 0.0, "calibrated": 0.5}] * 9 + [{"kl": 0.7, "calibrated": 0.8}]
    data = SimpleNamespace(name="o", methods={"v": "exp:10"}, histories={"v": history})
    (line,) = health._align(data, 0.5)
    assert line.stage == "align@o-v"
    assert not line.healthy
    assert "0.700 nats of 0.500" in line.text
