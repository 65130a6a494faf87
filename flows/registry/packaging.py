"""A candidate as files: its package, made in a process of its own, and MLflow's model of it."""

from __future__ import annotations

import json
import os
import shutil
import sys
import warnings
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import infalign
from flows.children.processes import child_environment, run_child
from flows.project.versions import StageKilled
from infalign.errors import InputError
from infalign.settings.params import Params

REQUIREMENTS = (
    "mlflow",
    "torch",
    "transformers",
    "numpy",
    "scipy",
    "pyarrow",
    "pydantic",
    "pyyaml",
    "filelock",
)
PARTS = ("deployed", "evidence", "judge", "reference")  # of a package
EXAMPLE = ["\n\nHuman: How do I bake bread?\n\nAssistant:"]


async def package(root: Path, params: Params, objective: str, tell: Any) -> Path:
    """Write the package of the variant in `promotion.variant`, in a process of its own."""
    variant = params.promotion.variant
    if variant not in params.run.variants:
        raise InputError(
            f"params.yaml: promotion.variant = {variant!r} is not one of run.variants "
            f"{params.run.variants}: choose one that runs."
        )
    out = root / ".infalign" / "work" / f"register@{objective}" / "package"
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "infalign.deployment.package", "--objective", objective]
    command += ["--variant", variant, str(out)]
    done = await run_child(command, root, child_environment(), tell)
    if done.returncode == 2:
        raise InputError((done.lines or ("package failed",))[-1].removeprefix("package: "))
    if done.returncode:
        raise StageKilled(f"register@{objective} ended with {done.returncode}.")
    return out


def save(params: Params, objective: str, folder: Path, path: Path) -> None:
    """The package as an MLflow pyfunc model from code, with our library beside it; no pickle."""
    os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")
    # About MLflow's own type hints. For good: two objectives are packaged in two threads, and what
    # `catch_warnings` puts back in one of them is in the other's way.
    for words in ("Add type hints to the `predict`", "Any type hint is inferred as AnyType"):
        warnings.filterwarnings("ignore", rf"(?s).*{words}", UserWarning)
    import mlflow.pyfunc

    mlflow.pyfunc.save_model(
        path,
        python_model=str(Path(__file__).with_name("pyfunc_model.py")),
        artifacts={name: str(folder / name) for name in PARTS if (folder / name).is_dir()},
        code_paths=[str(Path(infalign.__file__).parent)],
        pip_requirements=[f"{n}=={installed(n).partition('+')[0]}" for n in REQUIREMENTS],
        signature=signature(params, objective, _longest(folder)),
        input_example=EXAMPLE,
    )
    for cache in path.rglob("__pycache__"):
        shutil.rmtree(cache, ignore_errors=True)


def _longest(folder: Path) -> int:
    """The longest response of a packaged policy, tokens."""
    settings = json.loads((folder / "deployed" / "settings.json").read_text(encoding="utf-8"))
    return int(settings["response_tokens"])


def signature(params: Params, objective: str, longest: int) -> Any:
    """Prompts in; response, reward and calibrated reward out; how to answer as params."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    return ModelSignature(
        inputs=Schema([ColSpec("string")]),
        outputs=Schema(
            [
                ColSpec("string", "response"),
                ColSpec("double", "reward"),
                ColSpec("double", "calibrated", required=False),
            ]
        ),
        params=ParamSchema(
            [
                ParamSpec("procedure", "string", params.objectives[objective].procedure),
                ParamSpec("n", "long", 0),
                ParamSpec("max_new_tokens", "long", longest),
                ParamSpec("temperature", "double", params.promotion.temperature),
                ParamSpec("seed", "long", 0),
            ]
        ),
    )
