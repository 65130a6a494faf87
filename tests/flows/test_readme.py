"""The commands of README.md and the pages beside it: run in a finished project, or checked.

A line is run where a small project can run it in a moment. What takes long or needs the internet
is checked word by word: make's targets, the command's options, the keys and values of params. What
needs servers is run by test_production. A command that is none of these fails.
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer

from flows.cli import app
from flows.project.configuration import set_params
from flows.project.recipes import read_recipe
from infalign.errors import InputError
from infalign.processes.one_stage import parse_arguments
from tests.flows.conftest import ROOT, Project, contents, git
from tests.flows.project.test_restoring import committed

SCALE = ROOT / "docs" / "scale.md"  # its commands are checked: they need GPUs, or minutes
README, PRODUCTION = ROOT / "README.md", ROOT / "docs" / "production.md"
PAGES = [README, ROOT / "docs" / "data.md", ROOT / "docs" / "compare.md", PRODUCTION]
RUN = (
    r"infalign run( --dry-run| --push)?",
    r"infalign (frontier|data (add|log|back)) .*",
    r"infalign measure --reference results/.*",
    r"infalign report",
    r"infalign restore --commit .*",
    r"python -m infalign align .*",
    r"dvc (repro|add|remote add|checkout|pull|params diff|metrics (diff|show)|plots diff)\b.*",
    r"(git (add|commit|checkout|clone)|cd) .*",
)
# Run by test_production, in its order.
PLAYED = (
    r"make (up|down)$|infalign (schedule|serve|versions|promote|rollback|history|run$) ?"
    r"|infalign data from-log"
    r"|infalign run --promote|infalign restore --version"
    r"|curl .*/(invocations|v1/chat/completions|feedback)"
    r"|INFALIGN_ROOT=\$PWD prefect worker start|prefect work-pool create"
    r"|export (PREFECT_API_URL|PET_RDZV_BACKEND)="
)


def lines_of(page: Path) -> list[str]:
    """The commands of a page's shell blocks, continuations joined, comments left out."""
    blocks = re.findall(r"^```(?:bash|sh|shell)\n(.*?)^```", page.read_text(), re.M | re.S)
    joined = "\n".join(blocks).replace("\\\n", " ")
    bare = (re.sub(r"(^|\s+)#\s.*$", "", line) for line in joined.splitlines())
    return [" ".join(line.split()) for line in bare if line.strip()]


def parts_of(line: str) -> list[str]:
    """The commands that `&&` joins."""
    return [part.strip() for part in line.split("&&")]


def is_run(line: str) -> bool:
    """Whether a small project can run the line in a moment."""
    return all(any(re.fullmatch(pattern, part) for pattern in RUN) for part in parts_of(line))


def check_words(command: str, folder: Path) -> None:
    """Raise for a word that does not exist: a target, an option, a key or value of params."""
    program, *words = shlex.split(command)
    if program == "make":
        text = (ROOT / "Makefile").read_text()
        for word in words:
            name = word.partition("=")[0]
            pattern = rf"^{name}:" if name == word else rf"^{name}\s*[?:]?="
            assert re.search(pattern, text, re.M), f"the Makefile has no {word}"
    elif program == "infalign":
        _check_command(words)
        settings = [value for key, value in itertools.pairwise(words) if key == "--set"]
        shutil.copyfile(ROOT / "params.yaml", folder / "params.yaml")
        named = [value for key, value in itertools.pairwise(words) if key == "--recipe"]
        recipe = [setting for name in named for setting in read_recipe(ROOT, name)]
        models = {key: value for key, value in recipe if key == "model.name_or_path"}
        models |= dict(
            setting.split("=", 1) for setting in settings if "model.name_or_path" in setting
        )
        if models.get("model.name_or_path", "tiny") != "tiny":
            settings.append(f"model.revision={'a' * 40}")  # which the hub would be asked for
        set_params(folder / "params.yaml", settings, recipe=recipe)
    elif (program, *words[:2]) == ("python", "-m", "infalign"):
        parse_arguments(words[2:])
    elif (program, words[0], *words[2:4]) == ("torchrun", "--nproc_per_node", "-m", "infalign"):
        parse_arguments(words[4:])
    elif program == "python" and (ROOT / words[0]).suffix == ".py":
        assert (ROOT / words[0]).is_file(), f"there is no {words[0]}"
    elif program == "pip":
        extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        assert words[-1].strip(".[]") in extra["optional-dependencies"], f"no extra {words[-1]}"
    elif not re.match(PLAYED, command):
        raise AssertionError(f"neither run nor checked: {command}")


def _check_command(words: list[str]) -> None:
    """Parse the words as the command would, without doing anything."""
    command: Any = typer.main.get_command(app)
    try:
        context = command.make_context("infalign", list(words))
        while hasattr(command, "resolve_command"):  # a group
            rest = [*context._protected_args, *context.args]
            name, command, rest = command.resolve_command(context, rest)
            context = command.make_context(name, rest, parent=context)
    except Exception as error:  # typer's own classes, or click's: by its version
        raise AssertionError(f"infalign {' '.join(words)}: {error}") from error


@pytest.mark.parametrize("page", [*PAGES, SCALE], ids=lambda page: page.name)
def test_every_word_exists(page: Path, tmp_path: Path) -> None:
    lines = lines_of(page)
    assert len(lines) >= 3
    for line in lines:
        played = page != SCALE and is_run(line)
        for part in parts_of(line):
            if not played or part.startswith("infalign"):
                check_words(part, tmp_path)


def test_what_needs_servers_is_told_in_one_story() -> None:
    readme, production = (
        {line for line in lines_of(page) if re.match(PLAYED, line)} for page in (README, PRODUCTION)
    )
    assert readme - production <= {"infalign run"}
    assert len(readme) >= 9


@pytest.mark.parametrize(
    "wrong",
    [
        "make nothing",
        "make run NOTHING=1",
        "infalign walk",
        "infalign run --fast",
        "infalign run --set align.step=5",
        "infalign run --recipe nothing",
        "infalign run --set align.steps=many",
        "python -m infalign align --objective helpful",
        "curl http://127.0.0.1:1",
    ],
)
def test_a_word_that_does_not_exist_is_noticed(wrong: str, tmp_path: Path) -> None:
    assert not is_run(wrong) or wrong.startswith("python")
    with pytest.raises((AssertionError, InputError, SystemExit)):
        check_words(wrong, tmp_path)


def write_preferences(folder: Path, start: int = 0) -> None:
    """A user's own data: two subsets of HH files."""
    for subset in ("helpful-base", "harmless-base"):
        (folder / subset).mkdir(parents=True)
        for split in ("train", "test"):
            asked = [
                f"\n\nHuman: What is {split} {number}?\n\nAssistant:"
                for number in range(start, start + 20)
            ]
            pairs = [{"chosen": f"{q} A number.", "rejected": f"{q} No."} for q in asked]
            text = "".join(json.dumps(pair) + "\n" for pair in pairs)
            (folder / subset / f"{split}.jsonl").write_text(text)


@pytest.fixture
def place(real: tuple[Project, str, dict[str, bytes]], tmp_path: Path) -> Project:
    """A committed copy of the finished project, with `infalign` on its PATH and data beside it."""
    root, programs = tmp_path / "project", tmp_path / "bin"
    shutil.copytree(real[0].root, root, symlinks=True)
    write_preferences(tmp_path / "my-preferences")
    write_preferences(tmp_path / "more-preferences", start=20)
    programs.mkdir()
    (programs / "infalign").write_text(f'#!/bin/sh\nexec {sys.executable} -m flows.cli "$@"\n')
    (programs / "infalign").chmod(0o755)
    somebody = {
        f"GIT_{who}_{what}": "t@t" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    project = Project(root, real[0].environment | somebody)
    project.environment["PATH"] = f"{programs}:{project.environment['PATH']}"
    committed(project)
    return project


@pytest.mark.soak
def test_the_commands_do_what_the_pages_say(
    place: Project, real: tuple[Project, str, dict[str, bytes]], tmp_path: Path
) -> None:
    said: dict[str, str] = {}
    for page in PAGES:
        for line in filter(is_run, lines_of(page)):
            if line.startswith("git add . && git commit"):  # of a first run
                git(place.root, "rm", "--quiet", "--cached", "dvc.lock")
                git(place.root, "commit", "--quiet", "--message", "before it")
            if line.startswith("dvc add"):  # "change the files, then"
                (tmp_path / "project/data/raw/my-preferences/helpful-base/test.jsonl").unlink()
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", line],
                cwd=place.root,
                env=place.environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
            )
            said[line] = done.stdout
            assert done.returncode == 0, f"{page.name}: {line}\n{done.stdout}{done.stderr}"
            if line.startswith("git checkout HEAD~1"):
                assert (place.root / "data/raw/my-preferences/helpful-base/test.jsonl").exists()
    assert len(said) >= 14
    assert contents(place.root) == real[2]
    assert "0 made, 0 restored" in said["infalign run"]
    assert "files pushed" in said["infalign run --push"]
    clone = next(text for line, text in said.items() if line.startswith("git clone"))
    assert "0 made, 0 restored" in clone
    assert contents(tmp_path / "elsewhere") == contents(tmp_path / "restored") == real[2]
    assert place.survivors() == []
