"""`make dvc`: the files in dvc.yaml: those that stages import, and those that params.yaml names.

`python -m flows.project.dependencies` rewrites the `infalign/….py` lines among the dependencies of
every stage, those that follow from params.yaml (the user's own files, results of the items of its
lists), and the policies among the artifacts, and leaves all others alone; with `--check` it writes
nothing and exits with 1 where something would change.

A project of `infalign init` has no source code: there a stage depends on `code/STAGE`, one hash of
the files that it imports, which `infalign run` renews.
"""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path

from infalign.files.code import ROOT, stage_files
from infalign.files.sources import DATA, MARK, lines_of
from infalign.files.stages import STAGES
from infalign.files.workspace import write_text
from infalign.settings.params import Params, load_params

FILE = Path("dvc.yaml")
CODE = "code"  # the folder of the hashes, in a project without source code
_STAGE = re.compile(r"^  (\w+):", re.MULTILINE)
_SOURCES = re.compile(r"(?<=\n)(?:      - infalign/\S+\.py\n)+")
_ARTIFACTS = re.compile(r"(?m)^(artifacts:.*\n)(?:  .*\n)*")
MARK_OR_DATA = re.compile(rf"(?m)^      - (?:.*{MARK}|\$\{{data\.path\}})\n")


def rewritten(text: str, params: Params) -> str:
    """The text of dvc.yaml with every stage's source files and the user's own."""
    return "".join(map(_with_sources, _sections(with_own(text, params))))


def with_own(text: str, params: Params) -> str:
    """The text of dvc.yaml with the files that params.yaml names, its other lines as they are."""
    own = "".join(_with_own(section, params) for section in _sections(text))
    return _ARTIFACTS.sub(lambda match: match.group(1) + _policies(params), own)


def _policies(params: Params) -> str:
    """The policies as DVC's artifacts, `helpful-ctrl` and so on."""
    return "".join(
        f"  {objective}-{variant}:\n"
        f"    path: results/align/{objective}/{variant}/policy\n"
        f"    type: model\n"
        f"    desc: {objective}, the policy {variant}\n"
        for objective in params.run.objectives
        for variant in params.run.variants
    )


def _sections(text: str) -> list[str]:
    return re.split(r"(?m)^(?=  \w+:(?: .*)?$)", text)


def _word(section: str) -> str | None:
    """The stage of a section that has dependencies."""
    found = _STAGE.match(section)
    return found.group(1) if found and "\n    deps:\n" in section else None


def _with_sources(section: str) -> str:
    word = _word(section)
    if word is None:
        return section
    lines = "".join(f"      - {name}\n" for name in stage_files(word))
    bare = _SOURCES.sub("", section)
    return re.sub(r"(\n    deps:\n(?:      - .*\n)*)", lambda match: match.group(1) + lines, bare)


def _with_own(section: str, params: Params) -> str:
    word = _word(section)
    lines = lines_of(word, params) if word else {}
    if not MARK_OR_DATA.search(section) and lines.keys() <= {DATA}:
        return section
    bare = MARK_OR_DATA.sub("", section)
    return bare.replace("\n    deps:\n", "\n    deps:\n" + "".join(lines), 1)


def detached(text: str) -> str:
    """The text of dvc.yaml with one hash a stage in the place of its source files."""
    return "".join(
        _SOURCES.sub(f"      - {CODE}/{_word(section)}\n", section) for section in _sections(text)
    )


def renew(root: Path) -> bool:
    """Bring the hashes of a project without source code up to date; whether any has changed."""
    try:
        text = (root / FILE).read_text(encoding="utf-8")
    except OSError:
        return False
    changed = False
    for word in set(re.findall(rf"(?m)^      - {CODE}/(\w+)$", text)) & set(STAGES):
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


def write_own(root: Path, params: Params) -> bool:
    """Bring the user's own files in dvc.yaml up to date; whether anything was written there.

    In a project without source code also the hashes of the package's.
    """
    renew(root)
    path = root / FILE
    text = path.read_text(encoding="utf-8")
    wanted = with_own(text, params)
    if wanted != text:
        write_text(path, wanted)
    return wanted != text


def main(arguments: list[str]) -> int:
    """Write dvc.yaml, or say whether it is as this would write it."""
    params = load_params()
    text = FILE.read_text(encoding="utf-8")
    wanted = rewritten(text, params)
    if wanted == text:
        return 0
    if "--check" in arguments:
        print("dvc.yaml: its files are not those that the stages read: run `make dvc`.")
        return 1
    write_text(FILE, wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
