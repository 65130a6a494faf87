"""The project's folder: its settings, its data, its versions in DVC and git."""
