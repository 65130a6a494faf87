"""New data, judged before it trains: `python -m infalign.deployment.intake --objective O OUT`

Reads the objective's data, the version of it that was trained on last (`--before`), and where
results/ holds a reward model that was trained here, how often it agrees with the new pairs. Writes
OUT, a JSON file: the numbers, and a verdict by the section `intake` of params.yaml.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from infalign.data.changes import changes, new_pairs
from infalign.data.dialogue import hash_share
from infalign.data.kept import last_exchanges
from infalign.data.pairs import Pair, Subset
from infalign.data.reading import options_of, survey
from infalign.deployment import command
from infalign.files.tables import SELECTING
from infalign.files.workspace import read_lengths, write_json
from infalign.settings.operating import Intake
from infalign.settings.params import Params
from infalign.settings.rewards import TrainedReward

FEWEST = 20  # new pairs that are worth a comparison of their language
CHANCE = 0.01  # of a shift of lengths without any


class Bound(NamedTuple):
    """One question of the gate.

    Attributes:
        number: None where there is nothing to measure, which passes.
        bound: None where any is taken.
    """

    name: str
    number: float | None
    bound: str | None
    passed: bool

    def sentence(self) -> str:
        """Number and bound in words."""
        return f"{self.name} = {self.number:.3g}, but {self.bound}"


def examine(root: Path, params: Params, objective: str, before: Path | None) -> dict[str, Any]:
    """The numbers of an objective's data, and whether it may train."""
    old, now = (
        None if path is None else _read(params, objective, path)
        for path in (before, root / params.data_path(objective))
    )
    assert now is not None
    found = changes(old, now)
    found["agreement"] = agreement(root, params, objective, new_pairs(old, now)) if old else None
    bounds = judge(found, params.intake)
    verdict = {"bounds": [b._asdict() for b in bounds], "passed": all(b.passed for b in bounds)}
    words = [bound.sentence() for bound in bounds if not bound.passed]
    return {"objective": objective, **found, **verdict, "failed": words}


def _read(params: Params, objective: str, path: Path) -> Subset:
    about = params.objectives[objective]
    return survey(path, about.subset, options_of(params.data, about.columns))


def judge(found: dict[str, Any], settings: Intake) -> list[Bound]:
    """Every bound of the section `intake`, in its order."""
    kept, lengths, agreed = found["kept"], found["length_shift"], found["agreement"]
    grown = kept["now"] / kept["before"] if kept["before"] else None
    low, high = settings.size or (0.0, float("inf"))
    size = f"{low:g} to {high:g} times the last version's rows are allowed"
    lost = None if agreed is None else agreed["held_out"] - agreed["accuracy_high"]
    shifted = lengths and (lengths["distance"] if lengths["p_value"] < CHANCE else 0.0)
    language = found["language_shift"] if found["new_pairs"] >= FEWEST else None
    return [
        _most("dropped_share", found["dropped_share"], settings.dropped_share),
        Bound(
            "size",
            grown,
            size if settings.size else None,
            grown is None or settings.size is None or low <= grown <= high,
        ),
        _most("agreement_loss", lost, settings.agreement_loss),
        _most("length_shift", shifted, settings.length_shift),
        _most("language_shift", language, settings.language_shift),
    ]


def _most(name: str, number: float | None, bound: float | None) -> Bound:
    words = None if bound is None else f"at most {bound:g} is allowed"
    return Bound(name, number, words, number is None or bound is None or number <= bound)


def agreement(
    root: Path, params: Params, objective: str, pairs: Sequence[Pair]
) -> dict[str, float] | None:
    """How often the reward model that is there prefers what new pairs prefer, and its interval.

    None where none was trained here, or nothing is new.
    """
    folder = root / "results" / "reward" / objective / SELECTING
    metrics = folder.parent / "metrics.json"
    trained = isinstance(params.objectives[objective].reward, TrainedReward)
    if not trained or not folder.is_dir() or not metrics.is_file() or not pairs:
        return None
    from infalign.lm.models import load_format
    from infalign.rewards.classifier import Passes, trained_classifier
    from infalign.rewards.pairs import accuracy

    held_out = json.loads(metrics.read_text(encoding="utf-8"))[SELECTING]["accuracy"]
    chosen = sorted(pairs, key=lambda pair: hash_share(json.dumps(pair[1:3]), pair.prompt.id))
    chosen = chosen[: params.intake.agreement_pairs]
    form, lengths = (
        load_format(root / "results" / "sft" / "policy"),
        read_lengths(params, root / "results"),
    )
    asked = []
    for pair in chosen:
        short = pair.prompt
        if len(form.encode_prompts([short])[0]) > lengths.prompt:
            cut = last_exchanges(short, form.encode_prompts, lengths.prompt)
            if cut is None:
                continue
            short = cut
        asked.append(pair._replace(prompt=short))
    if not asked:
        return None
    source = trained_classifier(folder, params.run.device, params.run.precision, Passes())
    prompts = [pair.prompt for pair in asked]
    sides = [[p.chosen for p in asked], [p.rejected for p in asked]]
    better, worse = (
        source.rewards(prompts, form.cut_responses(side, lengths.response)) for side in sides
    )
    found = accuracy(better - worse)
    names = ("accuracy", "accuracy_low", "accuracy_high")
    return {"pairs": len(asked), "held_out": float(held_out)} | {n: found[n] for n in names}


def main(arguments: Sequence[str] | None = None) -> int:
    """Examine one objective's data in the project of the current folder; 2 is the user's input."""
    parser = command.parser_of("intake", __doc__)
    parser.add_argument("--before", type=Path)
    parser.add_argument("out", type=Path)

    def work(params: Params, chosen: Namespace) -> None:
        write_json(chosen.out, examine(Path.cwd(), params, chosen.objective, chosen.before))

    return command.run("intake", parser, arguments, work)


if __name__ == "__main__":
    sys.exit(main())
