"""Versions: made once and whole, loaded in a fresh process, judged, promoted, rolled back."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from promotion_case import (
    PROMPT,
    bounds,
    evidence,
    project_params,
    tiny_models,
    write_lock,
    write_met,
    write_package,
)

from flows.commands.promote import _objectives
from flows.registry import promotion, registry
from flows.registry.arena import Entrant, NotMet, meet
from flows.registry.champions import CHALLENGER, CHAMPION, PREVIOUS, Overtaken
from flows.registry.promotion import check_reason, judge, preview, promote, refusals
from flows.registry.registry import (
    EVALUATION,
    GATE,
    Registry,
    find,
    open_registry,
    register,
)
from infalign.deployment.evidence import Evidence, read_evidence
from infalign.errors import InputError
from infalign.settings.params import Params
from tests.flows.tracking.test_tracker import free_port, server

__all__ = ["free_port", "server"]
PLANTED = "planted-s3cret"
PICKLES = {".pkl", ".pickle", ".bin", ".pt", ".pth", ".joblib", ".cloudpickle"}
ROOT = Path(__file__).parents[3]
Register = Callable[..., Any]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """Tiny models to package."""
    folder = tmp_path_factory.mktemp("models")
    tiny_models(folder, tokenizer)
    return folder


@pytest.fixture(scope="session")
def params() -> Params:
    """The project's, with a quicker bootstrap and the tiny policy's length."""
    whole = project_params()
    model = whole.model.model_copy(update={"response_tokens": 12})
    return whole.model_copy(update={"promotion": bounds(), "model": model})


@pytest.fixture(scope="session")
def begun(tmp_path_factory: pytest.TempPathFactory, models: Path, params: Params) -> Path:
    """A project with version 1, its first candidate: only to copy or to read."""
    root = tmp_path_factory.mktemp("registered") / "project"
    root.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("PLANTED_TOKEN", PLANTED)
        add(root, models, params, "first", evidence(0.9), commit=PLANTED)
    return root


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project in which nothing was registered."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


@pytest.fixture
def root(begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project with version 1, to change; its files stay where they are."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("mlflow.db", "params.yaml", "dvc.lock"):
        shutil.copyfile(begun / name, copy / name)
    return copy


def add(
    root: Path, models: Path, params: Params, result: str, case: Evidence, commit: str = ""
) -> Any:
    """Register a candidate; its version."""
    write_lock(root, result)
    folder = write_package(root / "package", models, case)
    with pytest.MonkeyPatch.context() as patch:
        if commit:
            state = {"commit": commit, "dirty": "true"}
            patch.setattr(registry.versions, "git_state", lambda _: state)
        version = register(open_registry(root), params, "helpful", folder)
    meet_all(root, params, case, str(version.version))
    return version


def meet_all(root: Path, params: Params, case: Evidence, number: str) -> None:
    """As if a version had met all others in the arena."""
    store = open_registry(root)
    for other in store.versions("helpful"):
        if str(other.version) != number:
            with store.evidence(other) as folder:
                found = read_evidence(folder)
            write_met(root, params, case, found)
            write_met(root, params, found, case)


def aliases(root: Path) -> dict[str, str]:
    return open_registry(root).champions("helpful").aliases()


def test_a_version_has_every_tag_and_no_pickle(begun: Path) -> None:
    models = open_registry(begun)
    version = models.version("helpful", "1")
    tags = version.tags
    assert tags["infalign.variant"] == "ctrl"
    assert tags["infalign.procedure"] == "best_of:4"
    assert tags["infalign.dirty"] == "true"
    assert tags["infalign.data"] == "d4ta.dir"
    for name in ("evaluation", "dvc_lock", "params", "data_sha256", "judge_sha256"):
        assert tags[f"infalign.{name}"]
    numbers = {k for k in tags if k.startswith("infalign.number.")}
    rules = judge(models, params_of(begun), "helpful", evidence(0.9), None)[1].rules
    assert numbers == {f"infalign.number.{rule.name}" for rule in rules}
    assert float(tags["infalign.number.kl"]) == 0.5
    files = [p for p in (begun / "mlartifacts").rglob("*") if p.is_file()]
    assert any(p.name == "model.safetensors" for p in files)
    assert not [p for p in files if p.suffix in PICKLES]
    run = models.client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert {f.path for f in models.client.list_artifacts(version.run_id)} >= {"dvc.lock"}
    ranked = models.client.search_logged_models([models.experiment])[0]
    gate = {f"gate/{name.removeprefix('infalign.number.')}" for name in numbers}
    assert {metric.key for metric in ranked.metrics} == gate
    assert version.description.startswith("`ctrl` of helpful, trained on ")
    assert aliases(begun) == {CHALLENGER: "1"}


def params_of(root: Path) -> Params:
    return project_params().model_copy(update={"promotion": bounds()})


def test_a_planted_secret_is_nowhere(begun: Path) -> None:
    assert open_registry(begun).version("helpful", "1").tags["infalign.commit"] == "***"
    for path in begun.rglob("*"):
        assert not path.is_file() or PLANTED.encode() not in path.read_bytes(), path


def test_the_same_result_is_the_same_version_and_is_repaired(
    root: Path, models: Path, params: Params
) -> None:
    client = open_registry(root).client
    whole = dict(open_registry(root).version("helpful", "1").tags)
    client.delete_model_version_tag("infalign-helpful", "1", "infalign.number.kl")
    client.delete_registered_model_alias("infalign-helpful", CHALLENGER)
    again = add(root, models, params, "first", evidence(0.9))
    assert str(again.version) == "1"
    assert dict(again.tags) == whole
    assert aliases(root) == {CHALLENGER: "1"}
    assert len(open_registry(root).versions("helpful")) == 1


def test_registered_twice_at_once_is_one_version(root: Path, params: Params, models: Path) -> None:
    store = open_registry(root)
    first = store.version("helpful", "1")
    twin = store.client.create_model_version("infalign-helpful", first.source, tags=first.tags)
    kept = registry.adopt(store, "helpful", twin, {EVALUATION: first.tags[EVALUATION]})
    assert str(kept.version) == "1"
    assert [str(v.version) for v in store.versions("helpful")] == ["1"]


ASK = """
import json, os, sys
from pathlib import Path
import mlflow
if "MLFLOW_TRACKING_URI" not in os.environ:
    mlflow.set_tracking_uri(f"sqlite:///{sys.argv[1]}/mlflow.db")
model = mlflow.pyfunc.load_model(sys.argv[2])
import infalign
assert Path(infalign.__file__).is_relative_to(Path(sys.argv[3])), infalign.__file__
prompts = json.loads(sys.argv[4])
answers = model.predict(prompts, params=json.loads(sys.argv[5]))
try:
    model.predict(prompts, params={"temperature": 0.0})
except mlflow.exceptions.MlflowException as error:
    assert error.error_code == "INVALID_PARAMETER_VALUE", error.error_code
    refusal = error.message
print("ANSWER", json.dumps([answers, refusal]))
"""


def ask(root: Path, code: Path, name: str, prompts: list[str], **given: Any) -> list[Any]:
    """Load a version in a fresh process, away from the project, and ask it."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    words = [json.dumps(prompts), json.dumps(given)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ASK, str(root), name, str(code), *words],
        cwd=root.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    line = next(x for x in done.stdout.splitlines() if x.startswith("ANSWER "))
    return list(json.loads(line.removeprefix("ANSWER ")))


@pytest.mark.soak
def test_a_version_answers_in_a_fresh_process_with_its_own_code(begun: Path) -> None:
    given = {"procedure": "best_of:8", "n": 4, "max_new_tokens": 6, "seed": 5}
    place = begun / "mlartifacts"
    uri = "models:/infalign-helpful/1"
    answers, refusal = ask(begun, place, uri, [PROMPT, "four five"], **given)
    assert [set(answer) for answer in answers] == [{"response", "reward", "calibrated"}] * 2
    assert answers[0]["calibrated"] in [i / 8 for i in range(9)]
    assert answers[1]["calibrated"] is None
    assert refusal.startswith("temperature is 0, but must lie between")
    again = ask(begun, place, "models:/infalign-helpful@challenger", [PROMPT, "four five"], **given)
    assert again[0] == answers


def test_a_better_challenger_is_promoted_and_a_worse_one_is_refused_by_name(
    root: Path, models: Path, params: Params
) -> None:
    store = open_registry(root)
    decision = promote(store, params, "helpful", "1")
    assert decision.outcome == "promoted"
    worse = str(add(root, models, params, "worse", evidence(0.4, seed=3)).version)
    shown = preview(store, params, "helpful", worse, None)
    assert shown.outcome == "would refuse"
    assert GATE not in store.version("helpful", worse).tags
    assert refusals(store.versions("helpful")) == []
    refused = promote(store, params, "helpful", worse)
    assert refused.outcome == "refused"
    assert refused.verdict is not None
    assert refused.verdict.failed == ("champion",)
    assert "infalign-helpful version 2 is not promoted; failed: champion (0." in refused.sentence()
    assert aliases(root) == {CHAMPION: "1", CHALLENGER: "2"}
    kept = json.loads(store.version("helpful", worse).tags[GATE])
    assert (kept["passed"], kept["failed"], kept["champion"]) == (False, ["champion"], "1")
    last = refusals(store.versions("helpful"))[-1]
    assert last is not None
    assert (last.version, last.champion) == (worse, "1")
    assert [(rule.name, rule.bound) for rule in last.rules] == [("champion", ">= 0.49")]
    assert re.fullmatch(
        r"Last refused: infalign-helpful version 2, \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC, against "
        r"version 1; failed: champion \((0\.\d{3}), must be >= 0\.49, short by 0\.\d+; "
        r"0\.\d{3} on average would have passed, it was 0\.\d{3}\)\.",
        last.sentence("helpful"),
    )
    files = store.client.list_artifacts(store.version("helpful", worse).run_id, "gate")
    assert [f.path for f in files] == ["gate/against-version-1.json"]
    better = str(add(root, models, params, "better", evidence(1.2, seed=4)).version)
    assert promote(store, params, "helpful", better).outcome == "promoted"
    assert aliases(root) == {CHAMPION: "3", PREVIOUS: "1"}
    forced = promote(store, params, "helpful", worse, "a test", force=True)
    assert forced.outcome == "forced"
    assert refusals(store.versions("helpful")) == []
    move = store.champions("helpful").history()[-1]
    assert (move.source, move.to, move.why, move.forced) == ("3", "2", "a test", True)
    assert move.gate["rules"]["champion"][0] is False
    assert promote(store, params, "helpful", worse).outcome == "champion"


def test_what_was_decided_is_remembered_of_the_results_that_it_is_about(
    root: Path, models: Path, params: Params
) -> None:
    store = open_registry(root)
    decision = promote(store, params, "helpful", "1")
    promotion.write_decision(store, params, decision)
    assert promotion.read_decision(root, params, "helpful") == decision
    write_lock(root, "second")  # other results: nothing was decided of them
    assert promotion.read_decision(root, params, "helpful") is None
    promotion.write_decision(store, params, decision)  # of an older version, by its number
    assert promotion.read_decision(root, params, "helpful") is None


def test_two_meet_once_and_who_has_nobody_to_meet_does_not(
    root: Path, models: Path, params: Params
) -> None:
    store, told = open_registry(root), list[str]()

    def meets(candidate: Entrant) -> bool:
        return asyncio.run(meet(store, params, "helpful", candidate, told.append))

    case = evidence(1.2, seed=4)
    package = Entrant(None, write_package(root / "package", models, case))
    assert not meets(Entrant("1"))  # there is no champion
    assert not meets(package)
    promote(store, params, "helpful", "1")
    assert not meets(Entrant("1"))  # it is the champion
    number = str(add(root, models, params, "better", case).version)
    assert not meets(Entrant(number))  # they have met
    assert told == []
    shutil.rmtree(root / ".infalign" / "arena")
    with pytest.raises(NotMet):
        promote(store, params, "helpful", number)
    assert meets(package)  # the same system, by content, which is not registered here
    assert told[0] == ("infalign-helpful version (not registered) meets the champion, version 1.")
    assert not meets(Entrant(number))
    decision = promote(store, params, "helpful", number)
    assert decision.outcome == "refused"
    assert "champion (not measured: 0 prompts are left" in decision.sentence()


def test_what_was_rolled_back_needs_force(root: Path, models: Path, params: Params) -> None:
    store = open_registry(root)
    promote(store, params, "helpful", "1")
    better = str(add(root, models, params, "better", evidence(1.2, seed=4)).version)
    promote(store, params, "helpful", better)
    store.champions("helpful").rollback("users complain")
    again = promote(store, params, "helpful", better)
    assert again.verdict is not None
    assert again.verdict.failed == ("rolled_back",)
    assert promote(store, params, "helpful", better, "mended", force=True).outcome == "forced"


@pytest.mark.soak
def test_a_rollback_restores_the_former_answers_byte_for_byte(
    root: Path, begun: Path, models: Path, params: Params, tmp_path: Path, tokenizer: Any
) -> None:
    store = open_registry(root)
    promote(store, params, "helpful", "1")
    other = tmp_path / "other"
    shutil.copytree(models / "reward", other / "policy")  # other weights
    shutil.copytree(models / "reward", other / "reward")
    _as_policy(other, tokenizer)
    add(root, other, params, "better", evidence(1.2, seed=4))
    uri, place = "models:/infalign-helpful@champion", root.parent.parent
    given = {"seed": 11, "n": 8}
    before = ask(root, Path("/"), uri, [PROMPT], **given)
    promote(store, params, "helpful", "2")
    assert ask(root, place.parent, uri, [PROMPT], **given) != before
    store.champions("helpful").rollback("bad answers")
    assert ask(root, Path("/"), uri, [PROMPT], **given) == before


def _as_policy(folder: Path, tokenizer: Any) -> None:
    import torch

    from infalign.lm.models import build_tiny, save_model
    from infalign.settings.params import Tiny

    shutil.rmtree(folder / "policy")
    sizes = Tiny(vocab_size=300, hidden_size=16, intermediate_size=24, layers=2, heads=2)
    save_model(
        build_tiny(sizes, tokenizer, 96, torch.device("cpu"), seed=7),
        tokenizer,
        folder / "policy",
    )


def test_a_champion_that_comes_meanwhile_is_judged_against(
    root: Path, models: Path, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_registry(root)
    promote(store, params, "helpful", "1")
    add(root, models, params, "good", evidence(1.1, seed=4))
    add(root, models, params, "best", evidence(1.6, seed=5))
    record, calls = registry.record_verdict, []

    def overtake(*arguments: Any) -> None:
        record(*arguments)
        calls.append(arguments[3])
        if len(calls) == 1:
            store.champions("helpful").promote("3", "1", "someone else", {})

    monkeypatch.setattr(registry, "record_verdict", overtake)
    decision = promote(store, params, "helpful", "2")
    assert calls == ["1", "3"]
    assert decision.outcome == "refused"
    assert aliases(root)[CHAMPION] == "3"


def test_force_goes_past_a_champion_whose_evidence_is_lost(
    root: Path, models: Path, params: Params
) -> None:
    store = open_registry(root)
    lost = store.client.create_model_version("infalign-helpful", (root / "nowhere").as_uri())
    store.champions("helpful").promote(str(lost.version), None, "made by hand", {})
    with pytest.raises(InputError, match=r"the evidence of version 2 .* cannot be read"):
        promote(store, params, "helpful", "1")
    decision = promote(store, params, "helpful", "1", "its files are gone", force=True)
    assert decision.outcome == "forced"
    assert decision.verdict is not None
    assert decision.verdict.failed == ("evidence",)
    assert aliases(root)[CHAMPION] == "1"


@pytest.mark.soak
def test_ten_thousand_prompts_are_judged_and_promoted_within_ten_seconds(
    empty: Path, models: Path, params: Params
) -> None:
    whole = params.model_copy(update={"promotion": bounds(bootstrap=1000)})
    for gain, seed in ((0.9, 3), (1.0, 4)):
        case = evidence(gain, seed=seed, prompts=10_000, samples=64)
        version = str(add(empty, models, whole, f"result{seed}", case).version)
        begun = time.monotonic()
        decision = promote(open_registry(empty), whole, "helpful", version)
        took = time.monotonic() - begun
        print(f"gate and promotion, 10,000 prompts of 64 samples: {took:.1f} s")
        assert decision.outcome == "promoted"
        assert took < 10


@pytest.mark.soak
def test_a_server_is_a_registry_as_well(
    tmp_path: Path,
    models: Path,
    params: Params,
    free_port: int,
    server: Callable[[], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server()
    uri = f"http://127.0.0.1:{free_port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    for gain, number in ((0.9, "1"), (1.2, "2")):
        version = add(tmp_path, models, params, f"result{number}", evidence(gain, seed=4))
        assert str(version.version) == number
        assert promote(open_registry(tmp_path), params, "helpful", number).outcome == "promoted"
    champions = open_registry(tmp_path).champions("helpful")
    with pytest.raises(Overtaken):
        champions.promote("1", "1", "", {})
    first = champions.history()[0]
    assert not champions._append(0, replace(first, id="another"))
    assert champions._append(0, first)
    assert champions.rollback("over HTTP").to == "1"
    assert aliases(tmp_path) == {CHAMPION: "1"}
    answers, _ = ask(tmp_path, Path("/"), "models:/infalign-helpful@champion", [PROMPT], seed=1)
    assert answers[0]["response"] is not None


def test_mistakes_are_one_sentence(root: Path, params: Params) -> None:
    store = open_registry(root)
    with pytest.raises(InputError, match="has no version '9'"):
        promote(store, params, "helpful", "9")
    with pytest.raises(InputError, match="--force needs --reason"):
        check_reason(True, " ")
    with pytest.raises(InputError, match="at most 500"):
        check_reason(False, "x" * 501)
    with pytest.raises(InputError, match=r"dvc\.lock has no result of evaluate@harmless"):
        promotion.known(store, params, "harmless")
    with pytest.raises(InputError, match="--objective helpful or --objective harmless"):
        _objectives(root, None, needed=True)
    with pytest.raises(InputError, match=r"is not one of run\.objectives"):
        _objectives(root, "honest", needed=False)


def test_a_registry_that_does_not_answer_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:s3cret-word@127.0.0.1:9")
    with pytest.raises(registry.Unreachable, match="does not answer") as error:
        open_registry(tmp_path)
    assert "s3cret-word" not in str(error.value)


REGISTER = """
import sys
import time
from pathlib import Path
from promotion_case import evidence
from tests.flows.registry.test_registry import params_of
from flows.registry.promotion import promote
from flows.registry.registry import open_registry, register
root = Path(sys.argv[1])
store, params = open_registry(root), params_of(root)
print("ready", flush=True)
started = time.monotonic()
version = register(store, params, "helpful", root / "package")
promote(store, params, "helpful", str(version.version))
print(time.monotonic() - started, flush=True)
"""


def seconds_to_register(root: Path, moment: float | None = None) -> float | None:
    """How long a process takes to register and promote; None where the kill is in time.

    Args:
        moment: when to kill it, seconds from its beginning; None: never.
    """
    paths = [str(ROOT), str(ROOT / "tests"), *sys.path]
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", REGISTER, str(root)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in paths if p)},
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            if moment is not None:
                time.sleep(moment)
                child.kill()
            said = child.communicate()[0]
        finally:
            child.kill()
    return float(said) if said else None


def check_kills(root: Path, models: Path, params: Params, shares: list[float]) -> int:
    """Kill, look, repair, one result after another; how many kills were in time.

    Args:
        shares: of the time that an undisturbed one takes, when to kill.
    """
    add(root, models, params, "zero", evidence(0.5))
    store = open_registry(root)
    promote(store, params, "helpful", "1")
    write_lock(root, "timed")
    first = evidence(0.7, judge_gain=0.7, seed=9)
    write_package(root / "package", models, first)
    meet_all(root, params, first, "")
    whole = seconds_to_register(root)
    assert whole is not None
    in_time = 0
    for place, share in enumerate(shares, start=2):
        write_lock(root, f"result{place}")
        gain = 0.5 + 0.3 * place
        case = evidence(gain, judge_gain=gain, seed=9)
        folder = write_package(root / "package", models, case)
        meet_all(root, params, case, "")
        in_time += seconds_to_register(root, share * whole) is None
        complete = set(store.version("helpful", "1").tags) - {GATE}
        for version in store.versions("helpful"):
            assert set(version.tags) >= complete  # at every moment, of every version
        assert aliases(root)[CHAMPION] in {str(v.version) for v in store.versions("helpful")}
        version = register(store, params, "helpful", folder)
        assert promote(store, params, "helpful", str(version.version)).outcome in (
            "promoted",
            "champion",
        )
        assert aliases(root) == {CHAMPION: str(version.version), PREVIOUS: str(place)}
        digests = [v.tags[EVALUATION] for v in store.versions("helpful")]
        assert len(digests) == len(set(digests)) == place + 1
    assert len(store.champions("helpful").history()) == len(shares) + 2
    pending = [
        model
        for model in store.client.search_logged_models([store.experiment])
        if model.status.name == "PENDING"
    ]
    assert not pending
    return in_time


@pytest.mark.soak
def test_kills_between_evaluate_and_promotion_are_repaired(
    empty: Path, models: Path, params: Params
) -> None:
    assert check_kills(empty, models, params, [0.3, 0.7]) >= 1


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_twenty_kills_between_evaluate_and_promotion_are_repaired(
    empty: Path, models: Path, params: Params
) -> None:
    rng = random.Random(2)
    assert check_kills(empty, models, params, [rng.random() for _ in range(20)]) >= 5


def test_find_takes_the_first_of_a_result(root: Path) -> None:
    store: Registry = open_registry(root)
    digest = store.version("helpful", "1").tags[EVALUATION]
    found = find(store, "helpful", digest)
    assert found is not None
    assert str(found.version) == "1"
    assert find(store, "helpful", "unknown") is None


def test_the_same_results_at_another_temperature_are_another_version(
    tmp_path: Path, params: Params
) -> None:
    entry = {"cmd": "x", "outs": [{"path": "results/evaluate/helpful", "md5": "0123.dir"}]}
    (tmp_path / "dvc.lock").write_text(json.dumps({"stages": {"evaluate@helpful": entry}}))

    def name(temperature: float) -> str:
        promotion = params.promotion.model_copy(update={"temperature": temperature})
        changed = params.model_copy(update={"promotion": promotion})
        return registry.result_digest(tmp_path, changed, "helpful")

    assert len({name(1.0), name(0.7), name(0.5)}) == 3
