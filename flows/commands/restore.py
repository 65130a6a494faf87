"""`infalign restore`: a registered version, a commit or a night, in a folder of its own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands import completing
from infalign.errors import InputError

if TYPE_CHECKING:
    from flows.project.restoring import Origin


def restore(
    version: Annotated[
        str | None, typer.Option(help="Number or alias of a registered version.")
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(help="The version's objective.", autocompletion=completing.objectives),
    ] = None,
    commit: Annotated[
        str | None, typer.Option(metavar="REV", help="A git commit, instead of a version.")
    ] = None,
    date: Annotated[
        str | None, typer.Option(metavar="DAY", help="The last night up to a day: 2026-11-28.")
    ] = None,
    into: Annotated[
        Path | None, typer.Option(help="A new folder; by default in .infalign/restored.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Run every stage again and compare the hashes.")
    ] = False,
) -> None:
    """Put a version's exact params, dvc.lock, results and data into a folder of their own."""
    from flows.project import nights, restoring, versions
    from infalign.settings.params import load_params

    root = Path.cwd()
    versions.check_project(root)
    if sum(given is not None for given in (version, commit, date)) != 1:
        raise InputError(
            "say what to restore: --version V, --commit REV or --date DAY, one of them."
        )
    if version is None and objective is not None:
        raise InputError("--objective chooses a version's model: it goes with --version.")
    if version is not None:
        exact = restoring.exact_commit(root, find_origin(root, version, objective))
    elif date is not None:
        branch = load_params(root / "params.yaml").schedule.branch
        exact = nights.of_date(root, branch, date)
    else:
        exact = restoring.resolve(root, commit or "")
    try:
        same = restoring.restore_and_say(root, exact, into, verify, typer.echo)
    except (versions.StageFailed, versions.StageKilled, versions.Busy) as error:
        print(f"infalign: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    if not same:
        raise typer.Exit(1)


def find_origin(root: Path, version: str, objective: str | None) -> Origin:
    """Where a registered version was made; without an objective, all of them must agree.

    Args:
        root: the project's folder.
        version: its number, or an alias such as `champion`.
        objective: whose model; None for any.
    """
    from infalign.settings.params import load_params

    names = [objective] if objective else load_params(root / "params.yaml").run.objectives
    found = [o for name in names if (o := _origin(root, version, name)) is not None]
    if not found:
        models = " or ".join(f"infalign-{name}" for name in names)
        raise InputError(f"the registry has no version {version!r} of {models}.")
    if len({(o.commit, o.dvc_lock) for o in found}) > 1:
        places = ", ".join(f"{o.name} of commit {o.commit[:12]}" for o in found)
        raise InputError(f"version {version} is {places}: choose with --objective.")
    return found[0]


def _origin(root: Path, version: str, objective: str) -> Origin | None:
    from mlflow.exceptions import MlflowException

    from flows.project.restoring import Origin
    from flows.tracking.tracker import connect, default_uri

    model = f"infalign-{objective}"
    try:
        client, _ = connect(root, default_uri(root))
        if version.isdecimal():
            tags = client.get_model_version(model, version).tags
        else:
            tags = client.get_model_version_by_alias(model, version).tags
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise InputError(f"MLflow's registry does not answer: {error}") from None
    missing = {"infalign.commit", "infalign.dirty", "infalign.dvc_lock"} - tags.keys()
    if missing:
        raise InputError(f"version {version} of {model} has no tag {min(missing)}: register again.")
    return Origin(
        f"{model} {version}",
        tags["infalign.commit"],
        tags["infalign.dirty"] == "true",
        tags["infalign.dvc_lock"],
        tags.get("infalign.params", ""),
    )
