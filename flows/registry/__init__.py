"""Registered models in MLflow: versions, champions, promotion."""
