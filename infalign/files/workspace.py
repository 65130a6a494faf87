"""Where a stage reads and writes: results/ for finished files, .infalign/work/ for unfinished ones.

Unfinished work carries a fingerprint of everything it depends on (params, input files, code): work
of another fingerprint is discarded. A file lock, released by the kernel when a process dies, lets
one process at a time work on an instance.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from infalign.errors import InputError
from infalign.files.code import ROOT, stage_files
from infalign.files.sources import START
from infalign.settings.params import Params
from infalign.settings.rewards import own_paths

HALF_WRITTEN = ".*.[0-9]*"  # what `replacing` names files


@dataclass(frozen=True)
class Needs:
    """What a stage instance reads and writes: inputs, params and outputs, relative to the root.

    `params` are the dotted keys of params.yaml that it may depend on: they make the fingerprint,
    and dvc.yaml lists the same ones (a test compares).
    """

    inputs: tuple[str, ...]
    params: tuple[str, ...]
    outputs: tuple[str, ...]


class Lengths(NamedTuple):
    """The longest prompt and the longest response with its end, tokens, of the policy's format."""

    prompt: int
    response: int


def read_lengths(params: Params, results: Path) -> Lengths:
    """The lengths that are set in params.yaml, or that `prepare` found in the data."""
    asked, answered = params.model.prompt_tokens, params.model.response_tokens
    if asked is None or answered is None:
        try:
            found = json.loads((results / "prepare" / "lengths.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"{results / 'prepare'} has no lengths.json: run prepare.") from None
        asked, answered = asked or found["prompt_tokens"], answered or found["response_tokens"]
    return Lengths(asked, answered)


@dataclass(frozen=True)
class Workspace:
    """One stage instance at work in one project folder."""

    params: Params
    root: Path
    instance: str
    moved: Mapping[str, str] = field(default_factory=dict)

    def results(self, *parts: str) -> Path:
        """A finished file or folder: results/…

        `moved` names folders of results that this instance finds elsewhere, below results/ or at an
        absolute path: a policy that is not published, the rewards of another reward model.
        """
        path = "/".join(parts)
        for name, place in self.moved.items():
            if path == name or path.startswith(f"{name}/"):
                path = place + path[len(name) :]
        return self.root / "results" / path

    @property
    def lengths(self) -> Lengths:
        """How long prompts and responses may be."""
        return read_lengths(self.params, self.root / "results")

    @property
    def alone(self) -> Workspace:
        """The same for a stage that always runs in one process, whatever params.yaml says.

        It draws by itself too: of many policies that are not published no server has one.
        """
        run = self.params.run.model_copy(update={"processes": 1})
        generation = self.params.generation.model_copy(update={"engine": "builtin"})
        update = {"run": run, "generation": generation}
        return replace(self, params=self.params.model_copy(update=update))

    @property
    def work(self) -> Path:
        """The instance's folder of unfinished work."""
        return self.root / ".infalign" / "work" / self.instance

    @property
    def out(self) -> Path:
        """Where outputs are built before they move to results/; mirrors results/."""
        return self.work / "out"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the instance: one writer at a time, released by the kernel at death."""
        locks = self.root / ".infalign" / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        lock = FileLock(locks / f"{self.instance}.lock")
        if not _try(lock):
            print(f"{self.instance}: waiting for another process at work on it", flush=True)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def open_work(self, fingerprint: str) -> None:
        """Keep unfinished work of the same fingerprint, discard any other."""
        marker = self.work / "fingerprint"
        if not marker.is_file() or marker.read_text() != fingerprint:
            shutil.rmtree(self.work, ignore_errors=True)
            self.out.mkdir(parents=True)
            write_text(marker, fingerprint)
        self.out.mkdir(exist_ok=True)
        for left in self.out.rglob(HALF_WRITTEN):  # by who was killed
            left.unlink()

    def publish(self, outputs: Sequence[str]) -> None:
        """Move finished outputs to their places below the root, then forget the work."""
        for output in outputs:
            source = self.out / Path(output).relative_to("results")
            target = self.root / output
            target.parent.mkdir(parents=True, exist_ok=True)
            staged = target.with_name(f".{target.name}.new")
            _remove(staged)
            # A hard link keeps the source, so that a kill in between publishes again.
            if source.is_dir():
                shutil.copytree(source, staged, copy_function=os.link)
            else:
                os.link(source, staged)
            _remove(target)
            os.replace(staged, target)
        shutil.rmtree(self.work)


def _try(lock: FileLock) -> bool:
    from filelock import Timeout

    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def fingerprint(word: str, needs: Needs, params: Params, root: Path) -> str:
    """SHA-256 over a stage's params, the content of its inputs and the source that it imports."""
    digest = hashlib.sha256(word.encode())
    tree = params.model_dump(mode="json")
    for key in sorted(needs.params):
        digest.update(f"{key}={json.dumps(lookup(tree, key), sort_keys=True)}\n".encode())
    for name in needs.inputs:
        path = root / name
        if not path.exists():
            remedy = "run the stage that writes it"
            given = {params.data_path(objective) for objective in params.run.objectives}
            if name in given and not name.startswith("results/"):
                remedy = "give a folder or file of data as data.path or objectives.O.data"
            elif name in (params.model.folder, params.reward.folder):
                remedy = "bring the model back, or correct params.yaml"
            elif name.startswith(f"{START}/"):
                remedy = "let `infalign run` bring the champion, or set align.start to reference"
            elif name in own_paths(params.objectives):
                remedy = "bring it back, or correct params.yaml"
            raise InputError(f"{path} does not exist: {remedy}.")
        _hash_path(digest, path, name)
    for name in stage_files(word):
        _hash_path(digest, ROOT / name, name)
    return digest.hexdigest()


def lookup(tree: Mapping[str, Any], dotted: str) -> Any:
    """The value at a dotted key of a nested mapping."""
    value: Any = tree
    for part in dotted.split("."):
        value = value[part]
    return value


def _hash_path(digest: Any, path: Path, name: str) -> None:
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for file in files:
        digest.update(f"{name}/{file.relative_to(path)}\n".encode())
        with open(file, "rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Another name to write a file under: at the end it takes the file's place, or is gone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")  # HALF_WRITTEN
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a small text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically: sorted keys, no NaN."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")
