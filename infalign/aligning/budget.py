"""The KL budget of a trained policy, as align says it beside the policy: who comes later asks here.

`metrics.json` of results/align/O/V has `kl_nats`, the budget that training kept to, null where
`align.beta` was given in its place, and `theory_kl_nats`, at which the theory gave the first beta
and the transformations `optimal` and `auto`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from infalign.errors import InputError
from infalign.settings.methods import Align


class KlBudget(NamedTuple):
    """Nats a response: what training keeps to (None: to nothing), and where the theory began it."""

    kl_nats: float | None
    theory_kl_nats: float


def budget_of(settings: Align) -> KlBudget:
    """The budget that training keeps to under the section `align` of params.yaml."""
    return KlBudget(None if settings.beta else settings.kl_nats, settings.kl_nats)


def read_budget(policy: Path) -> KlBudget:
    """The budget of a policy in results/align/O/V."""
    path = policy / "metrics.json"
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        return KlBudget(*(tree[name] for name in KlBudget._fields))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: run align first.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} does not say the KL budget ({error}): run align again.") from None


def common_budget(policies: Iterable[Path]) -> KlBudget:
    """The one budget of policies that are measured together."""
    found = {path: read_budget(path) for path in policies}
    if len(set(found.values())) > 1:
        said = ", ".join(f"{path.name}: {budget.kl_nats}" for path, budget in found.items())
        folder = next(iter(found)).parent
        raise InputError(f"{folder}: the KL budgets differ ({said}): run align again for all.")
    return next(iter(found.values()))
