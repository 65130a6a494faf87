"""`infalign prune`: what no champion, alias or kept night needs goes.

Of MLflow, versions with their models and the runs that registered them; the runs of the pipeline,
which hold the numbers, stay. Of DVC's cache, results of commits that nothing kept names; data is
kept of every commit, since nothing makes it again. Of `.infalign`, restored folders of commits that
are not kept. Suites are files of the user's, which nothing here touches.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from flows.children.locks import run_lock
from flows.children.processes import Tell, redact
from flows.project import nights, versions
from flows.project.git import git, shown
from flows.project.restoring import clone, write_config
from flows.registry.champions import Champions
from flows.registry.registry import Registry, model_name, open_registry
from infalign.errors import InputError
from infalign.files.sources import START
from infalign.files.workspace import write_text
from infalign.settings.params import Params, load_params

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

POINTER = ".dvc"  # the end of a pointer's name
LOCK = "infalign.dvc_lock"  # a version's tag: SHA-256 of the lock that it was made with


@dataclass(frozen=True)
class Waste:
    """What would go, and what stays.

    Attributes:
        versions: objective to the versions that go.
        kept: objective to those that stay.
        commits: whose results stay in DVC's cache.
        folders: of restored commits that go.
    """

    versions: dict[str, list[str]] = field(default_factory=dict)
    kept: dict[str, list[str]] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)

    def lines(self) -> list[str]:
        """To read."""
        found = []
        for objective, gone in self.versions.items():
            of_it = f"{len(gone)} of {len(gone) + len(self.kept[objective])} versions"
            listed = f": {', '.join(gone)}" if gone else ""
            found.append(f"{model_name(objective)}: {of_it} go{listed}")
        found.append(f"DVC's cache: the results of {len(self.commits)} commits stay, and all data")
        found += [f"{path.name} of .infalign/restored goes" for path in self.folders]
        return found


def find_waste(root: Path, keep_versions: int, keep_nights: int) -> Waste:
    """What nothing needs.

    Args:
        keep_versions: the newest ones of each model that stay in any case.
        keep_nights: the newest nights whose results stay.
    """
    for name, number in (("--keep-versions", keep_versions), ("--keep-nights", keep_nights)):
        if number < 0:
            raise InputError(f"{name} {number} is negative: give 0 or more.")
    params, registry = load_params(root / "params.yaml"), open_registry(root)
    commits = _named_commits(root, params, keep_nights)
    locks = {_hash(shown(root, commit, "dvc.lock")) for commit in commits}
    with contextlib.suppress(FileNotFoundError):
        locks.add(_hash((root / "dvc.lock").read_bytes()))
    locks.discard(None)  # of commits without a run
    gone: dict[str, list[str]] = {}
    kept: dict[str, list[str]] = {}
    wanted: set[str] = set()
    for objective in params.objectives:
        every = registry.versions(objective)
        if not every:
            continue
        stays = _needed(every, registry.champions(objective), keep_versions, locks)
        gone[objective] = [str(v.version) for v in every if str(v.version) not in stays]
        kept[objective] = [str(v.version) for v in every if str(v.version) in stays]
        wanted |= {v.tags.get(LOCK, "") for v in every if str(v.version) in stays}
    for objective in _other_objectives(registry, params):  # whose versions all stay
        wanted |= {version.tags.get(LOCK, "") for version in registry.versions(objective)}
    commits |= _with_locks(root, wanted - locks)
    restored = sorted((root / ".infalign" / "restored").glob("*"))
    folders = [path for path in restored if not any(c.startswith(path.name) for c in commits)]
    return Waste(gone, kept, sorted(commits), folders)


def _other_objectives(registry: Registry, params: Params) -> list[str]:
    """Objectives that have versions and are no longer in params.yaml."""
    models = registry.client.search_registered_models(f"name LIKE '{model_name('%')}'")
    names = {str(model.name).removeprefix(model_name("")) for model in models}
    return sorted(names - params.objectives.keys())


def _needed(
    every: Sequence[ModelVersion], champions: Champions, newest: int, locks: set[str | None]
) -> set[str]:
    """The versions that stay: new ones, champions of any time, aliases, those of kept results."""
    stays = {str(version.version) for version in every[max(0, len(every) - newest) :]}
    stays |= set(champions.aliases().values())
    for move in champions.history():
        stays |= {move.to, *([move.source] if move.source else [])}
    return stays | {str(v.version) for v in every if v.tags.get(LOCK) in locks}


def _named_commits(root: Path, params: Params, keep_nights: int) -> set[str]:
    """Commits that somebody named, and those of the newest nights."""
    branch, found = params.schedule.branch, set()
    told = git(root, "for-each-ref", "--format=%(refname) %(objectname) %(*objectname)")
    for line in told.splitlines():
        name, commit, *peeled = line.split()
        of_night = name == f"refs/heads/{branch}" or nights.is_version_tag(name)
        if not of_night and not (name.startswith("refs/remotes/") and name.endswith(f"/{branch}")):
            found.add(peeled[0] if peeled else commit)
    if head := git(root, "rev-parse", "--verify", "--quiet", "HEAD", fails=True):
        found.add(head)
    if branch is not None:
        found |= {night.commit for night in nights.nights(root, branch)[:keep_nights]}
    return {commit for commit in found if shown(root, commit, "dvc.yaml") is not None}


def _with_locks(root: Path, wanted: set[str]) -> set[str]:
    """A commit for each dvc.lock of kept versions, where any holds it."""
    found: dict[str, str] = {}
    told = git(root, "log", "--all", "--format=%H", "--", "dvc.lock", fails=True)
    for commit in told.split() if wanted else ():
        found.setdefault(_hash(shown(root, commit, "dvc.lock")) or "", commit)
    return {found[lock] for lock in wanted & found.keys()}


def _hash(text: bytes | None) -> str | None:
    return None if text is None else hashlib.sha256(text).hexdigest()


def prune(root: Path, keep_versions: int, keep_nights: int, remove: bool, tell: Tell) -> None:
    """Say what nothing needs, and remove it where that is asked for.

    A kill between two acts leaves what the next call finds again: a version goes last, after its
    files, model and run, and to remove those twice does no harm.
    """
    versions.check_project(root)
    with run_lock(root):  # nobody makes, registers or promotes meanwhile
        waste = find_waste(root, keep_versions, keep_nights)
        for line in waste.lines():
            tell(line)
        left: list[str] = []
        if remove:
            registry = open_registry(root)
            for objective, numbers in waste.versions.items():
                for number in numbers:
                    left += _remove_version(registry, objective, number)
            for folder in waste.folders:
                shutil.rmtree(folder)
        for line in asyncio.run(_collect(root, waste.commits, remove)):
            tell(line)
        for place in left:
            tell(f"{redact(place)} stays: MLflow cannot remove files there, so remove it yourself.")
    done = "Removed, except for what stays." if left else "Removed."
    tell(done if remove else "Nothing was removed: --remove does it.")


def _remove_version(registry: Registry, objective: str, number: str) -> list[str]:
    """A version, its model with all files, and the run that registered it; the places that stay.

    A store of files need not be able to remove any.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    client, version = registry.client, registry.version(objective, number)
    places, stays = [client.get_model_version_download_uri(version.name, version.version)], []
    models: list[str] = []
    if version.run_id:
        with _perhaps_gone():
            run = client.get_run(version.run_id).info
            places.append(str(run.artifact_uri))
            made = f"source_run_id = '{version.run_id}'"  # the version itself does not name it
            found = client.search_logged_models([run.experiment_id], filter_string=made)
            models = [str(model.model_id) for model in found]
    for place in places:
        repository: Any = get_artifact_repository(place, tracking_uri=client.tracking_uri)
        try:
            with contextlib.suppress(FileNotFoundError):
                repository.delete_artifacts()
        except NotImplementedError:
            stays.append(place)
    for model in models:
        with _perhaps_gone():
            client.delete_logged_model(model)
    if version.run_id:
        with _perhaps_gone():
            client.delete_run(version.run_id)
    client.delete_model_version(version.name, version.version)
    return stays


@contextlib.contextmanager
def _perhaps_gone() -> Iterator[None]:
    """Pass over what MLflow does not have: it was removed before, or never made."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise


async def _collect(root: Path, commits: Iterable[str], remove: bool) -> list[str]:
    """Have DVC remove from its cache what none of the commits, the workspace or any data needs.

    DVC goes by tags: those of a clone in which the commits are all that is tagged.
    """
    told = await versions.dvc(root, "cache", "dir")
    cache = Path(told.stdout.strip()).resolve()
    if not cache.is_relative_to((root / ".dvc").resolve()):
        return [f"DVC's cache {cache} is shared with other projects: nothing of it is removed."]
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary) / "clone"
        head = git(root, "rev-parse", "--verify", "--quiet", "HEAD", fails=True)
        if not head:
            return ["There is no commit yet: nothing of DVC's cache is removed."]
        folder = place / clone(root, head, place)
        for tag in git(folder, "tag", "--list").split():
            git(folder, "tag", "--delete", tag)
        for commit in commits:
            git(folder, "tag", f"kept-{commit}", commit)
        _take_workspace(root, folder)
        _take_data(root, folder)
        write_config(folder, {"cache.dir": str(cache)})
        how = "--force" if remove else "--dry"
        answer = await versions.dvc(folder, "gc", "--workspace", "--all-tags", how)
    if answer.returncode:
        raise InputError(versions.sentence("dvc gc", answer.stderr))
    said = [*answer.stdout.splitlines(), *answer.stderr.splitlines()]
    wanted = ("removed", "unused", "would")
    return [f"DVC: {line}" for line in said if any(word in line.lower() for word in wanted)]


def _take_workspace(root: Path, folder: Path) -> None:
    """What is not committed yet counts as well."""
    for name in ("dvc.lock", "dvc.yaml", "params.yaml"):
        if (root / name).is_file():
            shutil.copyfile(root / name, folder / name)


def _pointers(root: Path) -> Iterator[Path]:
    """DVC's pointers in the working tree, whatever git knows of them."""
    for folder, below, files in os.walk(root):
        below[:] = [name for name in below if name not in (".git", ".dvc", ".infalign", ".venv")]
        for name in files:
            if name.endswith(POINTER):
                yield Path(folder) / name


def _take_data(root: Path, folder: Path) -> None:
    """A pointer to every version of whatever `dvc add` was given, each under a name of its own.

    Of all commits, of the index and of the working tree, at any place. Champions that align started
    from are the registry's: those of the workspace alone are taken.
    """
    texts = {path.read_text(encoding="utf-8") for path in _pointers(root)}
    told = git(root, "log", "--all", "--format=%H", "--", f"*{POINTER}", fails=True)
    for commit in told.split():
        held = git(root, "ls-tree", "-r", "-z", "--name-only", f"{commit}:./", fails=True)
        for name in held.split("\0"):
            if name.endswith(POINTER) and not name.startswith(f"{START}/"):
                texts.add((shown(root, commit, name) or b"").decode(errors="replace"))
    for number, text in enumerate(sorted(texts)):
        tree = yaml.safe_load(text) or {}
        outs = [out | {"path": f"kept-{number}-{n}"} for n, out in enumerate(tree.get("outs", []))]
        if outs:
            write_text(folder / "kept" / f"{number}.dvc", yaml.safe_dump({"outs": outs}))
