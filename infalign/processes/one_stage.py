"""`python -m infalign STAGE [--objective O] [--variant V] [--params F]`: run one stage.

The stages of `infalign compare` take `--kl-nats K --seed S` as well.

Needs neither Prefect nor MLflow nor DVC. Reads and writes below the current folder. With
`run.processes` above 1 it starts that many of itself, as torchrun does; torchrun itself will do. Of
`run.nodes` each node starts its own share.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import gc
import importlib
import os
import sys
import time
import traceback
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from infalign.files.stages import BUDGET, STAGES
from infalign.processes import job, torchrun

if TYPE_CHECKING:
    from infalign.files.workspace import Workspace
    from infalign.processes.ranks import Ranks
    from infalign.settings.params import Params

PARAMS = "params.yaml"
THREADS = 1  # run.threads, where the file does not say: its default

_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS)

PATIENCE_SECONDS = 3.0  # of the other processes, for what rank 0 has to say


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(prog="python -m infalign", description=__doc__)
    parser.add_argument("stage", choices=list(STAGES))
    parser.add_argument("--objective", help="a name in run.objectives")
    parser.add_argument("--variant", help="a name in run.variants")
    parser.add_argument("--kl-nats", help="KL budget, nats a response, of contend and hack")
    parser.add_argument("--seed", help="seed of the training of contend and hack")
    parser.add_argument("--params", default=PARAMS, help="the configuration file")
    chosen = parser.parse_args(arguments)
    for name in BUDGET:
        given, option = getattr(chosen, name) is not None, name.replace("_", "-")
        if given != (name in STAGES[chosen.stage].names):
            parser.error(f"{chosen.stage} {'takes no' if given else 'needs'} --{option}")
    return chosen


def main(arguments: list[str] | None = None) -> int:
    """Run one stage; return the exit code (2: the user's input, 1: the machine)."""
    chosen = parse_arguments(arguments)
    job.begin()
    try:
        code = _main(chosen, sys.argv[1:] if arguments is None else arguments)
    except Exception:
        if not job.is_inside():
            raise
        traceback.print_exc()
        code = 1
    job.report(code)
    return code


def _main(chosen: argparse.Namespace, arguments: list[str]) -> int:
    from infalign.errors import CheckFailed, InputError

    try:
        return run_stage(chosen, arguments)
    except (InputError, CheckFailed) as error:
        _let_rank_0_speak()
        print(f"{chosen.stage}: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        where = f" ({error.filename})" if error.filename else ""
        print(
            f"{chosen.stage}: {error.strerror}{where}: free space or permit writing, "
            "then run again: finished work is kept.",
            file=sys.stderr,
        )
        return 1
    except Exception:
        _let_rank_0_speak()
        raise


def _let_rank_0_speak() -> None:
    """What is wrong every process finds, if only because another left; rank 0's end ends them."""
    if torchrun.place()[0]:
        time.sleep(PATIENCE_SECONDS)


def apply_threads(path: str) -> None:
    """Set the number of threads before numpy and torch are imported: they read it once."""
    import yaml

    with contextlib.suppress(Exception):  # load_params says what is wrong with the file
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        os.environ["OMP_NUM_THREADS"] = str(int(tree.get("run", {}).get("threads", THREADS)))
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def run_stage(chosen: argparse.Namespace, arguments: list[str]) -> int:
    """Load params, set the number of threads, resume or start, publish; the exit code."""
    apply_threads(chosen.params)
    from infalign.errors import InputError
    from infalign.settings.params import load_params

    params = load_params(chosen.params)
    for name, known in (("objective", params.objectives), ("variant", params.align.variants)):
        value = getattr(chosen, name)
        if value is not None and value not in known:
            raise InputError(
                f"--{name} {value!r} is not one of {sorted(known)} in {chosen.params}."
            )
    stage = STAGES[chosen.stage]
    several = stage.several
    if not several:
        if params.run.nodes > 1 and torchrun.node():
            return 0  # one node does what one process does
        run = params.run.model_copy(update={"processes": 1, "nodes": 1})
        params = params.model_copy(update={"run": run})
    if params.run.launcher != "local" and job.is_outside() and not stage.light:
        # By name, for no stage is made of it: an edit there makes no result stale.
        launching = importlib.import_module("infalign.processes.launching")
        instance = stage.instance(*(getattr(chosen, name) for name in stage.names))
        code: int = launching.launch(params, Path.cwd(), instance, arguments, stage.models)
        return code
    if several and params.run.processes > 1 and not torchrun.is_started():
        return torchrun.start(params.run.processes, params.run.nodes, arguments)
    if several or torchrun.place()[0] == 0:  # what one process does, rank 0 does
        _work(chosen, params)
    return 0


def import_stage(word: str) -> ModuleType:
    """A stage's module, without looking for garbage while its libraries load.

    There is none among them, and looking for it takes a seventh of the time that they need.
    """
    gc.disable()
    try:
        module = importlib.import_module(f"infalign.stages.{word}")
        gc.freeze()  # nor is any looked for there later
        return module
    finally:
        gc.enable()


def _check_shared(workspace: Workspace, ranks: Ranks) -> None:
    """Raise where the nodes do not see the same files: rank 0 writes a word, and all read it."""
    from infalign.errors import InputError
    from infalign.files.workspace import write_text

    path = workspace.root / ".infalign" / f"nodes-{workspace.instance}"
    word = ranks.first(os.urandom(8).hex())
    if ranks.main:
        write_text(path, word)
    ranks.wait()
    seen = ranks.gather(path.is_file() and path.read_text(encoding="utf-8") == word)
    if ranks.main:
        path.unlink(missing_ok=True)
    if not all(seen):
        blind = [str(rank) for rank, sees in enumerate(seen) if not sees]
        raise InputError(
            f"run.nodes: {workspace.root} is not the same folder in every node (processes "
            f"{', '.join(blind)} do not see what process 0 wrote): put the project on a file "
            "system that all of them share."
        )


def _work(chosen: argparse.Namespace, params: Params) -> None:
    """Run the stage in this process, which may be one of several; rank 0 alone writes."""
    from infalign.files.workspace import Workspace, fingerprint
    from infalign.processes.ranks import ALONE, join

    module = import_stage(chosen.stage)
    stage = STAGES[chosen.stage]
    names = [getattr(chosen, name) for name in stage.names]
    workspace = Workspace(params, Path.cwd(), stage.instance(*names))
    needs = module.needs(params, *names)
    ranks = join(params.run) if stage.several else ALONE
    if params.run.nodes > 1:
        _check_shared(workspace, ranks)
    with workspace.locked() if ranks.main else contextlib.nullcontext():
        if ranks.main:
            workspace.open_work(fingerprint(stage.word, needs, params, workspace.root))
        if not ranks.first((workspace.work / "done").exists()):
            module.run(workspace, *names)
            if ranks.main:
                (workspace.work / "done").touch()
        ranks.part()
        if ranks.main:
            workspace.publish(needs.outputs)
