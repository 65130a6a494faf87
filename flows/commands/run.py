"""`infalign run`: the settings, the servers, the flow, and the table at the end."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from rich.console import Console

from flows.children.locks import run_lock
from flows.children.processes import redact
from flows.commands.live import View
from flows.commands.promote import show_decision
from flows.project import versions
from flows.project.configuration import check_data, set_params
from flows.project.recipes import Setting
from flows.runs.progress import watching
from flows.services.prefect_server import Server, prefect_server, prepare_environment
from infalign.errors import InputError
from infalign.settings.completion import completed
from infalign.settings.params import Params, load_params
from infalign.settings.reading import read_text

OPENS = "  (`infalign report` opens it)"


def _say(line: str) -> None:
    print(line, flush=True)


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


@contextmanager
def _held_back() -> Iterator[None]:
    """Interrupts wait: pydantic, within what is imported, makes another error of one."""
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {n: signal.signal(n, lambda number, _: came.append(number)) for n in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt


def show_plan(
    root: Path,
    assignments: Sequence[str],
    target: str = versions.RUN,
    recipe: str | None = None,
) -> None:
    """Say what is stale. Settings would have to be written first, so they are refused."""
    if assignments or recipe is not None:
        option = "--set" if assignments else "--recipe"
        raise InputError(f"--dry-run does not write params.yaml: leave out {option}.")
    path = root / "params.yaml"
    load_params(path)
    _, lacking = completed(read_text(path), str(path))
    if lacking:
        _say(f"params.yaml: lacks {', '.join(lacking)}: a run writes them, with their defaults.")
    versions.check_project(root)
    plan = asyncio.run(versions.read_plan(root, _say, target=target))
    for instance in plan.instances:
        _say(f"{instance}: {plan.stale.get(instance, 'up to date')}")


def run_pipeline(
    root: Path,
    name: str,
    assignments: Sequence[str],
    promote: bool = False,
    push: bool = False,
    target: str = versions.RUN,
    recipe: Sequence[Setting] = (),
    view: View | None = None,
) -> None:
    """Run the flow in this process; raises InputError, or exits with the run's code."""
    view = view or View("")
    for number in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C, also while the server starts
        signal.signal(number, _interrupt)
    versions.check_project(root)
    if push:
        asyncio.run(versions.check_remote(root))
    # Prefect's log handlers would print to stderr what they cannot send; the run says it itself.
    logging.raiseExceptions = False
    with run_lock(root):
        params = set_params(root / "params.yaml", assignments, _say, recipe)
        written = dict(recipe) | {
            k.strip(): v for k, _, v in (a.partition("=") for a in assignments)
        }
        check_data(params, root)  # before a server is started for nothing
        call = {"name": name, "root": str(root), "promote": promote, "target": target}
        call["settings"] = {key: redact(str(value)) for key, value in written.items()}
        prepare_environment(root)
        with prefect_server(root) as server:
            if server.temporary and not view.on:
                _say("Starting a Prefect server for this run.")
            with watching(root) as progress:
                progress.phase = "Starting a Prefect server" if server.temporary else ""
                view.follow(progress)
                done = _run_flow(root, call, server)
            served = "infalign up" if server.temporary else ""
            page = server.page(done["flow_run_id"]), served
        view.stop()
        show_tables(root, params, target)
        show_outcomes(done["outcomes"], page, done["mlflow"])
        for decision in done["decisions"]:
            show_decision(decision)
        if push:
            _push(root)


def _run_flow(root: Path, call: dict[str, Any], server: Server) -> dict[str, Any]:
    """What the flow gave; exits with one sentence where a stage, or Prefect, is in the way.

    While a temporary server starts, what the flow needs is imported and prepared.
    """
    with _held_back():
        from prefect.exceptions import FlowPauseTimeout, TerminationSignal

        import flows.runs.pipeline  # noqa: F401
        from flows.runs.preparing import ahead

    try:
        with ahead(root.resolve(), call["target"], _say):
            server.wait()
            return _recorded(root, call, server)
    except versions.StageFailed as error:
        print(f"infalign: {error}", file=sys.stderr)
        sys.exit(2 if error.user_error else 1)
    except (versions.StageKilled, versions.Busy) as error:
        print(f"infalign: {error} Run again to resume.", file=sys.stderr)
        sys.exit(1)
    except FlowPauseTimeout:
        print(
            "infalign: nobody approved within promotion.approval_seconds: nothing was promoted; "
            "run again with --promote.",
            file=sys.stderr,
        )
        sys.exit(1)
    except (asyncio.CancelledError, TerminationSignal):
        raise KeyboardInterrupt from None


def _recorded(root: Path, call: dict[str, Any], server: Server) -> dict[str, Any]:
    """Run the flow and have Prefect record its end, which an outage of Prefect may prevent."""
    from httpx import HTTPError

    from flows.runs.pipeline import how_it_ended, pipeline

    try:
        asyncio.run(pipeline(**call))
        return cast(dict[str, Any], how_it_ended(root))
    except HTTPError as error:
        done = how_it_ended(root)
        print(
            f"infalign: the Prefect server at {redact(server.url)} stopped answering "
            f"({redact(str(error))}): its page lacks the end of this run; what the stages made is "
            f"kept{'.' if isinstance(done, dict) else ', run again to go on.'}",
            file=sys.stderr,
        )
        if isinstance(done, dict):
            return done
        if done is None or isinstance(done, HTTPError):
            sys.exit(1)
        raise done from None


def _push(root: Path) -> None:
    """Push the results; they are kept whatever the remote says."""
    try:
        asyncio.run(versions.push(root, _say))
    except versions.PushFailed as error:
        print(
            f"infalign: the results are complete, but `dvc push` failed: {error} Mend the remote "
            "(`dvc remote list`), then `dvc push`.",
            file=sys.stderr,
        )
        sys.exit(1)


def show_tables(root: Path, params: Params, target: str) -> None:
    """The win rates of a run, or the gains of a comparison, and where their page is."""
    from flows.commands.tables import gain_table, win_rate_table
    from flows.tracking.results import gains, headline

    console = Console(width=None if sys.stdout.isatty() else 120)
    if target == versions.COMPARISON:
        console.print(gain_table(gains(root, params)))
        pages = [f"results/compare/{name}/index.html" for name in params.compare.objectives]
    else:
        rows = headline(root, params)
        if rows:
            console.print(win_rate_table(rows))
        pages = ["results/report/index.html"]
    for page in pages:
        if (root / page).exists():
            _say(f"Report   {page}{OPENS if target == versions.RUN else ''}")


def show_outcomes(
    outcomes: dict[str, str], prefect: tuple[str, str], mlflow: tuple[str, str]
) -> None:
    """What was done, and where to look: addresses on lines of their own.

    Args:
        prefect, mlflow: an address, and the command that serves it, if it is not up.
    """
    counts = {word: list(outcomes.values()).count(word) for word in ("made", "restored")}
    unchanged = len(outcomes) - sum(counts.values())
    _say(f"{counts['made']} made, {counts['restored']} restored from cache, {unchanged} unchanged")
    for command in dict.fromkeys(command for _, command in (mlflow, prefect) if command):
        _say(f"To look  {command}")
    _say(f"MLflow   {mlflow[0]}")
    _say(f"Prefect  {prefect[0]}")
