"""Who draws responses: the sampler of lm/, or servers beside this program."""
