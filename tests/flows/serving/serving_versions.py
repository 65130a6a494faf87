"""Register versions of the test model: URI NAME WORD..., one version a word."""

import sys
from pathlib import Path

import mlflow
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

PARAMS = [("procedure", "string", "best_of:4"), ("n", "long", 0), ("max_new_tokens", "long", 1)]


def main(uri: str, name: str, words: list[str]) -> None:
    """Log and register; `broken` has no example, because it does not load."""
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    place = Path.cwd() / "mlartifacts"
    experiment = mlflow.create_experiment("models", artifact_location=place.as_uri())
    signature = ModelSignature(
        Schema([ColSpec("string", "prompt")]),
        params=ParamSchema([ParamSpec(*param) for param in PARAMS]),
    )
    for word in words:
        with mlflow.start_run(experiment_id=experiment):
            mlflow.pyfunc.log_model(
                name="policy",
                python_model=str(Path(__file__).parent / "serving_model.py"),
                model_config={"word": word},
                signature=signature,
                input_example=None if word == "broken" else {"prompt": ["hello"]},
                pip_requirements=[],
                registered_model_name=name,
            )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
