"""A policy as deployed: its package, the gate before it, the watch after it."""
