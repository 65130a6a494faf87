"""params.yaml, its schema, the stages, dvc.yaml, the import graph and the README say the same.

Where dvc.yaml is behind, the failure prints the lines to add and to remove; `make dvc` writes those
of source files.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.project.dependencies import rewritten
from infalign.files.code import imported_files, stage_files
from infalign.files.stages import BUDGET, STAGES
from infalign.files.weights import BUILT, NONE
from infalign.files.workspace import Needs, lookup
from infalign.settings.params import Params, load_params
from infalign.settings.servers import Generation
from infalign.stages import report

ROOT = Path(__file__).parents[1]
PARAMS = load_params(ROOT / "params.yaml")
LOCAL = PARAMS.model_copy(  # models from folders, which are dependencies of their own
    update={
        section: getattr(PARAMS, section).model_copy(update={"folder": f"local/{section}"})
        for section in BUILT
    }
)
FOLDERS = {PARAMS.data.path: "${data.path}"} | {f"local/{s}": f"${{{s}.folder}}" for s in BUILT}
DVC = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
WORDS, VARIANTS = list(STAGES), PARAMS.run.variants
RUN = [word for word in WORDS if not STAGES[word].compares]
COMPARING = [word for word in WORDS if STAGES[word].compares]
PLACES = ("deps", "params", "outs", "metrics")
AFTER_STAGES = ("intake", "promotion", "schedule", "drift", "serving")  # what is done with results

# What dvc.yaml should say.


def example(word: str) -> list[str]:
    """Names with which to ask a stage for its specification."""
    known = dict(
        zip(BUDGET, (PARAMS.run.objectives[0], PARAMS.run.variants[0], "0.375", "7"), strict=True)
    )
    return [known[name] for name in STAGES[word].names]


def specification(word: str) -> Needs:
    """A stage's own word on what it reads, depends on and writes."""
    return importlib.import_module(f"infalign.stages.{word}").needs(LOCAL, *example(word))


def templated(text: str, separator: str, names: list[str]) -> str:
    """A path or key as dvc.yaml spells it.

    The instance's own names become ${item.…}; where a stage covers all names, it depends on the
    section that holds them, and on each of the results (which `make dvc` writes).
    """
    kinds = dict(zip(names, (f"${{item.{name}}}" for name in BUDGET), strict=False))
    everything = {*PARAMS.objectives, *PARAMS.align.variants}
    parts: list[str] = []
    for part in text.split(separator):
        stem, dot, suffix = part.partition(".") if separator == "/" else (part, "", "")
        if dot and stem in kinds:  # O.json
            part = kinds[stem] + dot + suffix
        if part in everything and part not in kinds and separator == ".":
            break
        parts.append(kinds.get(part, part))
    return separator.join(parts)


def expected(word: str) -> dict[str, set[str]]:
    """The entries of a stage's section of dvc.yaml."""
    stage, names = specification(word), example(word)
    inputs = {FOLDERS.get(i) or templated(i, "/", names) for i in stage.inputs}
    outputs = {templated(output, "/", names) for output in stage.outputs}
    metrics = {output for output in outputs if output.endswith("/metrics.json")}
    return {
        "deps": inputs | set(stage_files(word)),
        "params": {templated(key, ".", names) for key in stage.params},
        "outs": outputs - metrics,
        "metrics": metrics,
    }


def found(word: str) -> dict[str, set[str]]:
    """The entries that are there."""
    section = DVC["stages"].get(word, {})

    def names(entries: list[Any]) -> set[str]:
        return {next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries}

    return {place: names(section.get(place, [])) for place in PLACES}


def quoted(entry: str) -> str:
    """An entry as a line of YAML."""
    return f"      - {entry}"


def test_every_word_is_a_stage_a_module_a_section_and_a_line_of_dvc_yaml() -> None:
    modules = {p.stem for p in (ROOT / "infalign" / "stages").glob("[!_]*.py")}
    assert modules == set(WORDS) == set(DVC["stages"])
    assert list(DVC["stages"]) == WORDS
    # Their sections are `objectives` and `data`.
    assert set(RUN) - set(Params.model_fields) == {"sources", "prepare"}
    assert set(COMPARING) & set(Params.model_fields) == {"compare"}  # the section of all four


@pytest.mark.parametrize("word", WORDS)
def test_dvc_yaml_lists_what_the_stage_depends_on(word: str) -> None:
    want, have = expected(word), found(word)
    lines: list[str] = []
    for place in PLACES:
        lines += [f"+ {place}: {quoted(e).strip()}" for e in sorted(want[place] - have[place])]
        lines += [f"- {place}: {quoted(e).strip()}" for e in sorted(have[place] - want[place])]
    assert not lines, f"dvc.yaml, stage {word}: add (+) and remove (-):\n" + "\n".join(lines)


def test_make_dvc_has_nothing_to_write() -> None:
    text = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
    assert rewritten(text, PARAMS) == text, "run `make dvc`"
    behind = text.replace("      - infalign/files/workspace.py\n", "", 1)
    assert behind != text
    assert rewritten(behind, PARAMS) == text


@pytest.mark.parametrize("word", WORDS)
def test_dvc_yaml_runs_the_stage_over_its_names(word: str) -> None:
    section = DVC["stages"][word]
    command, matrix = f"python -m infalign {word}", {}
    lists = "compare" if STAGES[word].compares else "run"
    own = "compare.poison" if word == "hack" else lists
    poisons = "compare.poison" if word in ("hack", "poison") else lists
    sources = {"objective": f"{poisons}.objectives", "variant": f"{own}.variants"}
    sources |= {"kl_nats": f"{own}.kl_nats", "seed": f"{own}.seeds"}
    for name in STAGES[word].names:
        matrix[name] = f"${{{sources[name]}}}"
        command += f" --{name.replace('_', '-')} ${{item.{name}}}"
    assert section["cmd"] == command
    assert section.get("matrix", {}) == matrix
    assert not {"persist", "always_changed", "frozen"} & set(section)


@pytest.mark.parametrize("word", WORDS)
def test_params_of_a_stage_exist_and_its_files_lie_in_results(word: str) -> None:
    stage = specification(word)
    tree = PARAMS.model_dump()
    for key in stage.params:
        lookup(tree, key)
    assert len(set(stage.params)) == len(stage.params)
    assert all(output.startswith(f"results/{word}") for output in stage.outputs)


def test_without_a_local_model_nothing_but_dvc_looks_at_its_folder() -> None:
    assert PARAMS.model.folder == PARAMS.reward.folder == NONE
    assert (ROOT / NONE).is_dir(), "dvc.yaml depends on it"
    for word in WORDS:
        needs = importlib.import_module(f"infalign.stages.{word}").needs(PARAMS, *example(word))
        assert NONE not in needs.inputs


def test_every_param_is_read_by_a_stage_or_is_about_running() -> None:
    read = {key for word in WORDS for key in specification(word).params}
    places = {f"generation.{name}" for name in Generation.model_fields} - {"generation.engine"}
    running = (
        "run.concurrency",
        "run.nodes",
        "run.launcher",
        "run.job_template",
        *places,
    )  # changes no byte of any result, or where servers stand
    assert not read & {*places, "generation"}, "a stage would go stale with an address"
    operating = tuple(f"{section}." for section in AFTER_STAGES)
    leaves = {x for x in _leaves(PARAMS.model_dump()) if not x.startswith((*running, *operating))}
    read -= set(report.BOUNDS)
    assert not any(key.startswith(operating) for key in read), "a stage would go stale"
    names = [*PARAMS.objectives, *PARAMS.align.variants]
    unread = {
        leaf
        for leaf in leaves
        if not any(leaf == key or leaf.startswith(f"{key}.") for key in read)
        and not any(f".{name}." in f".{leaf}." for name in names[1:])
    }
    assert not unread


def test_no_stage_depends_on_what_comes_after_the_stages() -> None:
    """But for the report, which says what the gate will: by its rules and their bounds alone."""
    read = {key for word in WORDS for key in specification(word).params}
    listed = {str(key) for word in WORDS for key in found(word)["params"]}
    after = {key for key in read | listed if key.split(".")[0] in AFTER_STAGES}
    assert after == set(report.BOUNDS) <= set(specification("report").params)
    rules = {f"infalign/deployment/{name}.py" for name in ("gate", "bouts", "evidence", "measured")}
    for word in WORDS:
        files = imported_files(f"infalign.stages.{word}")
        deployment = {file for file in files if file.startswith("infalign/deployment/")}
        assert deployment == (rules if word == "report" else set())


def test_no_stage_of_a_run_depends_on_what_a_comparison_does() -> None:
    """`infalign compare` makes nothing of `infalign run` stale, and adds nothing to it."""
    own = {f"results/{word}" for word in COMPARING}
    for word in RUN:
        stage = specification(word)
        assert not [key for key in stage.params if key.split(".")[0] == "compare"]
        assert not [name for name in stage.inputs if "/".join(name.split("/")[:2]) in own]
        assert not imported_files(f"infalign.stages.{word}") & {
            "infalign/measuring/comparison.py",
            "infalign/page/comparison.py",
            *(f"infalign/stages/{other}.py" for other in COMPARING),
        }
    assert PARAMS.compare.objectives == [], "dvc pull would look for what nobody has made"


def _leaves(tree: Any, prefix: str = "") -> set[str]:
    if not isinstance(tree, dict):
        return {prefix}
    return {
        leaf
        for key, value in tree.items()
        for leaf in _leaves(value, f"{prefix}.{key}" if prefix else key)
    }


def test_metrics_and_plots_of_dvc_yaml_lie_in_outputs() -> None:
    outputs = [o for word in WORDS for o in specification(word).outputs]
    for path in [*DVC["metrics"], *(name for plot in DVC["plots"] for name in plot)]:
        assert any(path == o or path.startswith(f"{o}/") for o in outputs), path


def test_the_policies_are_dvc_s_artifacts() -> None:
    lie = {(f"{o}-{v}", f"results/align/{o}/{v}") for o in PARAMS.run.objectives for v in VARIANTS}
    found = DVC["artifacts"]
    assert {(name, one["path"].removesuffix("/policy")) for name, one in found.items()} == lie
    fewer = PARAMS.model_copy(update={"run": PARAMS.run.model_copy(update={"variants": ["ctrl"]})})
    text = rewritten((ROOT / "dvc.yaml").read_text(encoding="utf-8"), fewer)
    assert list(yaml.safe_load(text)["artifacts"]) == ["helpful-ctrl", "harmless-ctrl"]


def test_readme_names_the_stages_in_order() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| `")]
    listed = [row.strip("`") for row in rows if row.strip("`") in RUN]
    assert listed == RUN, "README.md needs a table with one row a stage: | `corpus` | … |"
