"""`make dvc`: the files in dvc.yaml: those that stages import, and the user's own that they read.

`python -m flows.project.dependencies` rewrites the `infalign/….py` lines among the dependencies of
every stage, and those that params.yaml names, and leaves all others alone; with `--check` it writes
nothing and exits with 1 where something would change.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from infalign.files.code import stage_files
from infalign.files.sources import DATA, MARK, lines_of
from infalign.files.workspace import write_text
from infalign.settings.params import Params, load_params

FILE = Path("dvc.yaml")
_STAGE = re.compile(r"^  (\w+):", re.MULTILINE)
_SOURCES = re.compile(r"(?<=\n)(?:      - infalign/\S+\.py\n)+")
_OWN = re.compile(rf"(?m)^      - .*{MARK}\n")


def rewritten(text: str, params: Params) -> str:
    """The text of dvc.yaml with every stage's source files and the user's own."""
    head, *sections = re.split(r"(?m)^(?=  \w+:(?: .*)?$)", text)
    return head + "".join(_with_files(section, params) for section in sections)


def _with_files(section: str, params: Params) -> str:
    found = _STAGE.match(section)
    if found is None or "\n    deps:\n" not in section:
        return section
    word = found.group(1)
    sources = "".join(f"      - {name}\n" for name in stage_files(word))
    own = "".join(lines_of(word, params))
    bare = _OWN.sub("", _SOURCES.sub("", section))
    if word == "prepare":
        bare = bare.replace(DATA, "")
    return re.sub(
        r"(\n    deps:\n)((?:      - .*\n)*)",
        lambda match: match[1] + own + match[2] + sources,
        bare,
    )


def write_dependencies(root: Path, params: Params) -> bool:
    """Bring the user's own files in dvc.yaml up to date; whether anything was written."""
    path = root / FILE
    text = path.read_text(encoding="utf-8")
    wanted = rewritten(text, params)
    if wanted != text:
        write_text(path, wanted)
    return wanted != text


def main(arguments: list[str]) -> int:
    """Write dvc.yaml, or say whether it is as this would write it."""
    params = load_params()
    text = FILE.read_text(encoding="utf-8")
    if rewritten(text, params) == text:
        return 0
    if "--check" in arguments:
        print("dvc.yaml: its files are not those that the stages read: run `make dvc`.")
        return 1
    write_dependencies(Path(), params)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
