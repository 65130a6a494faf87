"""Register policies whose reward is no model: URI NAME URL, version 1 a function, 2 that server."""

import copy
import json
import sys
from pathlib import Path
from typing import Any

import mlflow
import yaml

from flows.registry.packaging import save
from infalign.data.framing import asked
from infalign.data.tokenizer import train_tokenizer
from infalign.files.tables import PROMPTS, write_table
from infalign.files.workspace import Workspace
from infalign.rewards.description import described
from infalign.rewards.packaged import pack_source
from infalign.settings.params import check_params
from tests.promotion_case import PROMPT, ROOT, evidence, tiny_models, write_package, write_settings

SHORTEST = "def score(dialogues, responses):\n    return [-len(text) for text in responses]\n"


def main(root: Path, uri: str, name: str, url: str) -> None:
    """Package, save and register both."""
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    (root / "shortest.py").write_text(SHORTEST)
    models, results = root / "models", root / "results"
    models.mkdir()
    texts = ["\n\nHuman: one two three\n\nAssistant: four five six", " seven eight nine ten"]
    tiny_models(models, train_tokenizer(texts, 300))
    prompt = asked(PROMPT)
    row = {"prompt_id": prompt.id, "objective": "helpful", "split": "test", "source": "made"}
    row |= {"dialogue": prompt.text, "columns": "{}"}
    write_table(results / "prepare/prompts.parquet", {k: [v] for k, v in row.items()}, PROMPTS)
    mlflow.set_tracking_uri(uri)
    client = mlflow.MlflowClient()
    client.create_registered_model(name)
    rewards: list[dict[str, Any]] = [
        {"kind": "function", "path": "shortest.py:score"},
        {"kind": "http", "url": url},
    ]
    for number, reward in enumerate(rewards):
        own = copy.deepcopy(tree)
        own["objectives"]["helpful"] |= {"reward": reward, "judge": None}
        params = check_params(own, "test")
        (results / "sources").mkdir(exist_ok=True)
        about = described(params.objectives["helpful"], root)
        (results / "sources/helpful.json").write_text(json.dumps(about))
        package = write_package(root / f"package{number}", models, evidence())
        write_settings(package / "deployed", response_tokens=params.model.response_tokens)
        for path in (package / "deployed/reward").iterdir():
            path.unlink()
        (package / "deployed/reward").rmdir()
        pack_source(Workspace(params, root, "package"), "helpful", package / "deployed")
        save(params, "helpful", package, root / f"saved{number}")
        client.create_model_version(name, (root / f"saved{number}").as_uri())


if __name__ == "__main__":
    main(Path.cwd(), *sys.argv[1:])
