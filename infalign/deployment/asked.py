"""The prompts of a champion's check, and those that they are compared with.

Fresh are evaluation prompts that the version's own evaluation did not use; logged ones come from
`infalign serve --log`. Neither holds a prompt that anything of the version was trained on, and
logged ones none of an evaluation or a suite: such are known, or pinned, and no sign of the world.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from infalign.data.dialogue import Dialogue, hash_share, read_prompts
from infalign.data.suites import pinned
from infalign.deployment.evidence import Evidence
from infalign.errors import InputError
from infalign.files.tables import read_table
from infalign.settings.params import Params

FEWEST = 8  # prompts that are worth a comparison
MOST = 512  # prompts of the evaluation, and of training, that others are compared with


class TooFew(InputError):
    """There are not enough prompts to say anything."""


@dataclass(frozen=True)
class Asked:
    """Prompts of a check.

    Attributes:
        prompts: id to dialogue.
        left_out: why others are not among them, to how many.
    """

    prompts: Mapping[str, Dialogue]
    left_out: Mapping[str, int] = field(default_factory=dict)


def fresh_prompts(
    root: Path, params: Params, objective: str, evidence: Evidence, seed: int
) -> dict[str, Dialogue]:
    """Evaluation prompts that the version knows nothing of, others with every seed."""
    known = read_prompts(_prepared(root), objective, "test")
    used = {*evidence.prompt_ids, *(evidence.trained or ())}
    fresh = {name: dialogue for name, dialogue in known.items() if name not in used}
    if len(fresh) < FEWEST:
        raise TooFew(
            f"{len(fresh)} evaluation prompts of {objective} are fresh, at least {FEWEST} are "
            "needed: add held-out data, or lower sample.test_prompts."
        )
    return _drawn(fresh, params, seed)


def logged_prompts(
    root: Path, params: Params, objective: str, evidence: Evidence, file: Path, seed: int
) -> Asked:
    """Prompts that users asked, each once, others with every seed.

    Args:
        file: JSON, a list of `{"prompt_id", "dialogue"}`; where a text was redacted before it was
            logged, the id is that of what was asked.
    """
    suites = {dialogue.id for dialogue in pinned(root, params.data)}
    held_out = {*read_prompts(_prepared(root), objective, "test"), *evidence.prompt_ids}
    trained = evidence.trained
    if trained is None:  # of an older version, which does not say
        trained = frozenset(read_prompts(_prepared(root), objective, "train"))
    reasons = {"suite": suites, "evaluation": held_out, "trained": trained}
    found: dict[str, Dialogue] = {}
    lost: dict[str, str] = {}
    for row in json.loads(file.read_text(encoding="utf-8")):
        dialogue = Dialogue.parse(row["dialogue"])
        names = {dialogue.id, row["prompt_id"]}
        why = next((reason for reason, ids in reasons.items() if names & ids), None)
        if why is None:
            found[dialogue.id] = dialogue
        else:
            lost[dialogue.id] = why
    left_out = Counter(lost.values())
    if len(found) < FEWEST:
        others = "".join(f", {many} of {why} left out" for why, many in sorted(left_out.items()))
        raise TooFew(
            f"{len(found)} prompts of the last {params.drift.log_days:g} days are in the log of "
            f"{objective}{others}: at least {FEWEST} are needed, so nothing was compared."
        )
    return Asked(_drawn(found, params, seed), left_out)


def taken(asked: Asked, lengths: Iterable[int], longest: int) -> Asked:
    """Without prompts that the policy does not take.

    Args:
        lengths: tokens of each prompt.
        longest: that it takes, tokens.
    """
    pairs = zip(asked.prompts.items(), lengths, strict=True)
    fitting = dict(pair for pair, tokens in pairs if tokens <= longest)
    many = len(asked.prompts) - len(fitting)
    if len(fitting) < FEWEST:
        raise TooFew(
            f"{len(fitting)} of {len(asked.prompts)} prompts have at most the {longest} tokens "
            f"that the champion takes, at least {FEWEST} are needed: nothing was compared."
        )
    return Asked(fitting, {**asked.left_out, **({"too_long": many} if many else {})})


def evaluated(root: Path, objective: str, evidence: Evidence, package: Path) -> list[Dialogue]:
    """The prompts of the version's evaluation, as far as its package or results/ still has them."""
    known = dict(_packaged(package)) | read_prompts(_prepared(root), objective)
    names = [name for name in evidence.prompt_ids if name in known]
    return [known[name] for name in sorted(names, key=_order)[:MOST]]


def learnt(root: Path, objective: str, evidence: Evidence, package: Path) -> list[Dialogue]:
    """Prompts that the version was trained on, as far as its package or results/ still has them."""
    today = read_prompts(_prepared(root), objective, "train")
    known = dict(_packaged(package)) | today
    trained = set(known) & evidence.trained if evidence.trained is not None else set(today)
    names = trained - set(evidence.prompt_ids)
    return [known[name] for name in sorted(names, key=_order)[:MOST]]


def _packaged(package: Path) -> Iterator[tuple[str, Dialogue]]:
    """The prompts with references: of training and of the evaluation."""
    from infalign.deployment.deployed import REFERENCES, reference_prompt

    path = package / "deployed" / "references.parquet"
    for text in read_table(path, REFERENCES)["dialogue"].to_pylist():
        dialogue = reference_prompt(text)
        yield dialogue.id, dialogue


def _drawn(found: dict[str, Dialogue], params: Params, seed: int) -> dict[str, Dialogue]:
    names = sorted(found, key=lambda name: hash_share(name, f"monitor {seed}"))
    return {name: found[name] for name in names[: params.drift.prompts]}


def _order(name: str) -> float:
    return hash_share(name, "compared")


def _prepared(root: Path) -> Path:
    return root / "results" / "prepare" / "prompts.parquet"
