"""From a result to the champion: register, judge, promote; and back.

The gate's mathematics is `infalign.deployment.gate`; the registry and the history of champions are
beside this file. A verdict holds against one champion: if another one came meanwhile, it is judged
again before anything moves.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.children.processes import Tell, redact
from flows.registry import registry as models
from flows.registry.arena import Entrant, NotMet, meet, recall_bouts
from flows.registry.champions import LONGEST_REASON, Overtaken, was_rolled_back
from flows.registry.describing import describe_model
from flows.registry.packaging import package
from flows.registry.registry import Registry, find, model_name, recall, register, result_digest
from infalign.deployment.evidence import Evidence, read_evidence
from infalign.deployment.gate import Rule, Verdict, judge_candidate
from infalign.errors import InputError
from infalign.files.workspace import write_json
from infalign.settings.params import Params

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

ATTEMPTS = 20


@dataclass(frozen=True)
class Decision:
    """What became of a candidate.

    Attributes:
        objective, version: of the candidate; no version where nothing was registered.
        champion: the one that it was judged against.
        verdict: every rule; None where it is the champion already.
        outcome: `promoted`, `forced`, `refused`, `champion` (it was already), `would promote`,
            `would refuse`.
    """

    objective: str
    version: str | None
    champion: str | None
    verdict: Verdict | None
    outcome: str

    def as_tree(self) -> dict[str, Any]:
        """For JSON and for Prefect."""
        tree = asdict(self)
        return tree | {"verdict": self.verdict.as_tree() if self.verdict else None}

    def sentence(self) -> str:
        """In words."""
        name = f"{model_name(self.objective)} version {self.version or '(not registered)'}"
        against = f"against version {self.champion}" if self.champion else "as the first champion"
        failed = _in_words(self.verdict.rules if self.verdict else ())
        return {
            "promoted": f"{name} is the champion now ({against}).",
            "forced": f"{name} is the champion now, by force; failed: {failed or 'nothing'}.",
            "refused": f"{name} is not promoted; failed: {failed}.",
            "champion": f"{name} is the champion already.",
            "would promote": f"{name} would be promoted ({against}).",
            "would refuse": f"{name} would not be promoted; failed: {failed}.",
        }[self.outcome]


@dataclass(frozen=True)
class Refusal:
    """A candidate that the gate refused.

    Attributes:
        version: of the candidate.
        when: UTC, ISO 8601.
        champion: the version that it was judged against, if there was one.
        rules: those that failed.
    """

    version: str
    when: str
    champion: str | None
    rules: tuple[Rule, ...]

    def as_tree(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def sentence(self, objective: str, word: str = "Last refused") -> str:
        """In words: which rule, by how much, and what would have passed."""
        when = self.when.removesuffix("+00:00").replace("T", " ")
        against = f"version {self.champion}" if self.champion else "no champion"
        return (
            f"{word}: {model_name(objective)} version {self.version}, {when} UTC, against "
            f"{against}; failed: {_in_words(self.rules)}."
        )


def refusals(versions: Sequence[ModelVersion]) -> list[Refusal]:
    """The refusals among the last verdicts of versions, the latest last; forced ones are none."""
    found = []
    for version in versions:
        tree = json.loads(version.tags.get(models.GATE, "{}"))
        if tree.get("passed") is False and not tree.get("forced") and "when" in tree:
            rules = tuple(Rule(**rule) for rule in tree["rules"] if not rule["passed"])
            found.append(Refusal(str(version.version), tree["when"], tree["champion"], rules))
    return sorted(found, key=lambda refusal: refusal.when)


def _in_words(rules: Sequence[Rule]) -> str:
    """The rules that failed, each with its number, its bound, and what would have passed."""
    return ", ".join(rule.reason() for rule in rules if not rule.passed)


def check_reason(force: bool, reason: str | None) -> str:
    """The reason, or one sentence: what is forced needs one."""
    if force and not (reason or "").strip():
        raise InputError("--force needs --reason TEXT: it is kept in the history.")
    if reason is not None and len(reason) > LONGEST_REASON:
        raise InputError(f"--reason has {len(reason)} characters, at most {LONGEST_REASON}.")
    return redact((reason or "").strip())


@contextlib.contextmanager
def champion_evidence(
    registry: Registry, objective: str
) -> Iterator[tuple[str | None, Evidence | None]]:
    """The champion's version and evidence."""
    champion = registry.champions(objective).champion()
    if champion is None:
        yield None, None
        return
    with registry.evidence(registry.version(objective, champion)) as folder:
        yield champion, read_evidence(folder)


def judge(
    registry: Registry,
    params: Params,
    objective: str,
    evidence: Evidence,
    version: str | None,
    force: bool = False,
) -> tuple[str | None, Verdict]:
    """The champion that a candidate was judged against, and every rule.

    Args:
        force: go on where the two have not met in the arena; the rule fails.

    Raises:
        NotMet: if they have not, without force.
    """
    if evidence.facts.objective != objective:
        raise InputError(f"this evidence is of objective {evidence.facts.objective!r}.")
    history = registry.champions(objective).history()
    taken_back = version is not None and was_rolled_back(history, version)
    with champion_evidence(registry, objective) as (champion, theirs):
        try:
            bouts = recall_bouts(registry.root, params, evidence, theirs)
        except (NotMet, InputError):
            if not force:
                raise
            bouts = None
        return champion, judge_candidate(evidence, theirs, params.promotion, bouts, taken_back)


async def decide(
    registry: Registry,
    params: Params,
    objective: str,
    number: str,
    tell: Tell,
    reason: str = "",
) -> Decision:
    """Have a version meet the champion, whoever that is, judge it, promote it if it passes."""
    for _ in range(ATTEMPTS):
        await meet(registry, params, objective, Entrant(number), tell)
        with contextlib.suppress(NotMet):  # another champion came meanwhile
            return await asyncio.to_thread(promote, registry, params, objective, number, reason)
    raise InputError(f"{model_name(objective)}: others promote all the time: try again.")


def promote(
    registry: Registry,
    params: Params,
    objective: str,
    number: str,
    reason: str = "",
    force: bool = False,
) -> Decision:
    """Judge a version against the champion and make it the champion if it passes, or by force."""
    version = registry.version(objective, number)
    champions = registry.champions(objective)
    for _ in range(ATTEMPTS):
        champions.settle()
        if champions.champion() == number:
            return Decision(objective, number, number, None, "champion")
        champion, verdict = _judge_version(registry, params, objective, version, force)
        models.record_verdict(registry, version, verdict, champion, force)
        if not verdict.passed and not force:
            return Decision(objective, number, champion, verdict, "refused")
        forced = force and not verdict.passed
        why = reason or "passed the gate"
        with contextlib.suppress(Overtaken):
            champions.promote(number, champion, why, in_short(verdict), forced)
            describe_model(champions, registry.versions(objective))
            outcome = "forced" if forced else "promoted"
            return Decision(objective, number, champion, verdict, outcome)
    raise InputError(f"{model_name(objective)}: others promote all the time: try again.")


def _judge_version(
    registry: Registry, params: Params, objective: str, version: Any, force: bool
) -> tuple[str | None, Verdict]:
    """As `judge`; what cannot be judged fails, where force may still promote it."""
    try:
        with registry.evidence(version) as folder:
            evidence = read_evidence(folder)
        return judge(registry, params, objective, evidence, str(version.version), force)
    except InputError as error:
        if not force:
            raise
        rule = Rule("evidence", False, None, "can be read", str(error)[:300])
        return registry.champions(objective).champion(), Verdict((rule,))


def in_short(verdict: Verdict) -> dict[str, Any]:
    """A verdict as the history keeps it."""
    return {
        "passed": verdict.passed,
        "rules": {
            rule.name: [
                rule.passed,
                None if rule.number is None else round(rule.number, 6),
                rule.bound,
            ]
            for rule in verdict.rules
        },
    }


def preview(
    registry: Registry, params: Params, objective: str, number: str | None, package: Path | None
) -> Decision:
    """What `promote` would do with a version, or with a package that is not registered."""
    if number is not None:
        with registry.evidence(registry.version(objective, number)) as folder:
            evidence = read_evidence(folder)
    else:
        assert package is not None
        evidence = read_evidence(package / "evidence")
    if number is not None and registry.champions(objective).champion() == number:
        return Decision(objective, number, number, None, "champion")
    champion, verdict = judge(registry, params, objective, evidence, number)
    outcome = "would promote" if verdict.passed else "would refuse"
    return Decision(objective, number, champion, verdict, outcome)


async def registered(
    registry: Registry, params: Params, objective: str, tell: Tell, parent: str | None = None
) -> str:
    """The version of what is in results/, registered if it was not."""
    version = await asyncio.to_thread(recall, registry, params, objective)
    if version is None:
        folder = await package(registry.root, params, objective, tell)
        version = await asyncio.to_thread(register, registry, params, objective, folder, parent)
    return str(version.version)


def known(registry: Registry, params: Params, objective: str) -> str | None:
    """The version of what is in results/, if it was registered."""
    digest = result_digest(registry.root, params, objective)
    version = find(registry, objective, digest)
    return str(version.version) if version is not None else None


def write_decision(registry: Registry, params: Params, decision: Decision) -> Path:
    """The decision as JSON, for whoever reads files; `result` where it is of what is in results/.

    Args:
        params: those of the project.
    """
    path, tree = _decision_file(registry.root, decision.objective), decision.as_tree()
    try:
        result = result_digest(registry.root, params, decision.objective)
    except InputError:  # nothing in results/
        result = None
    if result is not None:
        found = find(registry, decision.objective, result)
        if (None if found is None else str(found.version)) == decision.version:
            tree |= {"result": result}
    write_json(path, tree)
    return path


def read_decision(root: Path, params: Params, objective: str) -> Decision | None:
    """What was last decided of what is in results/; None where nothing was."""
    try:
        tree = json.loads(_decision_file(root, objective).read_text(encoding="utf-8"))
        result = result_digest(root, params, objective)
        if tree.pop("result", None) != result:
            return None
        verdict = tree.pop("verdict")
        rules = None if verdict is None else tuple(Rule(**rule) for rule in verdict["rules"])
        return Decision(**tree, verdict=None if rules is None else Verdict(rules))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _decision_file(root: Path, objective: str) -> Path:
    return root / ".infalign" / "promotion" / f"{objective}.json"
