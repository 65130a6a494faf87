"""`infalign engine start` and `stop`: a server of vLLM that outlives the command.

Like the services of `infalign up` it is written down with its start time, in `.infalign/engines/`,
so that `stop` ends exactly what `start` began.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from filelock import FileLock

from flows.children.processes import Tell, born, end_tree
from flows.services.services import Note
from infalign.engines.starting import HOST, LOGS, Start, free_port, log_path, spawn, wait_until_up
from infalign.errors import InputError
from infalign.files.workspace import write_json
from infalign.settings.params import Params, load_params


def start(root: Path, model: str, port: int, adapters: bool, tell: Tell) -> None:
    """Start a server for a policy below results/ and wait until it answers.

    Args:
        model: the policy's place below results/, `sft` or `align/helpful/ctrl`, which is its name
            there.
        port: 0: any free one.
        adapters: whether it takes the adapters of `align`.
    """
    params = load_params(root / "params.yaml")
    folder = root / "results" / model / "policy"
    if not folder.is_dir():
        raise InputError(
            f"--model {model}: {folder} does not exist: run the stage that writes it, or name "
            "another policy, as in sft or align/helpful/ctrl."
        )
    with _held(root):
        if model in running(root):
            raise InputError(f"--model {model}: it is up already: run `infalign engine stop`.")
        begun = _start_of(params, folder, model, adapters)
        chosen = port or free_port()
        process = spawn(begun, chosen, detached=True)
        note = Note(model, process.pid, born(process.pid), chosen, "")
        write_json(_path(root, model), asdict(note))
    tell(f"Starting vLLM for {model}; its log is {log_path(model)}.")
    url = f"http://{HOST}:{chosen}"
    try:
        wait_until_up(process, url, log_path(model))
    except BaseException:
        _end(root, note)
        raise
    tell(f"Up: {url} serves {model}. Set generation.engine to vllm and generation.urls to it.")


def stop(root: Path, tell: Tell) -> None:
    """End every server that `start` began in this project."""
    with _held(root):
        notes = running(root)
        for note in notes.values():
            _end(root, note)
            tell(f"{note.name} ended.")
        if not notes:
            tell("Nothing was up.")


def running(root: Path) -> dict[str, Note]:
    """The servers that are at work, by the names of their models."""
    notes = {}
    for path in (root / LOGS).glob("*.json"):
        with contextlib.suppress(ValueError, TypeError, OSError):
            note = Note(**json.loads(path.read_text(encoding="utf-8")))
            if note.alive:
                notes[note.name] = note
    return notes


def _start_of(params: Params, folder: Path, model: str, adapters: bool) -> Start:
    run, rank = params.run, params.align.lora_rank
    device = run.device
    if device == "auto":
        device = "cuda" if Path("/dev/nvidiactl").exists() else "cpu"
    exact = run.precision == "float32" or (run.precision == "auto" and device == "cpu")
    if adapters and rank is None:
        raise InputError("--adapters: align.lora_rank is null, so that there are none: set it.")
    return Start(params.generation, folder, model, exact, device, rank if adapters else None)


def _end(root: Path, note: Note) -> None:
    if note.alive:
        end_tree(note.pid)
    _path(root, note.name).unlink(missing_ok=True)


def _path(root: Path, model: str) -> Path:
    return (root / log_path(model)).with_suffix(".json")


@contextlib.contextmanager
def _held(root: Path) -> Iterator[None]:
    """One `start` or `stop` at a time."""
    (root / LOGS).mkdir(parents=True, exist_ok=True)
    with FileLock(root / LOGS / "lock"):
        yield
