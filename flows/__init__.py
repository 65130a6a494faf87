"""Orchestration: Prefect flows, DVC versions, MLflow evidence."""

INTERRUPTED = 130  # the exit status after Ctrl-C
