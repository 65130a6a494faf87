"""Stages: each reads files, composes theory, lm and data, and writes files."""
