"""docs/theory.md: its code runs, its figures exist and are the ones that the script draws."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "theory.md").read_text(encoding="utf-8")


def test_the_code_on_the_page_runs_and_says_what_the_page_says(capsys):
    for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.S):
        exec(block, {})
    printed = capsys.readouterr().out
    assert "exp:10    wins 0.8715 with beta 7012" in printed
    assert "optimal   wins 0.8733" in printed
    assert "40 references" in printed


def test_every_figure_on_the_page_is_drawn_by_the_script():
    drawn = runpy.run_path(str(DOCS / "figures.py"))
    shown = re.findall(r"\]\(figures/(\w+)\.png\)", PAGE)
    assert len(shown) == 4
    for name in shown:
        assert callable(drawn[name])
        assert (DOCS / "figures" / f"{name}.png").stat().st_size > 10_000
