"""Folders of models open with plain transformers, in a process that has no infalign."""

import json
import subprocess
import sys

import pytest

OPEN = """
import json, sys
from importlib.machinery import PathFinder
class Hide(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.split(".")[0] in ("infalign", "flows", "peft"):
            return None
        return super().find_spec(name, path, target)
sys.meta_path = [Hide if finder is PathFinder else finder for finder in sys.meta_path]
import torch
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
found = {}
for folder in map(Path, sys.argv[1:]):
    kind = AutoModelForCausalLM if folder.name == "policy" else AutoModelForSequenceClassification
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, told = kind.from_pretrained(folder, output_loading_info=True)
    ids = tokenizer("\\n\\nHuman: one\\n\\nAssistant: two", return_tensors="pt")
    with torch.no_grad():
        logits = model(input_ids=ids["input_ids"]).logits
    found[str(folder)] = {
        "missing": sorted(told["missing_keys"]) + sorted(told["unexpected_keys"]),
        "shape": list(logits.shape),
        "finite": bool(torch.isfinite(logits).all()),
        "dtype": str(model.dtype),
    }
assert not any(name.split(".")[0] == "infalign" for name in sys.modules)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def opened(finished):
    """What plain transformers finds in every folder of a model."""
    folders = [p.parent for p in sorted((finished / "results").rglob("config.json"))]
    done = subprocess.run(
        [sys.executable, "-I", "-c", OPEN, *map(str, folders)],
        cwd=finished.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_every_model_is_there_and_whole(opened, finished, smoke_tree):
    run = smoke_tree["run"]
    results = finished / "results"
    expected = {results / "sft/policy"}
    expected |= {
        results / "reward" / o / h for o in run["objectives"] for h in ("selecting", "independent")
    }
    expected |= {
        results / "align" / o / v / "policy" for o in run["objectives"] for v in run["variants"]
    }
    assert set(opened) == set(map(str, expected))
    for folder, told in opened.items():
        assert told["missing"] == [], folder
        assert told["finite"], folder
        assert told["dtype"] == "torch.float32", folder
        assert len(told["shape"]) == (2 if "/reward/" in folder else 3), folder
