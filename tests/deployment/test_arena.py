"""Two packaged systems against each other: tiny models, drawn, judged, compared, kept."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from promotion_case import evidence, tiny_models, write_package, write_settings

from infalign.data.framing import asked
from infalign.deployment import arena, command
from infalign.deployment.arena import Arena
from infalign.deployment.bouts import (
    FORMER,
    Field,
    bouts_name,
    columns_name,
    draws_of,
    identity,
    open_field,
    read_bouts,
)
from infalign.deployment.deployed import load_deployed
from infalign.deployment.evidence import read_evidence, write_evidence
from infalign.deployment.package import digest, source_digest
from infalign.deployment.systems import System
from infalign.errors import InputError
from infalign.files.tables import INDEPENDENT, PROMPTS, SELECTING, read_table, write_table
from infalign.files.workspace import Workspace
from infalign.settings.params import Params, check_params, load_params
from infalign.settings.servers import Generation
from tests.engines.own_server import stand_in

ROOT = Path(__file__).parents[2]
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
ASKED = [asked(f"{a} {b}") for a in WORDS for b in WORDS]


def settings(**promotion: Any) -> Params:
    """The shipped params with few samples."""
    tree = load_params(ROOT / "params.yaml").model_dump(mode="json")
    tree["run"]["device"] = "cpu"
    return check_params({**tree, "promotion": tree["promotion"] | promotion}, "params.yaml")


def write_prompts(root: Path, split: str = "test", trained: int = 0) -> None:
    rows = {
        "prompt_id": [dialogue.id for dialogue in ASKED],
        "objective": ["helpful"] * len(ASKED),
        "split": ["train"] * trained + [split] * (len(ASKED) - trained),
        "source": ["made"] * len(ASKED),
        "dialogue": [dialogue.text for dialogue in ASKED],
        "columns": ["{}"] * len(ASKED),
    }
    write_table(root / "results" / "prepare" / "prompts.parquet", rows, PROMPTS)


def write_system(folder: Path, models: Path, judge: Path | None, **about: Any) -> Path:
    """A package: these models, the procedure and what it was trained on in `about`."""
    trained = about.pop("trained", frozenset())
    write_package(folder, models, evidence(**about))
    deployed = {"procedure": "best_of:4"} | {
        name: about[name] for name in ("procedure", "temperature") if name in about
    }
    write_settings(folder / "deployed", **deployed)
    if judge is not None:
        shutil.copytree(judge, folder / "judge" / "reward")
    found = read_evidence(folder / "evidence")
    facts = replace(
        found.facts,
        system=digest(folder / "deployed"),
        reward=source_digest(folder / "deployed"),
        judged_by=source_digest(folder / "judge") if judge else None,
    )
    write_evidence(folder / "evidence", replace(found, facts=facts, trained=trained))
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> dict[str, Path]:
    """Two systems' models, and two judges beside their selecting rewards."""
    import torch

    from infalign.lm.models import build_reward_model, build_tiny, save_model
    from infalign.settings.params import Tiny

    root, cpu = tmp_path_factory.mktemp("models"), torch.device("cpu")
    tiny_models(root / "a", tokenizer)
    shutil.copytree(root / "a", root / "b")
    sizes = Tiny(vocab_size=300, hidden_size=16, intermediate_size=24, layers=2, heads=2)
    other = build_tiny(sizes, tokenizer, 96, cpu, seed=7)
    shutil.rmtree(root / "b" / "policy")
    save_model(other, tokenizer, root / "b" / "policy")
    for name, seed in (("judge", 11), ("other judge", 12)):
        judge = build_reward_model(root / "a" / "policy", tokenizer, cpu, seed=seed)
        save_model(judge, tokenizer, root / name)
    return {path.name: path for path in root.iterdir()}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    write_prompts(tmp_path)
    return tmp_path


def held(root: Path, params: Params, first: Path, second: Path) -> Any:
    arena.hold(root, params, "helpful", (first, second), root / "out")
    return read_bouts(root / "out")


def parts(root: Path) -> dict[str, int]:
    """The answers and rewards that are kept, and when they were made."""
    folder = root / ".infalign" / "arena" / "parts"
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_a_system_ties_with_itself_and_a_second_arena_draws_nothing(
    project: Path, models: dict[str, Path], capsys: Any
) -> None:
    first = write_system(project / "first", models["a"], models["judge"])
    second = write_system(project / "second", models["a"], models["judge"])
    found = held(project, settings(), first, second)
    assert list(found.wins) == [SELECTING, INDEPENDENT]  # one judge, which both have
    assert found.prompt_ids == tuple(sorted(dialogue.id for dialogue in ASKED))
    for wins in found.wins.values():
        np.testing.assert_allclose(wins, 0.5, atol=1e-12)
    made = parts(project)
    capsys.readouterr()
    again = held(project, settings(), first, second)
    assert parts(project) == made
    assert "part" not in capsys.readouterr().out
    np.testing.assert_array_equal(again.wins[INDEPENDENT], found.wins[INDEPENDENT])


def test_other_systems_differ_and_the_champions_own_judge_has_a_word(
    project: Path, models: dict[str, Path]
) -> None:
    first = write_system(project / "first", models["b"], models["judge"], procedure="best_of:8")
    second = write_system(project / "second", models["a"], models["other judge"])
    found = held(project, settings(arena_samples=4), first, second)
    assert list(found.wins) == [SELECTING, INDEPENDENT, FORMER]
    assert found.draws == 16  # in a suite each meets its reference: twice eight
    assert found.wins[SELECTING].mean() > 0.5  # by the reward that both select by, of more draws
    assert not np.array_equal(found.wins[INDEPENDENT], found.wins[FORMER])
    back = held(project, settings(arena_samples=4), second, first)
    np.testing.assert_allclose(back.wins[SELECTING], 1 - found.wins[SELECTING], atol=1e-12)
    np.testing.assert_allclose(back.wins[FORMER], 1 - found.wins[INDEPENDENT], atol=1e-12)


def test_a_system_answers_at_the_temperature_that_it_is_deployed_with(
    project: Path, models: dict[str, Path]
) -> None:
    cold = write_system(project / "cold", models["a"], models["judge"], temperature=0.01)
    warm = write_system(project / "warm", models["a"], models["judge"])
    found = held(project, settings(), cold, warm)
    assert found.wins[SELECTING].mean() < 0.5  # four equal draws are as good as one
    tables = [
        read_table(path, arena.ANSWERS).to_pandas()
        for path in (project / ".infalign" / "arena" / "parts").iterdir()
        if path.name.count("-") == 1
    ]
    distinct = sorted(t.groupby("prompt_id")["response"].nunique().mean() for t in tables)
    assert distinct[0] < 2 < distinct[-1]


def test_the_answers_are_those_of_the_deployed_system_with_one_stream_of_numbers(
    project: Path, models: dict[str, Path]
) -> None:
    import torch

    from infalign.lm.models import load_policy
    from infalign.lm.sampling.randomness import derive_seed
    from infalign.lm.sampling.sampler import sample_responses

    params = settings(arena_prompts=5, arena_samples=8)
    first = write_system(project / "first", models["a"], models["judge"])
    second = write_system(project / "second", models["b"], models["judge"])
    held(project, params, first, second)
    said = [
        read_table(path, arena.ANSWERS)["response"].to_pylist()
        for path in (project / ".infalign" / "arena" / "parts").iterdir()
        if path.name.count("-") == 1
    ]
    field = open_field(project, params, "helpful", [read_evidence(first / "evidence")])
    for folder in (first, second):
        system = load_deployed(folder / "deployed")
        drawn = sample_responses(
            load_policy(folder / "deployed" / "policy", torch.device("cpu")),
            system.form,
            list(field.prompts.values()),
            list(field.prompts),
            np.tile(np.arange(8), (5, 1)),
            seed=derive_seed(params.run.seed, "arena"),
            longest=system.response_tokens,
            batch_size=512,
        )
        assert drawn.text in said
    assert said[0] != said[1]


def test_by_a_server_that_is_started_for_it_a_system_gives_the_same_answers(
    project: Path, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(project)  # where servers write their logs
    system = System.open("champion", write_system(project / "one", models["b"], None))
    prompts, found = {dialogue.id: dialogue for dialogue in ASKED[:3]}, {}
    servers = {
        "builtin": Generation(),
        "started": Generation(engine="vllm", start=True, python=str(stand_in(project))),
        "elsewhere": Generation(engine="vllm", urls=["http://127.0.0.1:9"]),
    }
    for word, generation in servers.items():
        params = settings().model_copy(update={"generation": generation})
        hall = Arena(Workspace(params, project, "arena@helpful"), Field(prompts), 8)
        [part] = hall.answers(system)
        found[word] = part["response"].to_pylist()
        assert ("starting vLLM for champion" in capsys.readouterr().out) == (word == "started")
    assert len(parts(project)) == 3  # each is kept by itself
    assert found["started"] == found["builtin"] == found["elsewhere"]


def test_what_either_was_trained_on_or_cannot_take_is_left_out_and_counted(
    project: Path, models: dict[str, Path]
) -> None:
    known = frozenset(dialogue.id for dialogue in ASKED[:30])
    first = write_system(project / "first", models["a"], models["judge"], trained=known)
    later = frozenset(dialogue.id for dialogue in ASKED[20:40])
    second = write_system(project / "second", models["b"], models["judge"], trained=later)
    found = held(project, settings(), first, second)
    assert found.trained == 40
    assert set(found.prompt_ids) == {dialogue.id for dialogue in ASKED[40:]}
    short = json.loads((second / "deployed" / "settings.json").read_text())
    (second / "deployed" / "settings.json").write_text(json.dumps(short | {"prompt_tokens": 1}))
    nothing = held(project, settings(), first, second)
    assert (nothing.prompt_ids, nothing.too_long, nothing.trained) == ((), 41, 40)
    assert all(len(wins) == 0 for wins in nothing.wins.values())


def test_a_killed_arena_goes_on_where_it_was(
    project: Path, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arena, "AT_ONCE", 20)
    first = write_system(project / "first", models["a"], models["judge"])
    second = write_system(project / "second", models["b"], models["judge"])
    whole = held(project, settings(), first, second)
    before = parts(project)
    lost = sorted(before)[::3]
    for name in lost:
        (project / ".infalign" / "arena" / "parts" / name).unlink()
    shutil.rmtree(project / "out")
    again = held(project, settings(), first, second)
    after = parts(project)
    assert set(after) == set(before)
    assert {name for name in after if after[name] != before[name]} == set(lost)
    for judge, wins in whole.wins.items():
        np.testing.assert_array_equal(again.wins[judge], wins)


def test_an_arena_has_a_name_by_content(project: Path, models: dict[str, Path]) -> None:
    systems = [
        read_evidence(write_system(project / name, models[name], models["judge"]) / "evidence")
        for name in ("a", "b")
    ]
    params = settings()

    def name(params: Params = params, **about: Any) -> str:
        both = [replace(systems[0], facts=replace(systems[0].facts, **about)), systems[1]]
        return bouts_name(project, params, *both)

    first = name()
    assert name() == first
    others = [
        name(judged_by="another"),
        name(system="another"),
        name(settings(arena_samples=20)),
        name(settings(arena_prompts=40)),
    ]
    assert len({first, *others}) == 5
    assert name(settings(win_rate=0.6)) == first
    write_prompts(project, trained=1)
    assert name() != first


def test_rewards_are_asked_again_where_columns_or_precision_are_others(
    project: Path, models: dict[str, Path], monkeypatch: Any
) -> None:
    """What is kept is kept under all that it depends on."""
    first = write_system(project / "first", models["a"], models["judge"])
    second = write_system(project / "second", models["b"], models["judge"])
    write_settings(second / "deployed", precision="bfloat16")
    opened: list[str] = []
    monkeypatch.setattr(
        "infalign.rewards.packaged.open_packaged",
        lambda source, device, precision, *_: opened.append(precision) or Constant(),
    )
    systems = [System.open("candidate", first), System.open("champion", second)]
    prompts = {dialogue.id: dialogue for dialogue in ASKED[:3]}
    workspace = Workspace(settings(), project, "arena@helpful")
    plain = Arena(workspace, Field(prompts), 4)
    told = Arena(workspace, Field(prompts, {ASKED[0]: {"gold": 1}}), 4)
    for hall in (plain, plain, told):
        for system in systems:
            hall.rewards(system, systems[0].source)
    assert opened == ["float32"] * 4  # of the source's own package, whoever answered
    plain.rewards(systems[0], systems[1].source)
    assert opened[4:] == ["bfloat16"]
    changed = columns_name(Field(prompts, {ASKED[0]: {"gold": 2}}))
    assert changed != columns_name(told.field) != columns_name(plain.field)


class Constant:
    """A reward that nobody can win."""

    def rewards(self, dialogues: Any, responses: Any) -> Any:
        return np.zeros(len(responses))


def test_a_references_answers_are_those_of_its_lengths_and_precision(
    project: Path, models: dict[str, Path]
) -> None:
    names = set()
    for number, about in enumerate(({}, {"response_tokens": 5}, {"precision": "bfloat16"})):
        folder = write_system(project / f"{number}", models["a"], None)
        write_settings(folder / "deployed", **about)
        (folder / "reference").mkdir()
        reference = System.open("candidate", folder).reference()
        names.add(identity(reference.evidence))
    assert len(names) == 3


def test_a_system_needs_draws_enough_to_meet_its_own_reference() -> None:
    few = settings(arena_samples=4)
    large, small = evidence(procedure="best_of:16"), evidence(procedure="best_of:4")
    assert draws_of(few, large, small) == draws_of(few, small, large) == 32
    assert draws_of(few, small, None) == 8


def test_the_command_says_what_is_missing(
    project: Path, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(project)
    monkeypatch.setattr(command, "load_params", lambda _path: settings(arena_prompts=4))
    monkeypatch.setattr("infalign.processes.one_stage.apply_threads", lambda _path: None)
    first = write_system(project / "first", models["a"], models["judge"])
    words = ["--objective", "helpful", str(first), str(first), str(project / "made")]
    assert arena.main(words) == 0
    assert len(read_bouts(project / "made").prompt_ids) == 4
    words[3] = str(project / "nowhere")
    assert arena.main(words) == 2
    assert "nowhere holds no packaged policy" in capsys.readouterr().err
    with pytest.raises(InputError, match="run `infalign run` first"):
        open_field(project / "nowhere", settings(), "helpful", [])


SCORES = """
def words(dialogues, responses):
    return [float(len(text.split())) for text in responses]
"""


def suites(**rules: Any) -> dict[str, Any]:
    return {"safety": {"objective": "helpful"} | rules}


def test_suites_are_measured_with_and_without_a_champion(
    project: Path, models: dict[str, Path]
) -> None:
    (project / "scores.py").write_text(SCORES)
    texts = ["ten one", "ten two", "ten three", "word " * 80]  # one is too long, and left out
    lines = "".join(json.dumps({"prompt": text}) + "\n" for text in texts)
    (project / "safety.jsonl").write_text(lines)

    def params(**rule: Any) -> Params:
        tree = settings(arena_samples=8).model_dump(mode="json")
        tree["data"]["suites"] = {"safety": "safety.jsonl"}
        tree["promotion"]["suites"] = suites(**rule)
        return check_params(tree, "params.yaml")

    first = write_system(project / "first", models["a"], models["judge"])
    second = write_system(project / "second", models["b"], models["judge"])
    for folder, reference in ((first, "a"), (second, "b")):
        shutil.copytree(models[reference] / "policy", folder / "reference" / "policy")
    words = {"kind": "function", "path": "scores.py:words"}
    alone = {"rule": "mean", "reward": words, "at_least": 0.0}
    arena.hold(project, params(**alone), "helpful", (first, None), project / "out")
    mean = read_bouts(project / "out").suites["safety"]
    assert (mean.prompts, mean.champion, mean.against) == (3, None, None)
    assert read_bouts(project / "out").wins == {}
    both = held(project, params(**alone), first, second).suites["safety"]
    assert both.candidate == mean.candidate
    assert both.champion != mean.candidate
    share = params(rule="share", reward=words, above=mean.candidate, at_most=1.0)
    assert 0 < held(project, share, first, second).suites["safety"].candidate < 1
    rate = params(rule="win_rate", at_least=0.5)
    won = held(project, rate, first, second).suites["safety"]
    assert won.candidate == pytest.approx(0.5, abs=1e-12)  # its reference is the policy itself
    assert won.against is not None
    assert won.against != 0.5
    names = {bouts_name(project, p, read_evidence(first / "evidence"), None) for p in (share, rate)}
    (project / "safety.jsonl").write_text(lines + lines.replace("one", "four"))
    names.add(bouts_name(project, rate, read_evidence(first / "evidence"), None))
    assert len(names) == 3
