"""What stages read by params.yaml: the user's own files, and results of every item of a list.

DVC takes no list of dependencies from params.yaml, so `make dvc` and `infalign run` write these
into dvc.yaml by their names, each on a line that ends with `MARK`. A stage that finds one missing
there says so: its results would not change with the file. Items are named one by one, because a
folder that holds all of them also holds those that nothing makes any more.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from infalign.errors import InputError
from infalign.settings.methods import Compare, Poison
from infalign.settings.params import Params
from infalign.settings.rewards import own_paths

MARK = "# by params.yaml"
DATA = "      - ${data.path}\n"
START = "champion"  # the folder of policies that align starts from, where align.start says so


def data_paths(params: Params) -> tuple[str, ...]:
    """The data that `prepare` reads, each path once."""
    return tuple(dict.fromkeys(map(params.data_path, params.run.objectives)))


def suite_paths(params: Params) -> tuple[str, ...]:
    """The pinned prompts that `prepare` leaves out of training, each path once."""
    return tuple(dict.fromkeys(params.data.suites.values()))


def own_files(word: str, params: Params) -> dict[str, str]:
    """The user's own files that a stage reads, beside data.path: path to the setting."""
    if word == "sources":
        return own_paths(params.running)
    if word != "prepare":
        return {}
    own = {
        path: f"objectives.{name}.data"
        for name in params.run.objectives
        if (path := params.data_path(name)) != params.data.path
    }
    return own | {path: f"data.suites.{name}" for name, path in params.data.suites.items()}


def items(word: str, params: Params, objective: str) -> dict[str, str]:
    """What a stage reads beside what it always reads: path to the setting that says so.

    Results of every item of a list; the policy to start from.

    Args:
        objective: whose results, for a stage with an instance for each; others do not look at it.
    """
    run, compare = params.run, params.compare
    if word == "align" and params.align.start == "champion":
        return {f"{START}/{objective}": "align.start"}
    if word == "evaluate":
        return {f"results/align/{objective}/{name}": "run.variants" for name in run.variants}
    if word == "report":
        return {
            f"results/{made}": "run.objectives and run.variants"
            for name in run.objectives
            for made in (
                f"reward/{name}/metrics.json",
                f"calibrate/{name}",
                *(f"align/{name}/{variant}" for variant in run.variants),
                f"evaluate/{name}",
            )
        }
    if word == "compare":
        return {
            f"results/{made}": "compare"
            for made in (
                *(f"contend/{objective}/{one}" for one in _policies(compare)),
                *(f"poison/{name}" for name in compare.poison.objectives),
                *(
                    f"hack/{name}/{one}"
                    for name in compare.poison.objectives
                    for one in _policies(compare.poison)
                ),
            )
        }
    return {}


def _policies(of: Compare | Poison) -> list[str]:
    """The folders of what a comparison trains for an objective."""
    return [
        f"{variant}/{kl_nats}/{seed}"
        for variant in of.variants
        for kl_nats in of.kl_nats
        for seed in of.seeds
    ]


def lines_of(word: str, params: Params) -> dict[str, str]:
    """The lines of dvc.yaml's dependencies that follow from params.yaml: line to the setting."""
    made = items(word, params, "${item.objective}")
    lines = {f"      - {path}  {MARK}\n": setting for path, setting in made.items()}
    lines |= {_line(path): setting for path, setting in own_files(word, params).items()}
    if word == "prepare" and params.data.path in data_paths(params):
        lines = {DATA: "data.path", **lines}
    return lines


def _line(path: str) -> str:
    quoted = json.dumps(path.replace("${", "\\${"), ensure_ascii=False)
    return f"      - {quoted}  {MARK}\n"


def check_listed(word: str, params: Params, root: Path) -> None:
    """Raise where dvc.yaml does not list a user's file that a stage is about to read."""
    try:
        text = (root / "dvc.yaml").read_text(encoding="utf-8")
    except FileNotFoundError:  # the stage by itself, in a plain folder
        return
    section = re.search(rf"(?ms)^  {word}:.*?(?=^  \w|\Z)", text)
    for line, setting in lines_of(word, params).items():
        if section and line not in section[0]:
            raise InputError(
                f"dvc.yaml: {word} does not depend on what {setting} names, so that no change of "
                "it would be noticed: let `infalign run` or `make dvc` write it there."
            )
