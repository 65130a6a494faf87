"""params.yaml: the shipped file, and one sentence for each way to get it wrong."""

import pytest
import yaml
from smoke import ROOT, merged

from infalign.errors import InputError
from infalign.settings.params import check_params, load_params


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
        ({"align": {"variants": {"new": {"method": "ppo"}}}}, "method must be ctrl, bon_dist"),
        ({"align": {"variants": {"new": {"method": "ipo", "n": 4}}}}, "'align.variants.new.n'"),
        ({"align": {"variants": {"new": {"method": "bonbon"}}}}, "'align.variants.new.alpha'"),
        ({"align": {"variants": {"bonbon": {"alpha": 2.0}}}}, "align.variants.bonbon.alpha = 2.0"),
        ({"compare": {"kl_nats": [1]}}, "compare.kl_nats.0 = 1: write 1.0"),
        ({"compare": {"kl_nats": [0.5, 0.5]}}, "compare.kl_nats names an entry twice"),
        ({"compare": {"variants": ["ctrl", "cdpo"]}}, "compare.variants names 'cdpo'"),
        ({"compare": {"variants": ["ipo", "rlhf"]}}, "compare.variants needs both kinds"),
        ({"compare": {"objectives": ["honest"]}}, "compare.objectives names 'honest'"),
        ({"compare": {"judges": ["jury"]}}, "compare.judges.0 = 'jury'"),
        ({"compare": {"poison": {"share": 1.5}}}, "compare.poison.share = 1.5"),
        ({"compare": {"poison": {"phrase": ""}}}, "compare.poison.phrase = ''"),
        ({"objectives": {"helpful": {"procedure": "best_of:0"}}}, "best_of:0"),
        ({"objectives": {"helpful": {"transform": "exp:"}}}, "exp:"),
        ({"model": {"tiny": {"heads": 7}}}, "hidden_size must be an even multiple of heads"),
        ({"sample": {"test_samples": 4}}, "sample.test_samples gives 4"),
        ({"align": {"reference_samples": 33}}, "sample.train_samples = 32"),
        ({"promotion": {"variant": "best"}}, "promotion.variant names 'best'"),
        ({"promotion": {"length_ratio": [1.2, 0.8]}}, "length_ratio must rise"),
        ({"promotion": {"length_ratio": [0.8]}}, "promotion.length_ratio = [0.8]"),
        ({"promotion": {"champion_margin": 1.5}}, "promotion.champion_margin = 1.5"),
        ({"promotion": {"approval": "yes"}}, "promotion.approval = 'yes'"),
    ],
)
def test_faults_are_one_sentence(params_tree, change, words):
    with pytest.raises(InputError) as error:
        check_params(merged(params_tree, change), "params.yaml")
    message = str(error.value)
    assert message.startswith("params.yaml: ")
    assert words in message
    assert "\n" not in message


def test_missing_key(params_tree):
    tree = merged(params_tree, {})
    del tree["align"]["steps"]
    with pytest.raises(InputError, match=r"'align\.steps' is missing: add it"):
        check_params(tree, "params.yaml")


def test_files_that_are_not_params(tmp_path):
    path = tmp_path / "params.yaml"
    with pytest.raises(InputError, match="does not exist"):
        load_params(path)
    path.write_text("run: [")
    with pytest.raises(InputError, match="is not YAML"):
        load_params(path)
    path.write_text("- 1")
    with pytest.raises(InputError, match="must be a mapping of sections, found list"):
        load_params(path)


def test_frozen(params_tree):
    params = check_params(params_tree, "params.yaml")
    with pytest.raises(ValueError, match="frozen"):
        params.run.seed = 3


def test_every_setting_has_its_place(params_tree):
    # What is written is what is read: no default hides a missing line, but for the method of a
    # variant, which is the trainer's where nothing is said.
    written = yaml.safe_load((ROOT / "params.yaml").read_text())
    for variant in written["align"]["variants"].values():
        variant.setdefault("method", "ctrl")
    assert written == check_params(params_tree, "params.yaml").model_dump()


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
        "bon_distillation": "log",
        "bonbon": "log",
        "ipo": "identity",
        "dpo": "raw",
    }
