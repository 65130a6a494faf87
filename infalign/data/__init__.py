"""Preference data: the formats it comes in, the built-in corpus, the tokenizer."""
