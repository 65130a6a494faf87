"""The optimisation loop, and what makes it fit into memory and over processes."""
