"""`infalign data from-log FOLDER`: what users thought of answers, as preference pairs and prompts.

A correction is preferred to what was answered; the draw that a user prefers to the one that was
kept; a good answer (rating above 0) to the draw of the lowest reward, where that is below its own,
and to a bad one (below 0) the other draw of the highest. Of several opinions about an answer the
last of each kind counts. Rows say where they come from: the answer's id, the version that gave it,
and by what they are a pair.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flows.project import data_growth
from flows.project.datasets import Wanted, add_data
from flows.serving.log import ANSWERS, FEEDBACK, read_log
from infalign.data.dialogue import Dialogue
from infalign.data.suites import pinned
from infalign.errors import InputError
from infalign.files.tables import PROMPTS, read_table
from infalign.settings.params import load_params

KINDS = {
    "correction": "corrected by a user",
    "preferred": "another draw preferred by a user",
    "rating": "rated by a user",
}
PAIRS, ASKED = "pairs", "prompts"  # subsets


class Harvest(NamedTuple):
    """What a log gives.

    Attributes:
        pairs: rows {prompt, chosen, rejected, answer, version, by}, prompts as messages.
        prompts: rows {prompt, answer, version}, each dialogue once.
        counts: of answers, of what became a pair by what, and of what was left out by why.
    """

    pairs: list[dict[str, Any]]
    prompts: list[dict[str, Any]]
    counts: Counter[str]

    def lines(self) -> list[str]:
        """To read."""
        return [f"{number} {words}" for words, number in self.counts.items() if number]


def harvest(folder: Path, reserved: frozenset[str]) -> Harvest:
    """Pairs and prompts of a log.

    Args:
        folder: of `infalign serve --log`.
        reserved: ids of prompts that are never trained on: evaluation prompts and suites.

    Raises:
        InputError: where the log is broken, or holds nothing.
    """
    answers = {(row["id"], row["choice"]): row for row in read_log(folder, ANSWERS).to_pylist()}
    if not answers:
        raise InputError(f"{folder} holds no answers: nothing was logged there.")
    opinions: dict[tuple[str, int], dict[str, Any]] = {}
    counts = Counter({"answers in the log": len(answers)})
    for row in sorted(read_log(folder, FEEDBACK).to_pylist(), key=lambda row: row["time"]):
        said = {kind: row[kind] for kind in KINDS if row[kind] is not None}
        opinions.setdefault((row["id"], row["choice"]), {}).update(said)
    counts["opinions about answers that are not in the log"] = len(opinions.keys() - answers.keys())
    pairs: list[dict[str, Any]] = []
    prompts: dict[str, dict[str, Any]] = {}
    for key, row in answers.items():
        dialogue = Dialogue.parse(row["dialogue"])
        if {dialogue.id, row["prompt_id"]} & reserved:
            counts["answers to evaluation or suite prompts, left out"] += 1
            continue
        source = {"answer": row["id"], "version": row["version"]}
        prompts.setdefault(dialogue.id, {"prompt": dialogue.messages, **source})
        for kind, chosen, rejected in _preferences(row, opinions.get(key, {})):
            if chosen.strip() == rejected.strip():
                counts["opinions without another text to prefer"] += 1
                continue
            counts[f"pairs {KINDS[kind]}"] += 1
            pairs.append(
                {
                    "prompt": dialogue.messages,
                    "chosen": [{"role": "assistant", "content": chosen}],
                    "rejected": [{"role": "assistant", "content": rejected}],
                    "by": kind,
                    **source,
                }
            )
    return Harvest(pairs, list(prompts.values()), counts)


def _preferences(
    row: Mapping[str, Any], opinion: Mapping[str, Any]
) -> Iterator[tuple[str, str, str]]:
    """By what, the preferred text and the other one: equal where there is no other."""
    responses, rewards, kept = row["responses"], row["rewards"], row["kept"]
    answered = responses[kept]
    if "correction" in opinion:
        yield "correction", opinion["correction"], answered
    if "preferred" in opinion and opinion["preferred"] < len(responses):
        yield "preferred", responses[opinion["preferred"]], answered
    rating = opinion.get("rating", 0.0)
    others = [n for n, text in enumerate(responses) if text != answered]
    if rating > 0:
        worst = min(others, key=rewards.__getitem__, default=kept)
        told = rewards[worst] < rewards[kept]  # else the reward knows of no worse one
        yield "rating", answered, responses[worst] if told else answered
    elif rating < 0:
        best = max(others, key=rewards.__getitem__, default=kept)
        yield "rating", responses[best], answered


def from_log(root: Path, folder: Path, name: str) -> list[str]:
    """Add a log's pairs and prompts to data/raw/NAME, under DVC: what was done, to read."""
    found = harvest(folder, reserved_prompts(root))
    if not found.pairs:
        raise InputError(
            f"{folder} holds no feedback of which a pair could be made "
            f"({'; '.join(found.lines())}): nothing was changed."
        )
    with tempfile.TemporaryDirectory() as made:
        for subset, rows in ((PAIRS, found.pairs), (ASKED, found.prompts)):
            place = Path(made) / name / subset
            place.mkdir(parents=True)
            text = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
            (place / "train.jsonl").write_text(text, encoding="utf-8")
        wanted = Wanted(str(Path(made) / name), name, (), None, None)
        if (root / "data" / "raw" / name).is_dir():
            said = data_growth.add_into(root, wanted, {}).lines()
        else:
            said = add_data(root, wanted, {})
    return [*found.lines(), *said]


def reserved_prompts(root: Path) -> frozenset[str]:
    """Ids of the prompts that must not train anybody: of evaluation, and of suites."""
    params = load_params(root / "params.yaml")
    reserved = {dialogue.id for dialogue in pinned(root, params.data)}
    table = root / "results" / "prepare" / "prompts.parquet"
    if table.is_file():
        prompts = read_table(table, PROMPTS)
        rows = zip(prompts["prompt_id"].to_pylist(), prompts["split"].to_pylist(), strict=True)
        reserved |= {name for name, split in rows if split == "test"}
    return frozenset(reserved)
