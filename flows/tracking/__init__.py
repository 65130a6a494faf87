"""Evidence in MLflow: a run, its stages, their metrics."""
