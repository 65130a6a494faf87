"""Where rewards come from: a model trained here or elsewhere, a function, a server, a sum."""
