"""`make dvc`: the source files in dvc.yaml, as the stages import them.

`python -m flows.project.dependencies` rewrites the `infalign/….py` lines among the dependencies of
every stage and leaves all others alone; with `--check` it writes nothing and exits with 1 where
something would change.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from infalign.files.code import stage_files
from infalign.files.workspace import write_text

FILE = Path("dvc.yaml")
_STAGE = re.compile(r"^  (\w+):", re.MULTILINE)
_SOURCES = re.compile(r"(?<=\n)(?:      - infalign/\S+\.py\n)+")


def rewritten(text: str) -> str:
    """The text of dvc.yaml with every stage's source files."""
    head, *sections = re.split(r"(?m)^(?=  \w+:(?: .*)?$)", text)
    return head + "".join(_with_sources(section) for section in sections)


def _with_sources(section: str) -> str:
    found = _STAGE.match(section)
    if found is None or "\n    deps:\n" not in section:
        return section
    lines = "".join(f"      - {name}\n" for name in stage_files(found.group(1)))
    bare = _SOURCES.sub("", section)
    return re.sub(r"(\n    deps:\n(?:      - .*\n)*)", lambda match: match.group(1) + lines, bare)


def main(arguments: list[str]) -> int:
    """Write dvc.yaml, or say whether it is as this would write it."""
    text = FILE.read_text(encoding="utf-8")
    wanted = rewritten(text)
    if wanted == text:
        return 0
    if "--check" in arguments:
        print("dvc.yaml: its source files are not those that the stages import: run `make dvc`.")
        return 1
    write_text(FILE, wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
