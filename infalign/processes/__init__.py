"""One stage, in one process or several."""
