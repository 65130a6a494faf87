"""A registered version as MLflow loads it, models from code: see `infalign.deployment.deployed`.

`predict(prompts, params={procedure, n, max_new_tokens, temperature, seed})` gives, for each prompt,
the kept response, its reward, and its calibrated reward (null where the prompt has no references).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class DeployedModel(PythonModel):
    """The policy, loaded once; a request out of bounds is the caller's mistake, in one sentence."""

    _skip_type_hint_validation = True  # or MLflow warns of `predict`; the signature says it better

    def load_context(self, context: Any) -> None:
        """Read the packaged policy."""
        from infalign.deployment.deployed import load_deployed

        self.deployed = load_deployed(Path(context.artifacts["deployed"]))

    # MLflow takes a type hint of the input for its schema.
    def predict(  # type: ignore[no-untyped-def]
        self, context, model_input, params: Mapping[str, Any] | None = None
    ):
        """One mapping a prompt: response, reward, calibrated."""
        from infalign.deployment.deployed import Request
        from infalign.errors import InputError

        try:
            answers = self.deployed.answer(_texts(model_input), Request(**(params or {})))
        except InputError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None
        return [asdict(answer) for answer in answers]


def _texts(model_input: Any) -> Sequence[str]:
    """The prompts of what MLflow hands over: a table of one column, an array or a list."""
    values = getattr(model_input, "values", model_input)
    return [row[0] if getattr(row, "shape", None) == (1,) else row for row in values]


set_model(DeployedModel())
