"""What a policy or a reward model learns from: CTRL, its goals, its baselines."""
