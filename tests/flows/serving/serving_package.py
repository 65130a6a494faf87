"""Save a packaged policy of tiny models as MLflow's model: FOLDER, and an older FOLDER-older."""

import json
import shutil
import sys
from pathlib import Path

from flows.registry.packaging import save
from infalign.data.tokenizer import train_tokenizer
from tests.promotion_case import (
    evidence,
    project_params,
    tiny_models,
    write_package,
    write_settings,
)


def main(folder: Path) -> None:
    """The model, and the same one under the names of an older layout."""
    params = project_params()
    texts = ["\n\nHuman: one two three\n\nAssistant: four five six", " seven eight nine ten"]
    models = folder.with_name("models")
    models.mkdir()
    tiny_models(models, train_tokenizer(texts, 300))
    package = write_package(folder.with_name("package"), models, evidence())
    write_settings(package / "deployed", response_tokens=params.model.response_tokens)
    save(params, "helpful", package, folder)
    older = folder.with_name(f"{folder.name}-older")
    shutil.copytree(folder, older)
    code = older / "code" / "infalign"
    (code / "deployment" / "deployed.py").rename(code / "deployed.py")
    loader = older / "pyfunc_model.py"
    loader.write_text(
        loader.read_text().replace("infalign.deployment.deployed", "infalign.deployed")
    )
    settings = older / "artifacts" / "deployed" / "settings.json"
    said = json.loads(settings.read_text())
    settings.write_text(json.dumps({k: said[k] for k in said if k not in ("threads", "device")}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
