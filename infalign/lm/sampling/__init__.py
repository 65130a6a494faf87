"""Responses drawn from a model, each by counters of its own."""
