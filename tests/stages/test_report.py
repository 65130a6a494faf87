"""report: one page that needs nothing else, the same bytes every time, and a complete summary."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import report_case
from report_case import case_params, run_evaluate, write_inputs

from infalign.deployment.gate import judge_candidate, judge_results
from infalign.deployment.measured import measured
from infalign.errors import InputError
from infalign.files.names import SELECTING
from infalign.files.workspace import Workspace
from infalign.page.words import decimal
from infalign.settings.params import Params
from infalign.stages import report

VOID = {"meta", "br", "img", "path", "use", "rect", "line", "circle", "defs"}
DATA = ("win_rate", "training_kl", "training_calibrated", "calibration_error")
PLOTS = ("frontier", "families", "judges", "training", "calibration", "rewards")


def run_report(root: Path, params: Params) -> Path:
    """Run and publish report; its folder."""
    workspace = Workspace(params, root, "report")
    report.run(workspace)
    workspace.publish(report.needs(params).outputs)
    return root / "results" / "report"


def make_report(root: Path, params: Params, gold: bool = True) -> Path:
    """Everything from made-up policies to the page."""
    write_inputs(root, params, gold)
    run_evaluate(root, params)
    return run_report(root, params)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A project with a finished report: its folder and its params."""
    params = case_params()
    return make_report(tmp_path_factory.mktemp("report"), params), params


class Reader(HTMLParser):
    """Collects ids, link targets and tags; fails at a tag that closes what is not open."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.tags: set[str] = set()
        self.text: list[str] = []
        self._open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name == "href":
                self.targets.append(value)
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read_page(folder: Path) -> Reader:
    reader = Reader()
    reader.feed((folder / "index.html").read_text(encoding="utf-8"))
    return reader


def test_exact_files(made):
    folder, params = made
    names = params.run.objectives
    plots = {f"plots/{o}_{name}.png" for o in names for name in PLOTS}
    data = {f"data/{name}/{o}.json" for o in names for name in DATA}
    headline = {f"headline/{o}-{v}.json" for o in names for v in params.run.variants}
    found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert found == {"index.html", "metrics.json", "summary.json"} | plots | data | headline


def test_a_rerun_gives_the_same_bytes(made):
    folder, params = made
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    run_report(folder.parents[1], params)
    assert {path: path.read_bytes() for path in folder.rglob("*.*")} == before


def test_the_page_loads_nothing(made):
    text = (made[0] / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|//\w|src=|@import|<link|<iframe|<object", text)
    scripts = re.findall(r"<script([^>]*)>", text)
    assert set(scripts) == {"", ' type="application/json"'}
    assert scripts.count("") == 1
    assert set(re.findall(r"url\((.)", text)) <= {"#"}


def test_the_page_is_well_formed_and_its_links_lead_somewhere(made):
    page = read_page(made[0])
    assert len(page.ids) == len(set(page.ids))
    assert all(target.startswith("#") for target in page.targets)
    assert {target[1:] for target in page.targets} <= set(page.ids)
    assert {"table", "svg", "nav", "dl"} <= page.tags


def test_tables_have_scoped_headers_captions_and_boxes_that_take_the_keyboard(made):
    text = (made[0] / "index.html").read_text(encoding="utf-8")
    tables = re.findall(r"<table>.*?</table>", text, flags=re.S)
    assert len(tables) == text.count("<table")
    for table in tables:
        assert re.match(r"<table><caption>[^<]+</caption><thead>", table)
        assert not re.search(r'<th(?! scope="(col|row)")(?!ead)', table)
        assert len(re.findall('<th scope="row"', table)) == table.count("<tr>") - 1
        assert not re.search("<th [^>]*></th>", table), "a header without a name"
    boxes = re.findall('<div class="scroll" tabindex="0" role="region" aria-label="([^"]+)"', text)
    assert len(boxes) == text.count('class="scroll"') == len(set(boxes))
    assert len(boxes) == len(tables) + text.count("<figure")


def test_every_figure_has_a_title_a_description_and_its_values(made):
    folder, _ = made
    text = (folder / "index.html").read_text(encoding="utf-8")
    figures = re.findall(r"<figure.*?</figure>", text, flags=re.S)
    assert len(figures) == 2 * len(PLOTS)
    rows = json.loads((folder / "summary.json").read_text())
    for figure in figures:
        name = re.search(r'<title id="([\w]+)-title">[^<]+</title>', figure)[1]
        assert f'aria-labelledby="{name}-title {name}-desc"' in figure
        assert f'<desc id="{name}-desc">' in figure
        (data,) = re.findall(r'<script type="application/json">(.*?)</script>', figure, flags=re.S)
        width, height = map(float, re.search(r'viewBox="0 0 (\S+) (\S+)"', figure).groups())
        for panel in json.loads(data)["panels"]:
            assert 0 <= panel["left"] < panel["right"] <= width
            assert 0 <= panel["top"] < panel["bottom"] <= height
            assert all(len(line["x"]) == len(line["y"]) for line in panel["lines"])
        if name == "helpful_families":
            panel = json.loads(data)["panels"][0]
            assert panel["snap"] == [[0.0, "1"], [1.0, "2"], [2.0, "4"]]
            line = next(line for line in panel["lines"] if line["name"] == "ctrl")
            wanted = [
                row
                for row in rows
                if (row["objective"], row["policy"], row["judge"]) == ("helpful", "ctrl", SELECTING)
                and row["procedure"].startswith("best_of")
            ]
            assert line["x"] == [0.0, 1.0, 2.0]
            assert line["y"] == pytest.approx([100 * row["win_rate"] for row in wanted], abs=0.05)
            assert line["low"] == pytest.approx([100 * row["low"] for row in wanted], abs=0.05)


def test_the_verdict_is_the_gate_s(made):
    """The page's yes or no, and every number of its rules, are those that promotion will find."""
    folder, params = made
    page = " ".join(" ".join(read_page(folder).text).split())
    for objective in params.run.objectives:
        found = measured(folder.parent, params, objective, params.run.variants)
        for name in params.run.variants:
            asked = judge_candidate(found[name], None, params.promotion)
            assert [r for r in asked.rules if r.name != "rolled_back"] == list(
                judge_results(found[name], params.promotion).rules
            )
            for rule in asked.rules[:-1]:
                assert decimal(rule.number, 3) in page
    assert page.count("ctrl may be deployed, as far as these results tell") == 2
    assert "Not asked here: champion, other_harmless, rolled_back;" in page


def test_a_policy_that_fails_a_rule_is_refused_with_number_and_bound(made, tmp_path):
    folder, params = made
    (tmp_path / "results").mkdir()
    for word in ("prepare", "sft", "reward", "sample", "calibrate", "align", "evaluate"):
        (tmp_path / "results" / word).symlink_to(folder.parent / word)
    strict = params.promotion.model_copy(update={"win_rate": 0.99, "variant": "identity"})
    page = read_page(run_report(tmp_path, params.model_copy(update={"promotion": strict})))
    text = " ".join(" ".join(page.text).split())
    assert text.count("No: identity may not replace what is deployed.") == 2
    assert re.search(r"It fails win_rate \(0\.\d{3}, must be >= 0\.99, short by 0\.\d+\)", text)
    lost = params.promotion.model_copy(update={"variant": "nobody"})
    page = read_page(run_report(tmp_path, params.model_copy(update={"promotion": lost})))
    assert "promotion.variant names a policy that was not trained" in " ".join(page.text)


def test_the_page_holds_no_number_that_is_not_one(made):
    text = " ".join(read_page(made[0]).text)
    assert not re.search(r"\b(nan|inf|None)\b", text)


def test_the_first_table_comes_first(made):
    page = " ".join(" ".join(read_page(made[0]).text).split())
    places = [
        "ctrl may",
        "Against it",
        "Under Best-of-4, ctrl wins",
        "what it measured",
        "How far a",
    ]
    found = [page.index(words) for words in places]
    assert found == sorted(found)


def test_summary_has_a_row_per_objective_policy_judge_and_procedure(made):
    folder, params = made
    rows = json.loads((folder / "summary.json").read_text())
    keys = [(r["objective"], r["policy"], r["judge"], r["procedure"]) for r in rows]
    procedures = 1 + 2 * len(params.evaluate.best_of)
    assert len(keys) == len(set(keys)) == 2 * 3 * 3 * procedures
    numbers = {"win_rate", "low", "high", "limit", "method_limit", "efficiency", "kl", "kl_se"}
    numbers.add("response_tokens")
    for row in rows:
        assert set(row) == {"objective", "policy", "judge", "procedure", *numbers}
        assert all(row[name] is None or math.isfinite(row[name]) for name in numbers)


def test_what_dvc_compares_is_what_the_summary_says(made):
    folder, params = made
    rows = json.loads((folder / "summary.json").read_text())
    for objective in params.run.objectives:
        own = {
            row["policy"]: row
            for row in rows
            if (row["objective"], row["judge"]) == (objective, "selecting")
            and row["procedure"] == params.objectives[objective].procedure
        }
        points = json.loads((folder / "data" / "win_rate" / f"{objective}.json").read_text())
        drawn = {row["series"]: row for row in points if row["low"] is not None}
        assert len({tuple(row) for row in points}) == 1, "DVC draws nothing else"
        assert set(drawn) == set(params.run.variants)
        assert {row["series"] for row in points} == {"limit", *drawn}
        for variant in params.run.variants:
            path = folder / "headline" / f"{objective}-{variant}.json"
            numbers = json.loads(path.read_text())
            assert next(iter(numbers)) == "win_rate"
            assert numbers == {key: own[variant][key] for key in numbers}
            assert drawn[variant].items() <= (own[variant] | {"series": variant}).items()
            history = folder.parent / "align" / objective / variant / "history.jsonl"
            steps = [json.loads(line) for line in history.read_text().splitlines()]
            for name in ("kl", "calibrated"):
                path = folder / "data" / f"training_{name}" / f"{objective}.json"
                curve = [row for row in json.loads(path.read_text()) if row["series"] == variant]
                assert [row[name] for row in curve] == [row[name] for row in steps if name in row]
                assert curve


def test_markup_in_responses_is_shown_not_obeyed(tmp_path, monkeypatch):
    plain = report_case.draw_response
    hostile = '<script>alert("1")</script> & <b>bold</b>'
    monkeypatch.setattr(report_case, "draw_response", lambda *a: f"{hostile} {plain(*a)}")
    params = case_params(run={"objectives": ["helpful"], "variants": ["ctrl"]})
    folder = make_report(tmp_path, params)
    text = (folder / "index.html").read_text()
    assert "&lt;script&gt;alert" in text
    assert "<script>alert" not in text
    assert any(
        '<script>alert("1")</script> & <b>bold</b>' in text for text in read_page(folder).text
    )


def test_any_names_and_any_number_of_variants(tmp_path):
    base = case_params()
    helpful = base.objectives["helpful"].model_dump(mode="json")
    rewards = ["objective", "identity", "raw", "log", "exp:5", "exp:-5", "exp:2", "optimal"]
    variants = {f"v_{i}": {"reward": reward} for i, reward in enumerate(rewards)}
    params = case_params(
        prompts=3,
        evaluate={"best_of": [2], "bootstrap": 100},
        objectives={"X_1": {**helpful, "procedure": "best_of:3", "transform": "exp:3"}},
        align={"variants": variants},
        run={"objectives": ["X_1"], "variants": list(variants)},
        promotion={"variant": "v_0"},
        compare={
            "variants": ["v_0", "v_1"],
            "poison": {**base.compare.poison.model_dump(mode="json"), "variants": ["v_2"]},
        },
    )
    folder = make_report(tmp_path, params, gold=False)
    text = " ".join(read_page(folder).text)
    assert all(name in text for name in ("Best-of-3", *variants))
    assert (folder / "plots" / "X_1_frontier.png").is_file()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same for one variant of one objective, whose beta was given."""
    params = case_params(
        run={"objectives": ["harmless"], "variants": ["ctrl"]},
        align={"beta": 0.1},
        evaluate={"best_of": [1], "bootstrap": 100},
    )
    return make_report(tmp_path_factory.mktemp("alone"), params), params


def test_one_variant_alone(alone):
    assert "Paired differences" not in " ".join(read_page(alone[0]).text)


def test_a_page_without_a_budget_says_so(alone):
    text = " ".join(read_page(alone[0]).text)
    assert "none: β was given" in text
    assert "off the KL budget" not in text.replace("off the KL budget: 0", "")


def test_a_missing_file_is_named(tmp_path):
    params = case_params(run={"objectives": ["helpful"], "variants": ["ctrl"]})
    write_inputs(tmp_path, params)
    run_evaluate(tmp_path, params)
    (tmp_path / "results" / "calibrate" / "helpful" / "errors.json").unlink()
    with pytest.raises(InputError, match=r"errors\.json does not exist"):
        run_report(tmp_path, params)


def test_stage_reads_what_it_says():
    stage = report.needs(case_params())
    assert stage.outputs == ("results/report",)
    assert {"results/evaluate/helpful", "results/align/harmless/ctrl"} <= set(stage.inputs)
