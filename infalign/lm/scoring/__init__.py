"""Log-probabilities, divergences and rewards of given responses."""
