"""A packaged system: policy, selecting reward, procedure, and the judge and reference beside it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from infalign.deployment.evidence import Evidence, read_evidence
from infalign.errors import InputError


@dataclass(frozen=True)
class System:
    """A packaged system.

    Attributes:
        word: `candidate`, `champion`, or `reference`: the candidate with its reference's policy.
        folder: its package.
        settings: how it is deployed.
    """

    word: str
    folder: Path
    evidence: Evidence
    settings: dict[str, Any]

    @staticmethod
    def open(word: str, folder: Path) -> System:
        """Read a package; its models wait."""
        path = folder / "deployed" / "settings.json"
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{folder} holds no packaged policy: {error}.") from None
        return System(word, folder, read_evidence(folder / "evidence"), settings)

    @property
    def source(self) -> Path:
        """Where its selecting reward is."""
        return self.folder / "deployed"

    @property
    def policy(self) -> Path:
        """Where its policy is."""
        return (self.folder / self.word if self.word == "reference" else self.source) / "policy"

    @property
    def temperature(self) -> float:
        """Of its sampling; older packages do not say."""
        return float(self.settings.get("temperature", 1.0))

    @property
    def judge(self) -> Path:
        """Where its judge is; its selecting reward where it has none."""
        judge = self.folder / "judge"
        return judge if judge.is_dir() else self.source

    @property
    def has_reference(self) -> bool:
        """Whether its package holds its reference policy; older ones do not."""
        return (self.folder / "reference").is_dir()

    def reference(self) -> System:
        """The policy that it started from, with its procedure and reward."""
        if not self.has_reference:
            raise InputError(f"{self.folder} holds no reference policy: register it again.")
        how = [self.settings.get(name) for name in ("response_tokens", "temperature", "precision")]
        known = f"reference {self.evidence.facts.reference} {how}"  # what its answers depend on
        facts = replace(self.evidence.facts, system=known)
        return replace(self, word="reference", evidence=replace(self.evidence, facts=facts))
