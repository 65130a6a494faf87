"""`--set`: comments kept, checked before a byte is written."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from flows.project.configuration import complete_params, set_params
from infalign.errors import InputError
from infalign.settings.kinds import DEFAULTS, defaults
from infalign.settings.params import Model, Objective, Params, load_params

ROOT = Path(__file__).parents[3]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return Path(shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml"))


def test_nothing_set_changes_no_byte(file: Path) -> None:
    before = file.read_bytes()
    set_params(file, [])
    set_params(file, [f"align.kl_nats={load_params(file).align.kl_nats}"])
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("assignment", "line"),
    [
        ("align.steps=7", "  steps: 7"),
        ("align.learning_rate=1e-5", "  learning_rate: 1.0e-05"),
        ("align.beta=null", "  beta: null  # null: from the budget"),
        ("data.path=../other data", "  path: ../other data"),
        ("run.variants=[ctrl]", "  variants: [ctrl]                  # names in `align.variants`"),
        ("calibrate.error_references=[4]", "  error_references: [4]"),  # the section's last line
        ("align.variants.dpo={method: ipo}", "    dpo: {method: ipo}"),
        ("align.variants.ctrl.reward=exp:5", '    ctrl: {reward: "exp:5"}'),
    ],
)
def test_a_value_changes_its_own_line(file: Path, assignment: str, line: str) -> None:
    before = file.read_text().splitlines()
    params = set_params(file, [assignment])
    after = file.read_text().splitlines()
    assert params == load_params(file)
    assert len(after) == len(before)
    changed = [new for old, new in zip(before, after, strict=True) if old != new]
    assert all(new.startswith(line) for new in changed)
    assert len(changed) == (0 if assignment.endswith("null") else 1)


def test_what_the_file_lacks_is_written_and_told(file: Path) -> None:
    whole, params = file.read_text(), load_params(file)
    text = whole[: whole.index("drift:")].replace("  steps: 200\n", "")
    file.write_text(text)
    said: list[str] = []
    assert set_params(file, [], said.append) == params
    assert said == ["params.yaml: lacked align.steps, drift, serving: written, with the default."]
    assert load_params(file) == params
    left = iter(file.read_text().splitlines())
    assert all(line in left for line in text.splitlines())

    file.write_text(text)
    said.clear()
    assert complete_params(file, said.append) == params
    assert len(said) == 1
    complete_params(file, said.append)
    assert len(said) == 1


def test_what_is_set_and_new_is_completed(file: Path) -> None:
    text = file.read_text()
    file.write_text(text[: text.index("drift:")])
    said: list[str] = []
    params = set_params(
        file,
        ["drift.prompts=7", "objectives.brief={procedure: best_of:2}", "run.objectives=[brief]"],
        said.append,
    )
    assert params == load_params(file)
    assert params.drift.prompts == 7
    own = [f"objectives.brief.{name}" for name in Objective.model_fields if name != "procedure"]
    lacked = ", ".join(["drift", "serving", *own])
    assert said == [f"params.yaml: lacked {lacked}: written, with the default."]


@pytest.mark.parametrize(
    ("assignments", "words"),
    [
        (["align.stepz=7"], "unknown key 'align.stepz'"),
        (["align.steps=0"], "align.steps = 0"),
        (["align.steps=7", "align.kl_nats=-1"], "align.kl_nats = -1"),
        (["align.steps=many"], "align.steps = 'many'"),
        (["align"], "write KEY=VALUE"),
        (["nothing.here=1"], "no section 'nothing'"),
        (["align.steps.deep=1"], "is not a section"),
        (["align.steps=[1"], "is not YAML"),
        (["align.steps=" + "9" * 4301], "line 1 has a number of 4301 digits"),
        (["align.steps=0x" + "f" * 4301], "align.steps = a number of thousands of digits"),
        (["align.steps=" + "[" * 3000 + "]" * 3000], "is nested too deeply"),
        (["align.steps=" + "[" * 20 + "]" * 20], "align.steps = [[[[...]]]]"),
        (["align.steps=!!timestamp soon"], "is not YAML"),
        (["x" * 9999], "write KEY=VALUE"),
        (["x" * 9999 + ".y=1"], "no section 'xxx"),
        ([".".join("x" * 9999) + "=1"], "no section 'x'"),
    ],
)
def test_a_mistake_is_a_sentence_and_changes_nothing(
    file: Path, assignments: list[str], words: str
) -> None:
    before = file.read_bytes()
    with pytest.raises(InputError, match=r".") as caught:
        set_params(file, assignments)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert file.read_bytes() == before


@pytest.fixture
def models(file: Path) -> Path:
    """A folder for a base model and one for a model with a chat template, as far as names go."""
    for name in ("base", "chat"):
        (file.parent / name).mkdir()
    (file.parent / "chat" / "chat_template.jinja").write_text("{{ messages }}")
    return file


def rates(params: Params) -> tuple[str, float, float, float, float]:
    sections = params.sft.learning_rate, params.reward.learning_rate, params.align.learning_rate
    return params.model.kind, params.sft.epochs, *sections


def test_the_model_s_kind_brings_its_defaults(models: Path) -> None:
    said: list[str] = []
    assert rates(load_params(models)) == ("scratch", 0.45, 1.2e-2, 2e-3, 1e-3)
    params = set_params(models, ["model.name_or_path=base"], said.append)
    assert rates(params) == ("base", 1.0, 1e-5, 1e-5, 1e-5)
    assert said == [
        "params.yaml: model.folder = base",
        "params.yaml: model.kind = base, model.prompt_tokens = null, model.response_tokens = null, "
        "sft.epochs = 1.0, sft.learning_rate = 1.0e-05, "
        "reward.learning_rate = 1.0e-05, align.learning_rate = 1.0e-05: what suits a model of "
        "kind base",
    ]
    params = set_params(models, ["align.lora_rank=8"], said.append)
    assert said[2:] == [
        "params.yaml: align.learning_rate = 0.0001: what suits a model of kind base with an adapter"
    ]
    assert rates(params) == ("base", 1.0, 1e-5, 1e-5, 1e-4)
    params = set_params(models, ["model.name_or_path=chat"], said.append)
    assert rates(params) == ("instruct", 0.0, 1e-5, 1e-5, 1e-4)
    again = models.read_bytes()
    set_params(models, [], said.append)
    assert models.read_bytes() == again
    set_params(models, ["model.name_or_path=tiny", "align.lora_rank=null"])
    assert rates(load_params(models)) == ("scratch", 0.45, 1.2e-2, 2e-3, 1e-3)


def test_what_is_set_stays_whatever_the_kind(models: Path) -> None:
    assignments = ["model.name_or_path=chat", "sft.epochs=0.45", "align.learning_rate=3.0e-5"]
    params = set_params(models, assignments, recipe=[("reward.learning_rate", 2e-3)])
    assert rates(params) == ("instruct", 0.45, 1e-5, 2e-3, 3e-5)
    set_params(models, ["reward.learning_rate=7.0e-4"])
    params = set_params(models, ["model.name_or_path=base"])
    assert rates(params) == ("base", 0.45, 1e-5, 7e-4, 3e-5)


def test_a_base_model_with_a_template_may_be_taken_for_one(models: Path) -> None:
    set_params(models, ["model.name_or_path=chat"])
    assert rates(set_params(models, ["model.kind=base"]))[:2] == ("base", 1.0)
    assert rates(set_params(models, []))[:2] == ("base", 1.0)
    models.write_text(models.read_text().replace("kind: base", "kind: scratch"))  # by hand
    assert rates(set_params(models, []))[0] == "instruct"


def test_the_kinds_agree_with_the_classes() -> None:
    params = Params()
    for kind, table in DEFAULTS.items():
        assert list(table) == list(DEFAULTS["scratch"])
        assert Model(kind=kind).kind == kind
    for key, value in defaults("scratch", ("align",)).items():
        section, last = key.split(".")
        assert getattr(getattr(params, section), last) == value
    assert defaults("base")["align.learning_rate"] == 1e-5
    adapted = defaults("base", ("align", "reward"))
    assert adapted["align.learning_rate"] == adapted["reward.learning_rate"] == 1e-4
    assert adapted["sft.learning_rate"] == 1e-5


def test_a_colon_within_braces_is_quoted_for_dvc(file: Path) -> None:
    own = "reward: {kind: function, path: rewards/own.py:score}"
    file.write_text(re.sub(r"(?m)(?<=^    )reward: \{.*\}", own, file.read_text(), count=1))
    from dvc.utils.serialize import YAMLFileCorruptedError, parse_yaml

    with pytest.raises(YAMLFileCorruptedError):
        parse_yaml(file.read_text(), "params.yaml")
    params = complete_params(file, print)
    assert params.objectives["helpful"].reward.path == "rewards/own.py:score"
    tree = parse_yaml(file.read_text(), "params.yaml")
    assert tree["objectives"]["helpful"]["reward"]["path"] == "rewards/own.py:score"
    set_params(file, ["objectives.helpful.judge={kind: function, path: rewards/own.py:score}"])
    tree = parse_yaml(file.read_text(), "params.yaml")
    assert tree["objectives"]["helpful"]["judge"]["path"] == "rewards/own.py:score"


@pytest.mark.parametrize("text", ['a"b:c', "C:\\dir", "12:30"])
def test_what_is_quoted_keeps_its_value(file: Path, text: str) -> None:
    before = f"template_arguments: {{date_string: {text}}}"
    file.write_text(file.read_text().replace("template_arguments: {}", before))
    wanted = load_params(file).model.template_arguments
    assert complete_params(file, print).model.template_arguments == wanted
    assert load_params(file).model.template_arguments == wanted


def test_a_file_that_names_its_kind_has_the_kind_s_defaults(file: Path) -> None:
    file.write_text("model: {name_or_path: a/b, kind: instruct}\nalign: {lora_rank: 8}\n")
    params = complete_params(file, lambda _: None)
    own = defaults("instruct", ("align",))
    assert (params.sft.epochs, params.align.learning_rate) == (0.0, own["align.learning_rate"])
    assert params.model.prompt_tokens is None
    file.write_text("model: {name_or_path: a/b, kind: base}\nsft: {epochs: 3.0}\n")
    params = complete_params(file, lambda _: None)
    assert (params.sft.epochs, params.sft.learning_rate) == (3.0, 1.0e-5)


def test_a_judge_that_nobody_named_goes_by_the_reward(file: Path) -> None:
    file.write_text("objectives:\n  helpful:\n    gold: null\nrun: {objectives: [helpful]}\n")
    given = "objectives.helpful.reward={kind: function, path: rewards/own.py:score}"
    assert set_params(file, [given]).objectives["helpful"].judge is None
    assert load_params(file).objectives["helpful"].judge is None


def test_a_text_stays_a_text(file: Path) -> None:
    set_params(file, ['model.template_arguments={x: "yes"}', "data.columns={prompt: on}"])
    params = load_params(file)
    assert params.model.template_arguments == {"x": "yes"}
    assert params.data.columns == {"prompt": "on"}


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_line_ends_and_a_byte_order_mark_are_kept(file: Path, mark: bytes, end: bytes) -> None:
    plain = file.read_bytes()
    file.write_bytes(mark + plain.replace(b"\n", end))
    before = file.read_bytes()
    set_params(file, [])
    complete_params(file, lambda _: None)
    assert file.read_bytes() == before
    assert set_params(file, ["align.steps=7"]) == load_params(file)
    after = file.read_bytes()
    assert after == before.replace(b"  steps: 200", b"  steps: 7", 1)
    file.write_bytes(after.replace(b"  steps: 7" + end, b"", 1))
    complete_params(file, lambda _: None)
    assert file.read_bytes().startswith(mark + plain[:4])
    assert file.read_bytes().count(end) == file.read_bytes().count(b"\n")
    assert b"  steps: 200" in file.read_bytes()
