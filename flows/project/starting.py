"""`infalign init`: a project in a folder of its own, from the installed package.

The files of a new project are those of this repository (`template.txt` lists them); a wheel has
them in `template/`. There is no source code in such a project, so its stages depend on
`code/STAGE`, the hash of the package's files that a stage imports: `infalign run` renews them, and
an upgrade makes those stages stale whose code has changed.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from flows.project.dependencies import FILE, detached, renew
from flows.project.git import git
from infalign.errors import InputError
from infalign.files.workspace import write_text

HERE = Path(__file__).parent


def start(folder: Path) -> list[str]:
    """Make a project in a new or empty folder, in git, with a first commit; what to say of it.

    Raises:
        InputError: where something is there already, git is not, or git does not take it.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is not empty: name a new folder.")
    if shutil.which("git") is None:
        raise InputError("git is not installed: a project's versions are kept with it.")
    try:
        _copy(folder)
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror}): name another.") from None
    said = [f"A project in {folder}: params.yaml has every setting."]
    try:
        git(folder, "init", "--quiet")
        git(folder, "add", ".")
        said += _commit(folder)
    except InputError as error:
        raise InputError(
            f"the project is in {folder}, but git did not take it: {error}: mend that, then "
            "`git init`, `git add .` and `git commit` there."
        ) from None
    return [*said, f"Next: cd {folder} && infalign run"]


def _commit(folder: Path) -> list[str]:
    """Make the first commit; what to say where nobody has told git who commits."""
    try:
        git(folder, "commit", "--quiet", "-m", "A new infalign project")
    except InputError:
        if git(folder, "config", "user.name", fails=True):
            raise
        return ["git has no name for you, so nothing is committed: `git config user.name …`."]
    return []


def template() -> Path:
    """Where the files of a new project are: in the wheel, or in the clone."""
    packed = HERE / "template"
    return packed if packed.is_dir() else HERE.parents[1]


def _copy(folder: Path) -> None:
    source = template()
    patterns = (HERE / "template.txt").read_text(encoding="utf-8").split()
    for path in (path for pattern in patterns for path in sorted(source.glob(pattern))):
        target = folder / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    text = (folder / FILE).read_text(encoding="utf-8")
    write_text(folder / FILE, detached(text))
    renew(folder)
