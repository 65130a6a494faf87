"""Language models on torch: loading, text to tokens, sampling, scoring, losses, optimisation."""
