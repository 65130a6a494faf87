"""What MLflow's pages say of a registered model and of its versions: the headline, and the picture.

The picture is an artifact of the run that registered the version; MLflow's server has it at an
address beside the page.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from flows.registry.champions import CHAMPION, Champions, patiently
from flows.tracking.naming import policy_words
from infalign.settings.params import Params

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

PLOTS = "plots"  # the folder among the run's artifacts


def picture(root: Path, objective: str) -> Path | None:
    """The report's plot of win rate against KL, where there is one."""
    path = root / "results" / "report" / "plots" / f"{objective}_frontier.png"
    return path if path.is_file() else None


def version_words(root: Path, params: Params, objective: str, run_id: str) -> str:
    """A version's description in markdown, from the results at hand."""
    variant = params.promotion.variant
    procedure = params.objectives[objective].procedure
    reward = params.reward_spelling(objective, variant)
    lines = [f"`{variant}` of {objective}, trained on `{reward}`, for `{procedure}`."]
    numbers = _evaluated(root, objective).get(variant)
    if isinstance(numbers, dict):
        lines.append(policy_words(numbers, procedure))
    drawn = picture(root, objective)
    if drawn is not None:
        place = urlencode({"path": f"{PLOTS}/{drawn.name}", "run_uuid": run_id})
        lines.append(f"![Win rate against KL](get-artifact?{place})")
    return "\n\n".join(lines)


def _evaluated(root: Path, objective: str) -> dict[str, Any]:
    path = root / "results" / "evaluate" / objective / "metrics.json"
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return tree if isinstance(tree, dict) else {}


def describe_model(champions: Champions, versions: Sequence[ModelVersion]) -> None:
    """The model's description: its champion's, or else its newest version's."""
    if not versions:
        return
    reigning = champions.aliases().get(CHAMPION)
    chosen = next((v for v in versions if str(v.version) == reigning), versions[-1])
    title = "The champion" if reigning is not None else "No champion yet; the newest"
    text = f"{title} is version {chosen.version}: {chosen.description or ''}"
    patiently(lambda: champions.client.update_registered_model(champions.name, description=text))
