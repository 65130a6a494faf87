"""`infalign restore`: a commit's params, dvc.lock and data in a folder of their own, and the proof
that running it again gives the same files.

The folder is a git clone that shares the project's DVC cache and remotes. It appears when it is
complete; nothing outside it is written.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flows.children.processes import Tell, child_environment, run_child
from flows.project import versions
from flows.project.git import answer, git, shown, words
from infalign.errors import InputError
from infalign.files.sources import MARK
from infalign.files.weights import BUILT, NONE
from infalign.settings.params import Params, check_params
from infalign.settings.reading import read_text, read_tree


@dataclass(frozen=True)
class Origin:
    """What the tags of a registered version say of where it was made."""

    name: str  # of the version, to speak of it
    commit: str
    dirty: bool
    dvc_lock: str  # SHA-256 of the file
    params: str  # SHA-256 of all parameters


def exact_commit(root: Path, origin: Origin) -> str:
    """The commit that holds a version's dvc.lock, which holds the hashes of all code and data.

    A run writes dvc.lock before anyone can commit it, so that a version's own tree is dirty by its
    lock at least: then it is the commit, if there is one, that took this very lock and params in.

    Raises:
        InputError: if no commit does: the version was made from changes that nobody kept.
    """
    if not origin.dirty:
        if _lock_hash(root, origin.commit) == origin.dvc_lock:
            return resolve(root, origin.commit)
        raise InputError(
            f"{origin.name}: dvc.lock of commit {origin.commit[:12]} is not the one that the "
            "version was made with: its tags, or the commit, were changed."
        )
    for commit in git(root, "log", "--all", "--format=%H", "--", "dvc.lock", fails=True).split():
        same_params = not origin.params or _params_hash(root, commit) == origin.params
        if same_params and _lock_hash(root, commit) == origin.dvc_lock:
            return commit
    raise InputError(
        f"{origin.name} was made from uncommitted changes to {origin.commit[:12]}, so it cannot be "
        "restored exactly: no commit holds its dvc.lock and params. Commit them as the run left "
        f"them, or restore the commit itself with --commit {origin.commit[:12]}."
    )


def resolve(root: Path, revision: str) -> str:
    """The full name of a commit."""
    asked = ("rev-parse", "--verify", "--quiet", "--end-of-options", revision + "^{commit}")
    found = git(root, *asked, fails=True)
    if not found:
        raise InputError(f"{revision!r} is no commit of {root}: `git log --all` shows them.")
    return found


def _lock_hash(root: Path, commit: str) -> str:
    return hashlib.sha256(shown(root, commit, "dvc.lock") or b"").hexdigest()


def _params_hash(root: Path, commit: str) -> str:
    """As the registry's tag: over all parameters, whatever the file's comments."""
    text = (shown(root, commit, "params.yaml") or b"").decode(errors="replace")
    try:
        params: Params = check_params(read_tree(text, commit), commit)
    except InputError:
        return ""
    tree = json.dumps(params.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(tree.encode()).hexdigest()


async def restore(root: Path, commit: str, into: Path | None, tell: Tell) -> Path:
    """The project as it was at a commit, with its results and data; the folder's path."""
    if shown(root, commit, "dvc.lock") is None:
        raise InputError(
            f"commit {commit[:12]} has no dvc.lock, so nobody knows its results: choose a commit "
            "that has (`git log --all -- dvc.lock`)."
        )
    target = check_target(root, into or root / ".infalign" / "restored" / commit[:12])
    staged = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        folder = staged / clone(root, commit, staged)
        check_paths(folder)
        await fetch(root, folder)
        own = bring_own(root, folder)
        await _check_equal(folder, own, tell)
        if target.exists():
            target.rmdir()
        os.replace(staged, target)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return target / folder.relative_to(staged)


def check_target(root: Path, into: Path) -> Path:
    """The folder to restore into: new or empty, and in nobody's way."""
    target = into.absolute()
    if into.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
        raise InputError(f"{into} is there already: choose a new or empty folder (--into).")
    place, project = target.resolve(), root.resolve()
    if place.is_relative_to(project) and not place.is_relative_to(project / ".infalign"):
        raise InputError(
            f"{into} lies in the project, whose files it would change: choose a folder outside."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    return place


def clone(root: Path, commit: str, target: Path) -> str:
    """Clone the repository at a commit; the project's path inside it."""
    top = git(root, "rev-parse", "--show-toplevel")
    options = ["-c", "core.hooksPath=/dev/null", "-c", "advice.detachedHead=false"]
    for command in (
        ["clone", "--quiet", "--no-checkout", "--", top, str(target)],
        ["-C", str(target), "checkout", "--quiet", "--detach", commit],
    ):
        done = answer(root, *options, *command)
        if done.returncode:
            raise InputError(f"git cannot restore {commit[:12]}: {words(done)}")
    return git(root, "rev-parse", "--show-prefix") or "."


def check_paths(folder: Path) -> None:
    """Raise for an output that DVC would write outside the folder, by its path or by a link."""
    home = folder.resolve()
    for line in filter(None, git(folder, "ls-files", "--stage", "-z").split("\0")):
        mode, name = line.split(" ", 1)[0], line.split("\t", 1)[1]
        if mode == "120000" and not (folder / name).resolve().is_relative_to(home):
            raise InputError(f"{name} of this commit is a link out of its folder: not restored.")
    for name in filter(None, git(folder, "ls-files", "-z", "*.dvc", "*dvc.lock").split("\0")):
        for path in _output_paths(folder / name, name):
            place = path.parent.resolve() / path.name
            inside = place.is_relative_to(home) and path.name not in ("", "..")
            if not inside or {".git", ".dvc"} & set(place.relative_to(home).parts):
                raise InputError(
                    f"{name} of this commit has the output {path}, which lies "
                    "outside its folder: not restored."
                )


def _output_paths(file: Path, name: str) -> list[Path]:
    """Where DVC would write the outputs of a .dvc file or a dvc.lock."""
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        entries = [tree, *(tree.get("stages") or {}).values()]
        return [
            file.parent / (entry.get("wdir") or ".") / out["path"]
            for entry in entries
            for out in entry.get("outs") or []
        ]
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, UnicodeDecodeError):
        raise InputError(f"{name} of this commit is not a file of DVC's: not restored.") from None


async def fetch(root: Path, folder: Path) -> None:
    """Bring results and data into the folder, from the project's cache or its remote."""
    settings = await versions.remote_settings(root)
    cache = await versions.dvc(root, "cache", "dir")
    write_config(folder, settings | {"cache.dir": cache.stdout.strip()})
    # With --quiet it would not say what it lacks.
    answer = await versions.dvc(folder, "checkout", "--force")
    if not answer.returncode:
        return
    if "core.remote" in settings:
        answer = await versions.dvc(folder, "pull", "--force")
        if not answer.returncode:
            return
    where = "the remote either" if "core.remote" in settings else "a remote, since there is none"
    raise InputError(
        f"results or data of this commit are not in DVC's cache, nor in {where}: "
        f"{versions.sentence('dvc.lock', answer.stderr)}"
    )


def write_config(folder: Path, settings: dict[str, str]) -> None:
    """DVC's local settings, readable by the owner alone: remotes may have passwords."""
    from configobj import ConfigObj

    config = ConfigObj(encoding="utf-8", list_values=False)
    for key, value in settings.items():
        section, _, option = key.rpartition(".")
        kind, _, name = section.partition(".")
        config.setdefault(f'{kind} "{name}"' if name else kind, {})[option] = value
    path = folder / ".dvc" / "config.local"
    path.touch(mode=0o600)
    with open(path, "wb") as stream:
        config.write(stream)


def bring_own(root: Path, folder: Path) -> dict[str, str]:
    """The user's own files and folders that the commit reads, by what names them.

    What lies in the project, and neither git nor DVC has, gets a link in the restored folder.
    """
    named = _models(folder) | _listed(folder)
    for key, name in named.items():
        place, here = folder / name, root / name
        parts = Path(name).parts
        inside = not Path(name).is_absolute() and ".." not in parts and parts[:1] != ("results",)
        if inside and here.exists() and not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(here.resolve(), target_is_directory=here.is_dir())
        if not place.exists():
            raise InputError(
                f"{key} of this commit is {name!r}, and nothing is there, seen from the restored "
                "folder: bring it back, or choose a folder beside the project (--into)."
            )
    return named


def _listed(folder: Path) -> dict[str, str]:
    """What params.yaml names of the user's own, as the commit's dvc.yaml lists it."""
    file = folder / "dvc.yaml"
    lines = read_text(file).splitlines() if file.is_file() else []
    marked = (line.strip().removeprefix("- ") for line in lines if line.endswith(MARK))
    # The user's own are quoted; others are results of the items that params.yaml lists.
    found = [json.loads(line.removesuffix(MARK)) for line in marked if line.startswith('"')]
    return {f"dvc.yaml: dependency {name}": name.replace("\\${", "${") for name in found}


def _models(folder: Path) -> dict[str, str]:
    """The local models of a commit's params.yaml, by their keys there."""
    file = folder / "params.yaml"
    text = read_text(file) if file.is_file() else ""  # without it, DVC says what is wrong
    tree = read_tree(text, "params.yaml of this commit")
    sections = {name: tree.get(name) for name in BUILT} if isinstance(tree, dict) else {}
    named = {
        f"params.yaml: {section}.folder": tree.get("folder")
        for section, tree in sections.items()
        if isinstance(tree, dict)
    }
    return {key: name for key, name in named.items() if isinstance(name, str) and name != NONE}


async def _check_equal(folder: Path, own: dict[str, str], tell: Tell) -> None:
    """Raise where the commit's code, params, models or data are not those of its dvc.lock."""
    plan = await versions.read_plan(folder, tell, target=versions.RUN)
    words = [word for why in plan.stale.values() for word in why.split(", ")]
    for key, name in own.items():
        shown = (os.path.normpath(name), os.path.abspath(folder / name))  # in or out of the project
        if any(f"{path} modified" in words for path in shown):
            raise InputError(
                f"{key}: the files of {name!r} are no longer those that this commit's results were "
                "made from (dvc.lock): bring those back (`dvc add` keeps the versions of such)."
            )
    if plan.stale:
        name, why = next(iter(plan.stale.items()))
        raise InputError(
            f"the commit's dvc.lock is not of its own files ({name}: {why}): they were committed "
            "without a run, so this commit cannot be restored exactly."
        )


@dataclass(frozen=True)
class Difference:
    """The first stage instance that did not give the same files, and which ones."""

    instance: str
    outputs: list[str]


async def first_difference(folder: Path, tell: Tell) -> Difference | None:
    """Run every stage of a restored folder again, in order, and compare the hashes of its files.

    Stops at the first difference: what follows would differ because of it.
    """
    before = versions.lock_entries(folder)
    plan = await versions.read_plan(folder, tell, target=versions.RUN)
    for instance in plan.instances:
        command = [*versions.DVC, "repro", "--force", "--no-commit", "--single-item", instance]
        done = await run_child(command, folder, child_environment(), lambda _: None)
        if done.returncode:
            raise versions.failure(instance, done)
        wanted = _outputs(before[instance])
        made = _outputs(versions.lock_entries(folder)[instance])
        different = sorted(path for path in wanted if made.get(path) != wanted[path])
        if different:
            return Difference(instance, different)
        tell(f"{instance}: the same, {', '.join(f'{p} {h}' for p, h in wanted.items())}")
    return None


def _outputs(entry: Any) -> dict[str, str]:
    return {out["path"]: str(out.get("md5")) for out in entry.get("outs", [])}


def restore_and_say(root: Path, commit: str, into: Path | None, verify: bool, tell: Tell) -> bool:
    """Restore a commit and, where asked, run it again; whether the files were the same."""
    folder = asyncio.run(restore(root, commit, into, tell))
    tell(f"Commit {commit[:12]} with its results and data is in {folder}")
    if not verify:
        return True
    tell("Every stage is run again and compared with dvc.lock:")
    different = asyncio.run(first_difference(folder, tell))
    if different is None:
        tell("Every stage gave the same files.")
        return True
    tell(
        f"{different.instance} is the first stage that gave other files: "
        f"{', '.join(different.outputs)} in {folder} (versions of libraries, the number of threads "
        "or the processor can be the reason)."
    )
    return False
