"""Every kind of page in a real Chromium: nothing for axe-core to find, nothing that is too wide,
nothing asked for, and a script that does what it says. `make soak` fetches axe-core."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import infalign
from flows.runs import drift_page
from infalign.files.workspace import Workspace
from infalign.page import comparison
from infalign.page.published import Fact, Ruling, published
from infalign.stages import report
from tests.page.browser import Browser, browser, faults_of
from tests.stages import report_case

pytestmark = pytest.mark.soak


@pytest.fixture(scope="module")
def seen() -> Iterator[Browser]:
    """One Chromium for all pages."""
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of every kind."""
    root = tmp_path_factory.mktemp("pages")
    params = report_case.case_params()
    report_case.write_inputs(root, params)
    report_case.run_evaluate(root, params)
    workspace = Workspace(params, root, "report")
    report.run(workspace)
    workspace.publish(report.needs(params).outputs)
    plain = root / "results" / "report" / "index.html"
    copy = root / "copy.html"
    facts = [Fact("Commit", "0123456789", "https://example.org/o/r/commit/0"), Fact("Took", "3 s")]
    ruling = Ruling(False, "No: ctrl was refused.", "It fails champion.")
    copy.write_text(published(plain.read_text(), facts, {"helpful": ruling}))
    measured, compared = root / "measured.html", root / "compared.html"
    _measurement().save_page(measured)
    data = _comparison()
    compared.write_text(comparison.render_comparison(data, comparison.plates(data)))
    checked = root / "checked.html"
    checked.write_text(drift_page.page("helpful", _checks()))
    return {
        "report": plain,
        "published": copy,
        "measured": measured,
        "compared": compared,
        "checked": checked,
    }


def _checks() -> list[drift_page.Past]:
    """A week of checks on two kinds of prompts, made up."""
    numbers = {"win_rate.before": 0.86, "win_rate.threshold": 0.05, "prompts": 64.0}
    return [
        drift_page.Past(
            1.79e9 + 86400 * day, "3", source, numbers | {"win_rate.now": 0.9 - day / 50}
        )
        for source in ("fresh", "log")
        for day in range(7)
    ]


def _measurement() -> infalign.measure:  # type: ignore[valid-type]
    rng = np.random.default_rng(0)

    def rows(shift: float) -> list[dict[str, object]]:
        return [
            {"prompt": f"q{p}", "reward": r, "other": r + rng.normal(), "kl": 0.4}
            for p in range(30)
            for r in rng.normal(shift, 1, 16)
        ]

    policies = {"mine": rows(0.6), "<other>": rows(0.3)}
    return infalign.measure(rows(0.0), policies, ["best_of:4", "standard"], judges=["other"])


def _comparison() -> comparison.Comparison:
    """Two methods at two budgets, made up."""
    curves, gains, phrases = [], [], []
    judges, procedures = ("selecting", "independent", "gold"), ("best_of:4", "standard")
    for variant, kl, judge in itertools.product(("ctrl", "rlhf"), (0.2, 0.5), judges):
        rate = 0.6 + kl / 2 + 0.05 * (variant == "ctrl")
        at = {"variant": variant, "kl_nats": kl, "kl": kl, "kl_se": 0.01, "judge": judge}
        at |= {"low": rate - 0.01, "high": rate + 0.01, "win_rate": rate, "limit": 0.95}
        at |= {"method_limit": 0.9, "efficiency": 0.9, "seed_spread": 0.01, "seeds": 2}
        curves += [at | {"procedure": procedure} for procedure in procedures]
        if judge == "selecting":
            phrases.append(at | {"share": 0.1, "low": 0.05, "high": 0.15})
        if variant == "ctrl":
            gain = {"difference": 0.05, "low": 0.04, "high": 0.06, "rival": "rlhf"}
            gains.append(at | gain | {"rival_kl": kl, "allowed": 0.06})
    theory = [
        {"procedure": procedure, "curve": curve, "kl": kl, "win_rate": 0.6 + kl / 2}
        for procedure, curve, kl in itertools.product(procedures, ("limit", "exp:10"), (0.1, 0.6))
    ]
    said = {"phrase": "of course", "reference_phrase_share": 0.05}
    poison = said | {"phrase_worth_poisoned": 1.2, "phrase_worth_clean": 0.1}
    methods = {"ctrl": "exp:10", "rlhf": "raw"}
    return comparison.Comparison(
        "helpful", "best_of:4", methods, curves, gains, theory, curves, phrases, poison
    )


@pytest.mark.parametrize("kind", ["report", "published", "measured", "compared", "checked"])
def test_nothing_is_wrong_with_a_page(seen: Browser, pages: dict[str, Path], kind: str) -> None:
    assert faults_of(seen, pages[kind]) == []


def test_axe_sees_what_is_wrong(seen: Browser, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    words = '<p style="color: #aaa; width: 2000px">pale</p><img src="https://x.invalid/a.png">'
    page.write_text(f"<html><body>{words}</body></html>")
    said = "\n".join(faults_of(seen, page))
    for fault in ("color-contrast", "html-has-lang", "image-alt", "asks for https", "px wide"):
        assert fault in said


def test_values_follow_the_pointer_and_the_slider(seen: Browser, pages: dict[str, Path]) -> None:
    seen.look(1400, "light")
    seen.open(pages["report"])
    figure = "document.querySelector('#families figure')"
    said = f"{figure}.querySelector('.said').textContent"
    assert "ctrl" in seen.evaluate(said)
    found = []
    for place in range(3):  # N = 1, 2, 4
        seen.evaluate(
            f"{{ const i = {figure}.querySelector('input'); i.value = {place};"
            "i.dispatchEvent(new Event('input')); }"
        )
        found.append((seen.evaluate(f"{figure}.querySelector('output').textContent"),))
        found[-1] += (seen.evaluate(said),)
    assert [n for n, _ in found] == ["1", "2", "4"]
    assert len({words for _, words in found}) == 3
    seen.evaluate(f"{figure}.scrollIntoView({{behavior: 'instant'}})")
    box = seen.evaluate(
        f"(() => {{ const b = {figure}.querySelector('svg').getBoundingClientRect();"
        "return [b.left, b.top, b.width, b.height]; })()"
    )
    left, top, width, height = box
    x, y = left + 0.11 * width, top + 0.4 * height  # beside the first tick of the first panel
    seen.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    assert seen.evaluate(said) == found[0][1]
