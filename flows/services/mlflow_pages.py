"""Addresses of MLflow's pages, as they are printed."""

from __future__ import annotations

import os

EXPERIMENT = "infalign"
VIEW = "?workflowType=machine_learning"  # without it MLflow shows evaluations of agents
SHARED = "infalign"  # the key of the view of the table of runs: flows.tracking.views


def experiment_name(of: str = "") -> str:
    """The experiment of this project's runs; `of` ends the name of those of something else."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT) + of


def table_page(server: str, experiment: str) -> str:
    """The address of the table of runs, with the columns of this project."""
    page = f"{server.rstrip('/')}/#/experiments/{experiment}/runs{VIEW}"
    return f"{page}&viewStateShareKey={SHARED}"


def first_page(server: str) -> str:
    """The table of runs of a server that is up; without any run yet, the server itself."""
    import httpx

    asked = {"experiment_name": experiment_name()}
    try:
        path = f"{server}/api/2.0/mlflow/experiments/get-by-name"
        found = httpx.get(path, params=asked, timeout=10.0).json()
        return table_page(server, str(found["experiment"]["experiment_id"]))
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return server
