"""`infalign init`: a project in a folder of its own, from the installed package.

The files of a new project are those of this repository (`template.txt` lists them); a wheel has
them in `template/`. There is no source code in such a project, so its stages depend on
`code/STAGE`, the hash of the package's files that a stage imports: `infalign run` renews them, and
an upgrade makes those stages stale whose code has changed.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from pathlib import Path

from infalign.errors import InputError
from infalign.files.code import ROOT, stage_files
from infalign.files.stages import STAGES
from infalign.files.workspace import write_text

HERE = Path(__file__).parent
CODE = "code"  # the folder of the hashes
_SOURCES = re.compile(r"(?:      - infalign/\S+\.py\n)+")
_STAGE = re.compile(r"(?m)^(?=  \w+:(?: .*)?$)")


def start(folder: Path) -> list[str]:
    """Make a project in a new or empty folder, in git, with a first commit; what to say of it.

    Raises:
        InputError: where something is there already, or git is not.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is not empty: name a new folder.")
    if shutil.which("git") is None:
        raise InputError("git is not installed: a project's versions are kept with it.")
    try:
        _copy(folder)
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror}): name another.") from None
    _git(folder, "init", "--quiet")
    _git(folder, "add", ".")
    said = [f"A project in {folder}: params.yaml has every setting."]
    if not _git(folder, "commit", "--quiet", "-m", "A new infalign project"):
        said.append("git has no name for you, so nothing is committed: `git config user.name …`.")
    return [*said, f"Next: cd {folder} && infalign run"]


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
    text = (folder / "dvc.yaml").read_text(encoding="utf-8")
    write_text(folder / "dvc.yaml", detached(text))
    renew(folder)


def detached(text: str) -> str:
    """The text of dvc.yaml with one hash a stage in the place of its source files."""
    sections = _STAGE.split(text)
    return "".join(
        _SOURCES.sub(f"      - {CODE}/{section.partition(':')[0].strip()}\n", section)
        for section in sections
    )


def renew(root: Path) -> bool:
    """Bring the hashes of a project without source code up to date; whether any has changed."""
    try:
        listed = re.findall(
            rf"(?m)^      - {CODE}/(\w+)$", (root / "dvc.yaml").read_text(encoding="utf-8")
        )
    except OSError:
        return False
    changed = False
    for word in set(listed) & set(STAGES):
        path, digest = root / CODE / word, code_digest(word) + "\n"
        if not path.is_file() or path.read_text(encoding="utf-8") != digest:
            write_text(path, digest)
            changed = True
    return changed


def code_digest(word: str) -> str:
    """One name for the package's files that a stage imports."""
    digest = hashlib.sha256()
    for name in stage_files(word):
        digest.update(f"{name}\n".encode() + (ROOT / name).read_bytes())
    return digest.hexdigest()


def _git(folder: Path, *arguments: str) -> bool:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, check=False)
    return not done.returncode
