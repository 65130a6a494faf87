"""params.yaml: the shipped file, and one sentence for each way to get it wrong."""

import pytest
from smoke import ROOT, merged

from infalign.errors import InputError
from infalign.settings.params import Objective, Params, check_params, load_params


def test_the_shipped_file_is_valid():
    params = load_params(ROOT / "params.yaml")
    assert params.reward_spelling("helpful", "ctrl") == "exp:10"
    assert params.reward_spelling("harmless", "ctrl") == "exp:-10"
    assert params.reward_spelling("harmless", "rlhf") == "raw"
    assert params.procedure("harmless").n == 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"algin": {}}, "unknown key 'algin'"),
        ({"align": {"stepz": 5}}, "unknown key 'align.stepz'"),
        ({"align": {"steps": "many"}}, "align.steps = 'many'"),
        ({"align": {"steps": 2.5}}, "align.steps = 2.5"),
        ({"align": {"steps": 0}}, "align.steps = 0: input should be greater than 0"),
        ({"align": {"kl_nats": -1.0}}, "align.kl_nats = -1.0"),
        ({"align": {"kl_nats": float("nan")}}, "align.kl_nats = nan"),
        (
            {"align": {"kl_nats": 0.0005}},
            "0.0005: a KL budget must lie within 0.001 to 5",
        ),
        (
            {"compare": {"kl_nats": [50.0]}},
            "kl_nats.0 = 50.0: a KL budget must lie within",
        ),
        ({"compare": {"poison": {"kl_nats": [0.0]}}}, "0 = 0.0: a KL budget must lie within 0.001"),
        ({"promotion": {"kl_nats": 0.0}}, "promotion.kl_nats = 0.0"),
        ({"align": {"learning_rate": "1e-3"}}, "YAML reads 1e-5 as text: write 1.0e-5"),
        ({"run": {"device": "tpu"}}, "run.device = 'tpu'"),
        ({"run": {"objectives": ["helpful", "honest"]}}, "run.objectives names 'honest'"),
        ({"run": {"objectives": []}}, "run.objectives = []"),
        ({"run": {"variants": ["ctrl", "ctrl"]}}, "run.variants names an entry twice"),
        ({"align": {"variants": {"a-b": {"reward": "raw"}}}}, "a-b"),
        ({"align": {"variants": {"new": {"reward": "cube"}}}}, "'cube'"),
        (
            {"align": {"variants": {"new": {"reward": "cube"}}}},
            "align.variants.new.reward = 'cube'",
        ),
        (
            {"align": {"variants": {"new": {"method": "ppo"}}}},
            "method must be ctrl, offline, bon_dist",
        ),
        ({"align": {"variants": {"new": {"method": "ipo", "n": 4}}}}, "'align.variants.new.n'"),
        ({"align": {"variants": {"bonbon": {"alpha": 2.0}}}}, "align.variants.bonbon.alpha = 2.0"),
        ({"compare": {"kl_nats": [1]}}, "compare.kl_nats.0 = 1: write 1.0"),
        ({"compare": {"kl_nats": [0.5, 0.5]}}, "compare.kl_nats names an entry twice"),
        ({"compare": {"variants": ["ctrl", "cdpo"]}}, "compare.variants names 'cdpo'"),
        ({"compare": {"variants": ["ipo", "rlhf"]}}, "compare.variants needs both kinds"),
        ({"compare": {"objectives": ["honest"]}}, "compare.objectives names 'honest'"),
        ({"compare": {"judges": ["jury"]}}, "compare.judges.0 = 'jury'"),
        (
            {"compare": {"poison": {"objectives": ["helpful"]}}},
            "compare.poison.objectives names 'helpful', which compare.objectives does not",
        ),
        ({"compare": {"poison": {"share": 1.5}}}, "compare.poison.share = 1.5"),
        ({"compare": {"poison": {"phrase": ""}}}, "compare.poison.phrase = ''"),
        ({"objectives": {"helpful": {"procedure": "best_of:0"}}}, "best_of:0"),
        ({"objectives": {"helpful": {"subset": "../../x"}}}, "subset = '../../x': a subset is a"),
        ({"objectives": {"helpful": {"subset": "a/../../x"}}}, "subset = 'a/../../x': a subset is"),
        ({"objectives": {"helpful": {"subset": "/etc"}}}, "subset = '/etc': a subset is a folder"),
        ({"objectives": {"helpful": {"subset": "a\0b"}}}, "a subset is a folder below data.path"),
        ({"data": {"file_bytes": 0}}, "data.file_bytes = 0"),
        ({"data": {"line_bytes": 1.5}}, "data.line_bytes = 1.5"),
        ({"objectives": {"helpful": {"transform": "exp:"}}}, "exp:"),
        ({"model": {"tiny": {"heads": 7}}}, "hidden_size must be an even multiple of heads"),
        ({"sample": {"test_samples": 4}}, "sample.test_samples gives 4"),
        ({"align": {"reference_samples": 33}}, "sample.train_samples = 32"),
        ({"promotion": {"variant": "best"}}, "promotion.variant names 'best'"),
        ({"promotion": {"length_ratio": [1.2, 0.8]}}, "length_ratio must rise"),
        ({"promotion": {"length_ratio": [0.8]}}, "promotion.length_ratio = [0.8]"),
        ({"promotion": {"champion_margin": 1.5}}, "promotion.champion_margin = 1.5"),
        ({"promotion": {"approval": "yes"}}, "promotion.approval = 'yes'"),
        ({"align": {"learning_rate": float("inf")}}, "align.learning_rate = inf"),
        ({"align": {"kl_nats": 1e-9}}, "align.kl_nats = 1e-09"),
        ({"align": {"steps": 2**31}}, "align.steps = 2147483648"),
        ({"align": {"steps": 16**5000}}, "align.steps = a number of thousands of digits"),
        ({"run": {"variants": list("abcdefgh") * 999}}, "run.variants names 'a'"),
        ({"data": {"path": ["x" * 9999]}}, "data.path = ['xxx"),
    ],
)
def test_faults_are_one_sentence(params_tree, change, words):
    with pytest.raises(InputError) as error:
        check_params(merged(params_tree, change), "params.yaml")
    message = str(error.value)
    assert message.startswith("params.yaml: ")
    assert words in message
    assert "\n" not in message
    assert len(message) < 500


RAW = {"run": {"variants": ["rlhf"]}, "promotion": {"variant": "rlhf"}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"align": {"samples_per_prompt": 1, "reference_samples": 0}},
            "align.samples_per_prompt = 1 with align.reference_samples = 0",
        ),
        (
            {"align": {"prompts_per_step": 385}},
            "align.prompts_per_step = 385 are more than there are, sample.train_prompts = 384",
        ),
        (
            {"sample": {"large_prompts": 129}},
            "sample.large_prompts = 129 are more than there are, sample.test_prompts = 128",
        ),
        ({"report": {"examples": 129}}, "report.examples = 129 are more than there are"),
        (
            {"sample": {"train_prompts": 1201}},
            "sample.train_prompts = 1201 are more than there are, corpus.train_prompts = 1200",
        ),
        (
            {"data": {"path": "results/corpus/"}, "sample": {"test_prompts": 251}},
            "sample.test_prompts = 251 are more than there are, corpus.test_prompts = 250",
        ),
        (
            {"sample": {"large_samples": 127}},
            "error_references goes up to 64, but sample.large_samples = 127 gives 63",
        ),
        ({"calibrate": {"error_references": [4, 129]}}, "goes up to 129"),
        ({"calibrate": {"error_references": [4, 4]}}, "calibrate.error_references names an entry"),
        ({"evaluate": {"best_of": [2, 2]}}, "evaluate.best_of names an entry twice: [2, 2]"),
        ({"evaluate": {"best_of": [65]}}, "need N = 65 samples a prompt"),
        ({"objectives": {"harmless": {"procedure": "worst_of:65"}}}, "need N = 65"),
        (
            {**RAW, "align": {"kl_nats": 3.5}},
            "align.kl_nats = 3.5 is more than 'rlhf' can spend on 'helpful': raw rewards of "
            "sample.train_samples = 32 responses reach 3.466 nats",
        ),
        (
            {
                "objectives": {"harmless": {"transform": "table:0,0.5,1,1"}},
                "align": {"kl_nats": 1.2},
            },
            "align.kl_nats = 1.2 is more than 'ctrl' can spend on 'harmless'",
        ),
        (
            {"compare": {"objectives": ["helpful"], "kl_nats": [0.5, 4.0]}},
            "compare.kl_nats = 4 is more than 'rlhf' can spend",
        ),
        (
            {
                "compare": {
                    "objectives": ["helpful"],
                    "poison": {"objectives": ["helpful"], "kl_nats": [4.0]},
                }
            },
            "compare.poison.kl_nats = 4 is more than 'rlhf' can spend",
        ),
        (
            {"promotion": {"after_run": True, "variant": "ipo"}},
            "promotion.variant = 'ipo', which is not in run.variants",
        ),
    ],
)
def test_settings_that_cannot_work_together_are_one_sentence(params_tree, change, words):
    with pytest.raises(InputError) as error:
        check_params(merged(params_tree, change), "params.yaml")
    message = str(error.value)
    assert message.startswith("params.yaml: ")
    assert words in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "change",
    [
        {"align": {"samples_per_prompt": 1, "reference_samples": 1}},
        {"align": {"samples_per_prompt": 2, "reference_samples": 0}},
        {"align": {"prompts_per_step": 384}},
        {"sample": {"large_prompts": 128, "large_samples": 128}},
        {"data": {"path": "../hh"}, "sample": {"train_prompts": 1201}},  # who knows
        {"align": {"kl_nats": 5.0}, "run": {"variants": ["ctrl", "identity"]}},
        {**RAW, "align": {"kl_nats": 3.4}},
        {"compare": {"kl_nats": [4.0]}},  # nothing is compared
        {"promotion": {"variant": "ipo"}},  # nothing is promoted
    ],
)
def test_what_just_works_together(params_tree, change):
    check_params(merged(params_tree, change), "params.yaml")


def test_a_file_that_lacks_keys_is_completed(params_tree):
    tree = merged(params_tree, {})
    del tree["drift"], tree["align"]["steps"], tree["compare"]["poison"]["phrase"]
    tree["objectives"]["own"] = {"procedure": "worst_of:2"}
    tree["align"]["variants"]["own"] = {}
    params = check_params(tree, "params.yaml")
    whole = check_params(params_tree, "params.yaml")
    assert (params.drift, params.align.steps) == (whole.drift, whole.align.steps)
    assert params.compare == whole.compare
    assert params.objectives["own"].transform == "auto"
    assert params.align.variants["own"].reward == "objective"


def test_files_that_are_not_params(tmp_path):
    path = tmp_path / "params.yaml"
    with pytest.raises(InputError, match="does not exist"):
        load_params(path)
    path.write_text("run: [")
    with pytest.raises(InputError, match="is not YAML"):
        load_params(path)
    path.write_text("run:\n  seed: " + "9" * 4301)
    with pytest.raises(InputError, match=r"line 2 has a number of 4301 digits: shorten it"):
        load_params(path)
    path.write_text("run: " + "[" * 3000 + "]" * 3000)
    with pytest.raises(InputError, match="is nested too deeply"):
        load_params(path)
    for value in ("2023-13-01", "!!bool maybe", "!!timestamp soon", "!!int x", "? [1]\n: 2"):
        path.write_text(f"run: {value}")
        with pytest.raises(InputError, match="is not YAML"):
            load_params(path)
    path.write_text("- 1")
    with pytest.raises(InputError, match="must be a mapping of sections, found list"):
        load_params(path)


def test_frozen(params_tree):
    params = check_params(params_tree, "params.yaml")
    with pytest.raises(ValueError, match="frozen"):
        params.run.seed = 3


def test_the_shipped_file_holds_every_key_and_its_default(params_tree):
    # But for the method of a variant, which is the trainer's where nothing is said.
    written = merged(params_tree, {})
    for variant in written["align"]["variants"].values():
        variant.setdefault("method", "ctrl")
    assert written == Params().model_dump() == check_params({}, "params.yaml").model_dump()


def test_the_baselines_know_nothing_of_the_procedure():
    params = load_params(ROOT / "params.yaml")
    assert params.align.variants["ctrl"].method == "ctrl"
    assert not params.is_blind("ctrl")
    spelled = {
        name: params.reward_spelling("helpful", name)
        for name in params.compare.variants
        if params.is_blind(name)
    }
    # What exact optimisation of each paper's loss on the reference's own samples gives.
    assert spelled == {
        "identity": "identity",
        "rlhf": "raw",
        "qrpo": "identity",
        "bon_distillation": "log",
        "bonbon": "log",
        "ipo": "identity",
        "dpo": "raw",
    }


@pytest.mark.parametrize(
    ("given", "judge"),
    [
        ({}, "train"),
        ({"reward": {"kind": "train"}}, "train"),
        ({"reward": {"kind": "function", "path": "own.py:score"}}, None),
        ({"reward": {"kind": "model", "path": "a/b"}, "judge": {"kind": "train"}}, "train"),
        ({"reward": {"kind": "train"}, "judge": None}, None),
    ],
)
def test_a_judge_is_trained_unasked_beside_a_trained_reward_alone(given, judge):
    found = Objective.model_validate(given).judge
    assert (found.kind if found else None) == judge


@pytest.mark.parametrize(
    ("key", "value", "near"),
    [
        ("align.kl_nat", 0.5, "align.kl_nats"),
        ("algin", {}, "align"),
        ("objectives.helpful.procedur", "x", "objectives.helpful.procedure"),
        ("run.variants", ["ctrll"], "ctrl"),
        ("run.objectives", ["helpfull"], "helpful"),
        ("nothing_like_it", 1, None),
    ],
)
def test_a_misspelled_name_is_answered_with_the_one_that_was_meant(params_tree, key, value, near):
    tree = merged(params_tree, {})
    *parents, last = key.split(".")
    place = tree
    for part in parents:
        place = place[part]
    place[last] = value
    with pytest.raises(InputError) as error:
        check_params(tree, "params.yaml")
    assert ("did you mean" in str(error.value)) == (near is not None)
    assert near is None or f"(did you mean {near}?)" in str(error.value)
