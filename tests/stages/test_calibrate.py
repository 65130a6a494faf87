"""calibrate: ties, uniformity, the error against K, and the files."""

import numpy as np
import pytest

from infalign.errors import InputError
from infalign.files.tables import CALIBRATED, CALIBRATION, read_table
from infalign.stages.calibrate import calibration_errors, tied_share, uniformity


def test_tied_share_by_hand():
    assert tied_share(np.array([[1.0, 2.0, 1.0, 3.0], [1.0, 2.0, 3.0, 4.0]])) == 2 / 8


def test_uniform_for_exchangeable_rewards_of_any_scale():
    rng = np.random.default_rng(0)
    rewards = rng.normal(size=(300, 64)) * rng.lognormal(0, 1, (300, 1)) + 3
    found = uniformity(rewards)
    assert found["uniformity_ks"] < 0.03
    assert found["scale_change"] == 0


@pytest.mark.parametrize("scale", [1e4, 1e300, 1e-300])
def test_uniformity_of_rewards_of_any_size(scale):
    rewards = np.random.default_rng(0).normal(size=(40, 16))
    assert uniformity(scale * rewards) == uniformity(rewards)


def test_uniformity_notices_a_shift_between_the_halves():
    rewards = np.random.default_rng(0).normal(size=(100, 64))
    rewards[:, :32] += 0.5
    assert uniformity(rewards)["uniformity_ks"] > 0.15


def test_errors_meet_the_closed_form():
    rng = np.random.default_rng(1)
    rows = calibration_errors(rng.normal(size=(400, 32)), rng.normal(size=(400, 512)), [4, 16, 64])
    for row in rows:
        assert row["measured"] == pytest.approx(row["expected"], rel=0.04), row
    measured = [row["measured"] for row in rows]
    assert measured == sorted(measured, reverse=True)


def test_too_few_large_samples_is_a_clear_error():
    with pytest.raises(InputError, match=r"sample\.large_samples = 16 is too small"):
        calibration_errors(np.zeros((2, 2)), np.zeros((2, 16)), [16])


def test_files(finished, smoke_tree):
    for objective in smoke_tree["run"]["objectives"]:
        folder = finished / "results/calibrate" / objective
        assert sorted(p.name for p in folder.iterdir()) == [
            "calibrated.parquet",
            "calibration.parquet",
            "errors.json",
            "metrics.json",
            "rewards.json",
        ]
        references = read_table(folder / "calibration.parquet", CALIBRATION).to_pylist()
        assert all(row["rewards"] == sorted(row["rewards"]) for row in references)
        rows = read_table(folder / "calibrated.parquet", CALIBRATED).to_pylist()
        means: dict[str, list[float]] = {}
        for row in rows:
            means.setdefault(row["prompt_id"], []).append(row["calibrated"])
        assert all(np.mean(v) == pytest.approx(0.5) for v in means.values())
