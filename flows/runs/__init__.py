"""Prefect: the flows, their tasks and their deployments."""
