"""docs/python.md and the notebook: every name has an example, and every example runs."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

import infalign

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
NOTEBOOK = ROOT / "examples" / "measure.ipynb"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that is no project."""
    monkeypatch.chdir(tmp_path)


def test_the_code_on_the_page_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.S):
        exec(block, names)
    said = capsys.readouterr().out
    assert "100 prompts, 32 samples each; win rates over the reference" in said
    assert "exp:10" in said
    assert "<svg" in (tmp_path / "measured.html").read_text()
    assert names["calibrated"].beta == pytest.approx(0.3184, abs=1e-4)  # type: ignore[attr-defined]


def test_every_name_is_on_the_page_with_an_example() -> None:
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, flags=re.S))
    for name in infalign.__all__:
        assert f"infalign.{name}(" in code, name
        assert re.search(rf"^## `{name}`$", PAGE, flags=re.M), name


def test_the_notebook_runs_and_shows_what_a_notebook_shows() -> None:
    """Its cells one after another, a last expression shown as Jupyter would show it."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    names: dict[str, object] = {}
    shown = []
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        assert cell["outputs"] == [], "clear the notebook's outputs"
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "cell", "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
            shown.append(value._repr_html_() if hasattr(value, "_repr_html_") else None)
    assert [html is not None and "<svg" in html for html in shown] == [True, True, False, True]
