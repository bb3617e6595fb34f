"""Readers: weights, config and tokenizer in, one in-memory form out."""
