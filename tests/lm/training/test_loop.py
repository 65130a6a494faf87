"""The optimisation loop: learning, exact resume, faults; the order of batches."""

import numpy as np
import pytest
import torch

from infalign.errors import InputError
from infalign.files.history import read_history
from infalign.lm.models import build_tiny
from infalign.lm.scoring.scorer import token_log_probs
from infalign.lm.text import make_batch
from infalign.lm.training import loop
from infalign.lm.training.checkpoints import Checkpoints
from infalign.lm.training.loop import EpochBatches, Schedule, Step, optimise
from infalign.lm.training.losses import likelihood_loss
from infalign.lm.training.parallel import Trainable
from infalign.settings.params import Tiny


@pytest.fixture
def fresh(tokenizer):
    sizes = Tiny(vocab_size=300, hidden_size=16, intermediate_size=24, layers=1, heads=2)
    return lambda: build_tiny(sizes, tokenizer, 64, torch.device("cpu"), seed=1)


ROWS = np.random.default_rng(0).integers(10, 290, (8, 6)).tolist()


def taker(model, rows=ROWS, stop=None):
    def take(number):
        if number == stop:
            raise KeyboardInterrupt
        chosen = rows if rows is not ROWS else ROWS[number % 4 :: 4]
        batch = make_batch([r[:2] for r in chosen], [r[2:] for r in chosen], 0, model.device)
        return Step(likelihood_loss(token_log_probs(model, batch)), {"rows": len(chosen)}, 1)

    return take


def test_overfits_eight_rows(fresh, tmp_path):
    model = fresh()
    optimise(model, Schedule(150, 1e-2, 0.05), taker(model, list(ROWS)), tmp_path, name="toy")
    losses = [row["loss"] for row in read_history(tmp_path / "history.jsonl")]
    assert losses[0] > 5
    assert losses[-1] < 0.1


@pytest.mark.parametrize("stop", [3, 4, 7])
def test_a_resumed_run_equals_an_undisturbed_one(fresh, tmp_path, stop):
    schedule = Schedule(9, 1e-2, 0.2, checkpoint_every=2)
    whole = fresh()
    optimise(whole, schedule, taker(whole), tmp_path / "whole", name="toy")
    broken = fresh()
    with pytest.raises(KeyboardInterrupt):
        optimise(broken, schedule, taker(broken, stop=stop), tmp_path / "broken", name="toy")
    resumed, seen = fresh(), []
    take = taker(resumed)
    optimise(
        resumed, schedule, lambda n: seen.append(n) or take(n), tmp_path / "broken", name="toy"
    )
    assert seen[0] == stop - stop % 2  # the last checkpoint, not the start
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    first, second = (tmp_path / n / "history.jsonl" for n in ("whole", "broken"))
    assert first.read_bytes() == second.read_bytes()


def test_no_device_holds_the_whole_of_a_checkpoint(fresh, tmp_path):
    model = fresh()
    optimise(model, Schedule(2, 1e-2, 0.2), taker(model), tmp_path, name="toy")
    elsewhere, seen = Trainable(fresh().to("meta")), {}
    assert elsewhere.model.device.type == "meta"  # which stands for a GPU
    elsewhere.load = lambda content, _: seen.update(content)
    optimiser = loop.optimiser_of("adamw", elsewhere.weights(), Schedule(2, 1, 0))
    assert Checkpoints(tmp_path, elsewhere, optimiser, None).resume() == 2
    for name, value in model.state_dict().items():
        assert seen["model"][name].device.type == "cpu"
        assert torch.equal(seen["model"][name], value)


def test_a_loss_that_is_not_finite_stops_with_a_remedy(fresh, tmp_path):
    model = fresh()
    take = taker(model)

    def broken(number):
        step = take(number)
        return Step(step.loss * (float("nan") if number == 3 else 1.0), {}, 1)

    with pytest.raises(InputError, match=r"at step 3: lower learning_rate"):
        optimise(model, Schedule(9, 1e-2, 0.2, checkpoint_every=2), broken, tmp_path, name="toy")
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 2


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"kl": 31.0}, r"kl is 31, above 20 at step 3: lower learning_rate"),
        ({"kl": float("nan")}, r"kl is nan at step 3: lower learning_rate"),
        ({"kl": 1.0, "loss": 50.0}, r"loss is 5\d\.\d+, above 40 at step 3"),
    ],
)
def test_a_run_that_explodes_stops_and_keeps_its_last_checkpoint(fresh, tmp_path, values, words):
    model, kept = fresh(), {}
    take = taker(model)

    def exploding(number):
        step = take(number)
        if number == 2:
            kept.update({n: v.clone() for n, v in model.state_dict().items()})
        wild = number == 3
        loss = step.loss + (values.get("loss", 0.0) if wild else 0.0)
        return Step(loss, {"kl": values["kl"] if wild else 0.1}, 1)

    bounds = {"kl": 20.0, "loss": 40.0}
    schedule = Schedule(9, 1e-2, 0.2, checkpoint_every=2)
    with pytest.raises(InputError, match=words):
        optimise(model, schedule, exploding, tmp_path, name="toy", bounds=bounds)
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert content["step"] == 2
    assert all(torch.equal(kept[name], value) for name, value in content["model"].items())
    assert [row["step"] for row in read_history(tmp_path / "history.jsonl")] == [0, 1, 2]


def test_rates_warm_up_and_fall_to_a_tenth():
    schedule = Schedule(100, 1.0, 0.1)
    assert schedule.rate(0) == pytest.approx(0.1)
    assert schedule.rate(9) == pytest.approx(1.0)
    assert schedule.rate(99) == pytest.approx(0.1, abs=1e-3)


def test_an_epoch_holds_every_row_once_and_alike_lengths_together():
    lengths = np.random.default_rng(0).integers(1, 50, 103)
    batches = EpochBatches(lengths, 10, seed=4)
    first = [batches.at(i) for i in range(11)]
    assert sorted(np.concatenate(first).tolist()) == list(range(103))
    assert sorted(len(b) for b in first) == [3] + [10] * 10
    second = [batches.at(i) for i in range(11, 22)]
    assert sorted(np.concatenate(second).tolist()) == list(range(103))
    assert any(a.tolist() != b.tolist() for a, b in zip(first, second, strict=True))
    spread = np.mean([np.ptp(lengths[b]) for b in first])
    assert spread < np.ptp(lengths) / 2
    again = EpochBatches(lengths, 10, seed=4)
    assert again.at(15).tolist() == second[4].tolist()


def test_no_rows_is_a_clear_error():
    with pytest.raises(InputError, match="no training rows"):
        EpochBatches([], 4, 0)
