"""Registered models in MLflow: one model an objective, one version a result of evaluate.

A version is made in one piece: its tags are written with it, and the files before it. Registering
the same result again finds the same version. Everything is read and written by explicit ids.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from flows.children.processes import redact
from flows.project import versions
from flows.registry.champions import Champions, patiently
from flows.registry.describing import PLOTS, describe_model, picture, version_words
from flows.registry.packaging import save
from flows.services.mlflow_store import said
from flows.tracking.naming import run_name
from flows.tracking.tracker import connect, default_uri
from flows.tracking.views import REGISTRY
from infalign.deployment.evidence import Evidence, read_evidence
from infalign.deployment.gate import Verdict, judge_candidate
from infalign.errors import InputError
from infalign.files.stages import STAGES
from infalign.settings.params import Params

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

EVALUATION = "infalign.evaluation"  # the tag by which a result is found again
WORKSPACE = "infalign.workspace"  # the run's tag: where it was made
GATE = "infalign.gate"  # the tag with the last verdict


class Unreachable(InputError):
    """MLflow does not answer: later it may."""


def model_name(objective: str) -> str:
    """The registered model of an objective."""
    return f"infalign-{objective}"


@dataclass(frozen=True)
class Registry:
    """MLflow as a registry, seen from a project."""

    root: Path
    client: MlflowClient
    experiment: str

    def champions(self, objective: str) -> Champions:
        """The champions of an objective's model."""
        locks = self.root / ".infalign" / "locks"
        return Champions(self.client, model_name(objective), self.experiment, locks)

    def versions(self, objective: str) -> list[ModelVersion]:
        """Every version of an objective's model, the oldest first."""
        query = f"name = '{model_name(objective)}'"
        found: list[ModelVersion] = []
        token: str | None = None
        while True:
            page = self.client.search_model_versions(query, max_results=200, page_token=token)
            found += page
            token = page.token
            if not token:
                return sorted(found, key=lambda version: int(version.version))

    def version(self, objective: str, number: str) -> ModelVersion:
        """One version, or one sentence."""
        for version in self.versions(objective):
            if str(version.version) == number:
                return version
        raise InputError(
            f"{model_name(objective)} has no version {number!r}: `infalign versions` shows them."
        )

    @contextlib.contextmanager
    def evidence(self, version: ModelVersion) -> Iterator[Path]:
        """The evidence that is kept with a version, as a folder."""
        from mlflow.artifacts import download_artifacts

        place = self.client.get_model_version_download_uri(version.name, version.version)
        with tempfile.TemporaryDirectory() as folder:
            try:
                path = download_artifacts(
                    artifact_uri=f"{place.rstrip('/')}/artifacts/evidence",
                    dst_path=folder,
                    tracking_uri=self.client.tracking_uri,
                )
            except Exception as error:
                raise InputError(
                    f"the evidence of version {version.version} of {version.name} cannot be read "
                    f"({said(error, 200)}): its artifacts must be where they were stored."
                ) from None
            yield Path(path)

    def package(self, objective: str, number: str, folder: Path) -> Path:
        """The package of a version; copied into a folder, unless it is on this machine."""
        from mlflow.artifacts import download_artifacts

        name = model_name(objective)
        place = self.client.get_model_version_download_uri(name, number)
        uri = f"{place.rstrip('/')}/artifacts"
        local = Path(uri.removeprefix("file://"))
        if local.is_dir():
            return local
        try:
            found = download_artifacts(
                artifact_uri=uri, dst_path=str(folder), tracking_uri=self.client.tracking_uri
            )
        except Exception as error:
            raise InputError(
                f"the files of version {number} of {name} cannot be read "
                f"({said(error, 200)}): its artifacts must be where they were stored."
            ) from None
        return Path(found)


def open_registry(root: Path) -> Registry:
    """The registry of MLFLOW_TRACKING_URI, or the project's own."""
    uri = default_uri(root)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        client, experiment = connect(root, uri, REGISTRY)
    except InputError:
        raise
    except Exception as error:
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise Unreachable(
            f"MLflow at {redact(uri)} does not answer ({redact(reason)}): start it, or set "
            "MLFLOW_TRACKING_URI."
        ) from None
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    return Registry(root, client, experiment)


def result_digest(root: Path, params: Params, objective: str) -> str:
    """One name for what is to be deployed, by DVC's hash of what evaluate found, and how it is."""
    entry = versions.lock_entries(root).get(f"evaluate@{objective}")
    outputs = [out.get("md5") for out in (entry or {}).get("outs", [])]
    if not outputs or None in outputs:
        raise InputError(
            f"dvc.lock has no result of evaluate@{objective}: run `infalign run` first."
        )
    how = [params.promotion.temperature] if params.promotion.temperature != 1.0 else []
    named = [objective, params.promotion.variant, outputs, *how]
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()[:32]


def find(registry: Registry, objective: str, digest: str) -> ModelVersion | None:
    """The version of a result, the first one where there are several."""
    found = [v for v in registry.versions(objective) if v.tags.get(EVALUATION) == digest]
    return found[0] if found else None


def register(
    registry: Registry,
    params: Params,
    objective: str,
    folder: Path,
    parent: str | None = None,
) -> ModelVersion:
    """The version of the packaged result: found, or made.

    Args:
        folder: the package.
        parent: the MLflow run of the pipeline run, if there is one.
    """
    digest = result_digest(registry.root, params, objective)
    champions = registry.champions(objective)
    champions.ensure()
    found = read_evidence(folder / "evidence")
    tags = version_tags(registry.root, params, objective, found, digest)
    champions.locks.mkdir(parents=True, exist_ok=True)
    with FileLock(champions.locks / f"register-{objective}.lock"):
        version = find(registry, objective, digest)
        if version is None:
            version = _create(registry, params, objective, folder, tags, parent)
            describe_model(champions, registry.versions(objective))
        return adopt(registry, objective, version, tags)


def recall(registry: Registry, params: Params, objective: str) -> ModelVersion | None:
    """The version of what is in results/, made good; None if there is none yet."""
    digest = result_digest(registry.root, params, objective)
    version = find(registry, objective, digest)
    if version is None:
        return None
    with registry.evidence(version) as folder:
        found = read_evidence(folder)
    return adopt(
        registry, objective, version, version_tags(registry.root, params, objective, found, digest)
    )


def adopt(
    registry: Registry, objective: str, version: ModelVersion, tags: Mapping[str, str]
) -> ModelVersion:
    """Make good what may be missing of a version: tags, being the only one, being challenger."""
    for key, value in tags.items():
        if key not in version.tags:
            patiently(
                lambda key=key, value=value: registry.client.set_model_version_tag(  # type: ignore[misc]
                    version.name, version.version, key, value
                )
            )
    # Registered twice at the same moment: the first one counts.
    first = find(registry, objective, tags[EVALUATION])
    champions = registry.champions(objective)
    if first is not None and first.version != version.version:
        if str(version.version) not in champions.aliases().values():
            registry.client.delete_model_version(version.name, version.version)
        version = first
    champions.settle()
    champions.challenge(str(version.version))
    return registry.version(objective, str(version.version))


def version_tags(
    root: Path, params: Params, objective: str, evidence: Evidence, digest: str
) -> dict[str, str]:
    """Where a version comes from, and every number of it that the gate uses."""
    facts, state = evidence.facts, versions.git_state(root)
    lock = versions.lock_entries(root)
    inputs = {d["path"]: d.get("md5") for d in lock[f"evaluate@{objective}"].get("deps", [])}
    tree = json.dumps(params.model_dump(mode="json"), sort_keys=True)
    tags = {
        EVALUATION: digest,
        "infalign.objective": objective,
        "infalign.variant": facts.variant,
        "infalign.procedure": facts.procedure,
        "infalign.commit": state["commit"],
        "infalign.dirty": state["dirty"],
        "infalign.dvc_lock": hashlib.sha256((root / "dvc.lock").read_bytes()).hexdigest(),
        "infalign.params": hashlib.sha256(tree.encode()).hexdigest(),
        "infalign.data": str(inputs.get("results/prepare") or facts.data),
        "infalign.data_sha256": facts.data,
        "infalign.judge_sha256": facts.judge,
        "infalign.reference_sha256": facts.reference,
    }
    for rule in judge_candidate(evidence, None, params.promotion).rules:
        if rule.number is not None:
            tags[f"infalign.number.{rule.name}"] = f"{rule.number:.6g}"
    return {key: redact(value) for key, value in tags.items()}


def _create(
    registry: Registry,
    params: Params,
    objective: str,
    folder: Path,
    tags: Mapping[str, str],
    parent: str | None,
) -> ModelVersion:
    """Upload the model as a run's, then make the version with all of its tags at once."""
    client = registry.client
    _discard_unfinished(registry, tags[EVALUATION])
    marks = {"infalign.stage": "register", "infalign.objective": objective}
    marks["infalign.instance"] = f"register@{objective}"
    marks[WORKSPACE] = _workspace(registry.root)
    if parent:
        marks["infalign.run"] = parent
    policy = STAGES["align"].instance(objective, params.promotion.variant)
    name = f"register {run_name(policy, params)}"
    run = client.create_run(registry.experiment, tags=marks, run_name=name)
    run_id, status = run.info.run_id, "FAILED"
    words = version_words(registry.root, params, objective, run_id)
    try:
        drawn = picture(registry.root, objective)
        if drawn is not None:
            client.log_artifact(run_id, str(drawn), PLOTS)
        for name in ("params.yaml", "dvc.lock", "dvc.yaml"):
            if (registry.root / name).is_file():
                client.log_artifact(run_id, str(registry.root / name))
        model = client.create_logged_model(
            registry.experiment,
            name=f"{objective}-{tags['infalign.variant']}",
            source_run_id=run_id,
            tags=dict(tags),
            params={"procedure": tags["infalign.procedure"]},
            model_type="infalign",
        )
        with tempfile.TemporaryDirectory() as temporary:
            local = Path(temporary) / "model"
            save(params, objective, folder, local)
            client.log_model_artifacts(model.model_id, str(local))
        client.finalize_logged_model(model.model_id, "READY")
        _log_numbers(client, run_id, model.model_id, tags)
        version = patiently(
            lambda: client.create_model_version(
                model_name(objective),
                model.artifact_location,
                run_id,
                tags=dict(tags),
                model_id=model.model_id,
                description=words,
            )
        )
        status = "FINISHED"
        return version
    finally:
        client.set_terminated(run_id, status)


def _log_numbers(client: MlflowClient, run_id: str, model_id: str, tags: Mapping[str, str]) -> None:
    """The numbers as metrics of the logged model, so that MLflow can rank by them."""
    from mlflow.entities import Metric

    now, prefix = int(time.time() * 1000), "infalign.number."
    metrics = [
        Metric(
            f"gate/{key.removeprefix(prefix)}",
            float(value),
            now,
            0,
            model_id=model_id,
            run_id=run_id,
        )
        for key, value in tags.items()
        if key.startswith(prefix)
    ]
    client.log_batch(run_id, metrics=metrics)


def _discard_unfinished(registry: Registry, digest: str) -> None:
    """Remove what a killed registration of this workspace, which is locked, left half uploaded."""
    found = registry.client.search_logged_models(
        [registry.experiment], filter_string=f"tags.`{EVALUATION}` = '{digest}'"
    )
    for model in found:
        run = registry.client.get_run(str(model.source_run_id))
        if run.data.tags.get(WORKSPACE) != _workspace(registry.root):
            continue
        registry.client.delete_logged_model(model.model_id)
        if run.info.status == "RUNNING":
            registry.client.set_terminated(run.info.run_id, "KILLED")


def _workspace(root: Path) -> str:
    """One name for this folder on this machine."""
    return hashlib.sha256(f"{socket.gethostname()}:{root.resolve()}".encode()).hexdigest()[:16]


def record_verdict(
    registry: Registry,
    version: ModelVersion,
    verdict: Verdict,
    champion: str | None,
    forced: bool = False,
) -> None:
    """Keep a verdict with the version (one tag) and with its run (a file).

    Args:
        champion: the version that it was judged against.
        forced: whether it is promoted all the same.
    """
    tree = verdict.as_tree() | {
        "champion": champion,
        "version": str(version.version),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "forced": forced and not verdict.passed,
    }
    text = json.dumps(tree, sort_keys=True)
    patiently(
        lambda: registry.client.set_model_version_tag(version.name, version.version, GATE, text)
    )
    if version.run_id:
        against = f"version-{champion}" if champion else "nothing"
        registry.client.log_dict(version.run_id, tree, f"gate/against-{against}.json")
