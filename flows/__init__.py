"""Orchestration: Prefect flows, DVC versions, MLflow evidence."""
