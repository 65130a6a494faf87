"""Child processes of a run, and locks."""
