"""The view of a run on a terminal; and Ctrl-C, whenever it comes."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from flows.commands.live import View, clock, drawn
from flows.runs.progress import Progress
from infalign.files.workspace import write_json
from tests.flows.conftest import COMMAND, Project, write_toy


def shown(progress: Progress) -> list[str]:
    """The view as text, a line a row."""
    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(drawn(progress, 75))
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_a_row_a_stage_and_the_whole_on_top(tmp_path: Path) -> None:
    write_json(tmp_path / ".infalign" / "durations.json", {"sft": 60, "align@o-a": 60, "report": 9})
    progress = Progress(tmp_path)
    upstream = {"corpus": (), "sft": ("corpus",), "align@o-a": ("sft",), "align@o-b": ("sft",)}
    upstream |= {"report": ("align@o-a", "align@o-b")}
    stale = dict.fromkeys([*upstream][1:], "changed")
    progress.plan(upstream, stale, 2)
    progress.ends("sft", "made")
    progress.begins("align@o-a")
    progress.says("align@o-a", "step 3 [of] 9")
    rows = shown(progress)
    assert "all" in rows[0]
    assert rows[0].endswith("1:15  about 1:09 left")
    assert [row.split()[:2] for row in rows[1:]] == [
        ["=", "corpus"],
        ["✓", "sft"],
        ["▶", "align"],
        ["·", "report"],
    ]
    assert "0/2" in rows[3]
    assert "o-a step 3 [of] 9" in rows[3]
    assert rows[1].endswith("unchanged")
    assert max(map(len, rows)) <= 100
    progress.ends("align@o-a", "failed")
    assert shown(progress)[3].split()[:3] == ["✗", "align", "1/2"]


def test_an_unknown_time_is_said_to_be_unknown(tmp_path: Path) -> None:
    progress = Progress(tmp_path)
    progress.plan({"corpus": ()}, {"corpus": "changed"}, 2)
    assert shown(progress)[0].endswith("time left unknown yet")
    assert clock(3725) == "62:05"


def test_where_there_is_no_terminal_there_is_no_view(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    view, progress = View("Reading"), Progress(tmp_path)
    view.start()
    view.follow(progress)
    assert not view.on
    assert not progress.shown
    view.stop()
    assert capsys.readouterr().out == ""


def on_a_terminal(project: Project, seconds: float, *arguments: str) -> tuple[int, str]:
    """Start a command on a terminal of its own, type Ctrl-C some seconds after its first sign of
    life; status and output.
    """
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=project.root,
        env=project.environment | {"TERM": "xterm", "COLUMNS": "100", "LINES": "40"},
        stdin=child,
        stdout=child,
        stderr=child,
        start_new_session=True,
    )
    os.close(child)
    said = os.read(parent, 65536)
    time.sleep(seconds)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)  # as the terminal does
    with contextlib.suppress(OSError):  # its end
        while chunk := os.read(parent, 65536):
            said += chunk
    os.close(parent)
    return process.wait(60), said.decode(errors="replace")


@pytest.mark.parametrize("seconds", [0.0, 1.0, 4.0])
def test_ctrl_c_at_any_moment_leaves_one_sentence(
    tmp_path: Path, quiet: dict[str, str], seconds: float
) -> None:
    project = Project(tmp_path / "project", dict(quiet))
    write_toy(project.root)
    status, said = on_a_terminal(project, seconds, "run")
    assert status in (130, -signal.SIGINT), said
    assert "Traceback" not in said
    assert said.count("infalign: interrupted") == 1
    assert project.survivors() == []


def test_the_first_sign_of_life_comes_before_anything_is_read() -> None:
    """What costs seconds to import is imported once the view stands."""
    code = "import sys, flows.cli; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    slow = {"prefect", "mlflow", "numpy", "scipy", "pydantic", "httpx", "yaml"}
    assert not slow & set(found.stdout.split())
