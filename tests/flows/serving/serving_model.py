"""A model for tests of serving, saved from this code: it says what it was asked, and who it is."""

import time

import mlflow
from mlflow.pyfunc import PythonModel

from infalign.errors import InputError


class Echo(PythonModel):
    """Answers at once, or after the tokens' time: `max_new_tokens` are hundredths of a second."""

    def load_context(self, context):  # type: ignore[no-untyped-def]
        self.word = context.model_config["word"]
        if self.word == "broken":
            raise RuntimeError("these weights are broken")

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        if params["procedure"] == "crash":
            raise RuntimeError("a bug with a secret path /etc")
        if params["procedure"] == "nonsense":
            raise InputError("procedure 'nonsense' is unknown:\n write best_of:4.")
        time.sleep(params["max_new_tokens"] / 100)
        return [
            {"prompt": text, "procedure": params["procedure"], "n": params["n"], "by": self.word}
            for text in model_input["prompt"]
        ]


mlflow.models.set_model(Echo())
