"""Recipes: each is sound and says what it is for; `--set` wins; a wrong name lists the others."""

from __future__ import annotations

import asyncio
import re
import shutil
from pathlib import Path

import pytest
import yaml

from flows.project import versions
from flows.project.configuration import set_params
from flows.project.dependencies import write_own
from flows.project.recipes import read_recipe
from infalign.errors import InputError
from infalign.files.stages import STAGES
from infalign.settings.params import load_params
from tests.flows.conftest import ROOT, write_real

RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))


def commits(recipe: list[tuple[str, object]]) -> list[str]:
    """The revisions of the hub's models in a recipe, which nobody is asked for here."""
    named = {key: value for key, value in recipe if key.endswith(".name_or_path")}
    names = [key.split(".")[0] for key, value in named.items() if value not in ("tiny", "sft")]
    return [f"{section}.revision={'a' * 40}" for section in names]


def holds(found: object, given: object) -> bool:
    """Whether settings are as given, others beside them being defaults."""
    if isinstance(found, dict) and isinstance(given, dict):
        return all(name in found and holds(found[name], given[name]) for name in given)
    if isinstance(found, list) and isinstance(given, list):
        return len(found) == len(given) and all(map(holds, found, given))
    return found == given


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_sound_and_plans_a_run(name: str, tmp_path: Path) -> None:
    text = (ROOT / "recipes" / f"{name}.yaml").read_text()
    head = re.match(r"(# .*\n){2,}", text)
    assert head, "what it is for: data, model, machine, time"
    assert re.search("minute|hour", head[0])
    root = tmp_path / "project"
    write_real(root, yaml.safe_load((ROOT / "params.yaml").read_text()))
    shutil.copyfile(ROOT / "params.yaml", root / "params.yaml")
    recipe = read_recipe(ROOT, name)
    params = set_params(root / "params.yaml", commits(recipe), recipe=recipe)
    assert params == load_params(root / "params.yaml")
    write_own(root, params)  # as `infalign run` does
    again = params.model_dump()
    for key, value in recipe:
        found = again
        for part in key.split("."):
            found = found[part]
        assert holds(found, value), key
    graph = asyncio.run(versions.dvc(root, "dag", "--dot", versions.RUN))
    assert graph.returncode == 0, graph.stderr
    run = params.run
    expected = {
        stage.instance(*names)
        for stage in STAGES.values()
        if not stage.compares
        for names in {
            (): [()],
            ("objective",): [(objective,) for objective in run.objectives],
        }.get(stage.names, [(o, v) for o in run.objectives for v in run.variants])
    }
    builtin = params.data.path == "results/corpus"
    planned = set(versions.parse_graph(graph.stdout))
    assert planned == (expected if builtin else expected - {"corpus"})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").write_text(
        "# Mine.\n"
        "run: {objectives: [brief]}\n"
        "objectives: {brief: {procedure: best_of:2, gold: null}}\n"
        "align: {steps: 7, learning_rate: 1.0e-5, variants: {bonbon: {method: ipo}}}\n"
        "promotion: {length_ratio: [0.5, 2.0]}\n"
    )
    return Path(shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml"))


def test_a_recipe_is_written_as_set_would_and_set_wins(file: Path) -> None:
    before = file.read_text()
    recipe = read_recipe(file.parent, "mine")
    params = set_params(file, ["align.steps=8"], recipe=recipe)
    assert params == load_params(file)
    assert (params.align.steps, params.align.learning_rate) == (8, 1e-5)
    assert params.objectives["brief"].procedure == "best_of:2"
    assert set(params.objectives) == {"helpful", "harmless", "brief"}
    assert params.align.variants["bonbon"].method == "ipo"  # whole: alpha was BoNBoN's
    text = re.sub(r"\] +#", "]  #", file.read_text())
    assert "  objectives: [brief]  # names in `objectives` below\n" in text
    assert "  length_ratio: [0.5, 2.0]  # mean length over the reference's\n" in text
    gone = [line for line in before.splitlines() if line not in text.splitlines()]
    assert len(gone) == 5
    assert read_recipe(file.parent, str(file.parent / "recipes" / "mine.yaml")) == recipe
    assert read_recipe(file.parent, "recipes/mine.yaml") == recipe


def test_a_template_argument_is_given_by_its_own_name_and_no_other_key_has_a_dot(
    file: Path,
) -> None:
    recipe = file.parent / "recipes" / "own.yaml"
    recipe.write_text("model: {template_arguments: {a.b: true, c: 1}}\n")
    params = set_params(file, [], recipe=read_recipe(file.parent, "own"))
    assert params.model.template_arguments == {"a.b": True, "c": 1}
    assert load_params(file) == params
    recipe.write_text("objectives: {a.b: {gold: null}}\n")
    with pytest.raises(InputError, match=r"the recipe's key 'objectives\.a\.b': 'a\.b' has a dot"):
        read_recipe(file.parent, "own")


def test_a_recipe_that_is_none_is_a_sentence(file: Path) -> None:
    with pytest.raises(InputError, match=r"--recipe 'his' is no recipe.*\(mine\)"):
        read_recipe(file.parent, "his")
    (file.parent / "recipes" / "flat.yaml").write_text("seed: 3\n")
    with pytest.raises(InputError, match="recipe flat must be a mapping of sections"):
        read_recipe(file.parent, "flat")
    (file.parent / "recipes" / "broken.yaml").write_text("run: [\n")
    with pytest.raises(InputError, match="recipe broken is not YAML"):
        read_recipe(file.parent, "broken")
    with pytest.raises(InputError, match=r"unknown key 'align\.stepz'"):
        set_params(file, [], recipe=[("align.stepz", 3)])
