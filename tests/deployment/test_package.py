"""What a package says of the policy: with which precision it was measured, and is to be served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from smoke import merged

from infalign.deployment.evidence import read_evidence
from infalign.deployment.package import package
from infalign.settings.params import check_params
from tests.stages.conftest import finished

__all__ = ["finished"]


@pytest.fixture
def packaged(finished: Path, smoke_tree: dict[str, Any], tmp_path: Path) -> Any:
    """A function that packages a policy of a finished run with some precision."""

    def make(precision: str) -> Path:
        tree = merged(smoke_tree, {"run": {"precision": precision, "device": "cpu"}})
        package(finished, check_params(tree, "smoke"), "helpful", "ctrl", tmp_path / precision)
        return tmp_path / precision

    return make


def test_the_precision_travels_and_other_objectives_are_judged_with_it(packaged: Any) -> None:
    wins = {}
    for precision, meant in (("auto", "float32"), ("float32", "float32"), ("bfloat16", "bfloat16")):
        folder = packaged(precision)
        told = json.loads((folder / "deployed" / "settings.json").read_text())
        assert told["precision"] == meant
        wins[precision] = read_evidence(folder / "evidence").other["harmless"]
    assert (wins["auto"] == wins["float32"]).all()
    assert (wins["bfloat16"] != wins["float32"]).any()
    assert np.abs(wins["bfloat16"] - wins["float32"]).mean() < 0.1
