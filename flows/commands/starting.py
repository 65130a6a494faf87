"""`infalign init` and `infalign demo`: a new project, and a small run of everything in one.

The demo runs the stages by themselves: no Prefect, DVC or MLflow. Those come with `infalign run`.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.live import View, viewing
from infalign.errors import InputError

if TYPE_CHECKING:
    from flows.runs.progress import Progress
    from infalign.settings.params import Params

SETTINGS = (  # of the demo: what a minute on two cores has room for
    "corpus.train_prompts=500",
    "corpus.test_prompts=100",
    "corpus.pairs_per_prompt=4",
    "run.variants=[ctrl, rlhf]",
    "sft.epochs=0.6",
    "reward.epochs=1.0",
    "sample.train_prompts=96",
    "sample.test_prompts=48",
    "sample.train_samples=16",
    "sample.test_samples=32",
    "sample.large_prompts=8",
    "sample.large_samples=64",
    "calibrate.error_references=[4, 8, 16]",
    "align.steps=40",
    "align.prompts_per_step=8",
    "align.kl_prompts=64",
    "align.kl_samples=4",
    "evaluate.best_of=[1, 2, 4]",
    "evaluate.bootstrap=200",
    "report.examples=3",
)


def init(folder: Annotated[Path, typer.Argument(help="A new folder.")]) -> None:
    """Make a project in a new folder: params.yaml, dvc.yaml, git; no clone is needed."""
    from flows.project.starting import start

    for line in start(folder):
        typer.echo(line)


def demo(
    folder: Annotated[Path, typer.Argument(help="A new folder, for the project.")] = Path(
        "infalign-demo"
    ),
) -> None:
    """Run everything once, small, in about a minute, and show its table and page."""
    with viewing("Making a project") as view:
        from flows.project.configuration import set_params
        from flows.project.starting import start
        from flows.runs.progress import watching

        start(folder)
        root = folder.resolve()
        params = set_params(root / "params.yaml", SETTINGS)
        with watching(root) as progress:
            view.follow(progress)
            upstream = graph(params)
            progress.plan(upstream, dict.fromkeys(upstream, "new"), params.run.concurrency)
            asyncio.run(_run(root, params, upstream, progress))
        view.stop()
        _show(root, folder, params, view)


def graph(params: Params) -> dict[str, tuple[str, ...]]:
    """The stages of a run, dependencies first, and what each of them waits for."""
    objectives, variants = params.run.objectives, params.run.variants
    found: dict[str, tuple[str, ...]] = {
        "corpus": (),
        "sources": (),
        "prepare": ("corpus",),
        "sft": ("prepare",),
        "sample": ("sft",),
    }
    found |= {f"reward@{o}": ("sft", "sources") for o in objectives}
    found |= {f"calibrate@{o}": (f"reward@{o}", "sample") for o in objectives}
    policies = {o: tuple(f"align@{o}-{v}" for v in variants) for o in objectives}
    found |= {name: (f"calibrate@{o}",) for o, names in policies.items() for name in names}
    found |= {f"evaluate@{o}": policies[o] for o in objectives}
    return found | {"report": tuple(f"evaluate@{o}" for o in objectives)}


async def _run(
    root: Path, params: Params, upstream: Mapping[str, tuple[str, ...]], progress: Progress
) -> None:
    """Every stage as soon as those that it waits for are done, some side by side."""
    from flows.children.processes import child_environment, warm_process

    slots = asyncio.Semaphore(params.run.concurrency)
    jobs: dict[str, asyncio.Task[None]] = {}

    async def job(name: str, environment: Mapping[str, str]) -> None:
        for need in upstream[name]:
            await asyncio.shield(jobs[need])
        async with slots:
            await _stage(root, name, environment, progress)

    (root / ".infalign").mkdir(exist_ok=True)
    with warm_process(root, child_environment({"HF_HUB_OFFLINE": "1"})) as found:
        environment = child_environment({"HF_HUB_OFFLINE": "1", **found})
        for name in upstream:
            jobs[name] = asyncio.create_task(job(name, environment))
        try:
            await asyncio.gather(*jobs.values())
        finally:
            for task in jobs.values():
                task.cancel()
            with contextlib.suppress(Exception):
                await asyncio.gather(*jobs.values(), return_exceptions=True)


async def _stage(root: Path, name: str, environment: Mapping[str, str], progress: Progress) -> None:
    """Run one stage in its process, or raise its sentence."""
    from flows.children.processes import run_child
    from infalign.files.stages import STAGES

    word, _, rest = name.partition("@")
    command = [sys.executable, "-m", "infalign", word]
    for option, value in zip(STAGES[word].names, filter(None, rest.split("-")), strict=True):
        command += [f"--{option}", value]

    def tell(line: str) -> None:
        progress.says(name, line.removeprefix(name).strip())
        if not progress.shown:
            print(line if line.startswith(name) else f"{name} {line}", flush=True)

    progress.begins(name)
    done = await run_child(command, root, environment, tell)
    progress.ends(name, "failed" if done.returncode else "made")
    if done.returncode:
        raise InputError((done.lines or (f"{name} ended with {done.returncode}.",))[-1])


def _show(root: Path, folder: Path, params: Params, view: View) -> None:
    """The table, the page, and how to go on."""
    from rich.console import Console

    from flows.commands.tables import win_rate_table
    from flows.tracking.results import headline

    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(win_rate_table(headline(root, params)))
    typer.echo(f"Done in {view.seconds():.0f} s. A demo this small says little about the method.")
    typer.echo(f"Report   {(root / 'results/report/index.html').as_uri()}")
    typer.echo(f"Next     cd {folder} && infalign run   # with DVC, MLflow and Prefect")
