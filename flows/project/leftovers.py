"""Results that no stage makes any more: of a variant, say, that was taken out of `run.variants`.

DVC leaves them where they are, though nothing reads them.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.project import versions
from flows.project.versions import Plan


async def clear(root: Path, plan: Plan) -> list[str]:
    """Remove the results of instances that dvc.yaml no longer has; their paths.

    Only those that DVC's cache holds: taking the item in again brings them back from there.
    """
    left = unmade(versions.lock_entries(root), plan)
    there = {path: md5 for path, md5 in left.items() if (root / path).exists()}
    if not there:
        return []
    answer = await versions.dvc(root, "cache", "dir")
    cache = Path(answer.stdout.strip()) / "files" / "md5"
    cleared = [path for path, md5 in there.items() if (cache / md5[:2] / md5[2:]).exists()]
    for path in cleared:
        place = root / path
        shutil.rmtree(place) if place.is_dir() else place.unlink()
        with contextlib.suppress(OSError):  # where others are in it
            place.parent.rmdir()
    return cleared


def unmade(entries: Mapping[str, Any], plan: Plan) -> dict[str, str]:
    """What dvc.lock says of instances that are gone: paths of results, and DVC's hashes of them.

    Of stages that the plan has: it may be of some of them only.
    """
    words = {_word(name) for name in plan.instances}
    gone = {name for name in entries if name not in plan.upstream and _word(name) in words}
    outs = {name: entry.get("outs", []) for name, entry in entries.items()}
    living = [Path(out["path"]) for name in outs if name not in gone for out in outs[name]]
    return {
        out["path"]: str(out.get("md5"))
        for name in sorted(gone)
        for out in outs[name]
        if _lies_in_results(Path(out["path"])) and not any(_meet(out, other) for other in living)
    }


def _word(instance: str) -> str:
    return instance.split("@")[0]


def _lies_in_results(path: Path) -> bool:
    return path.parts[:1] == ("results",) and ".." not in path.parts


def _meet(out: Mapping[str, Any], other: Path) -> bool:
    """Whether one of two outputs lies in the other."""
    path = Path(out["path"])
    return path.is_relative_to(other) or other.is_relative_to(path)
