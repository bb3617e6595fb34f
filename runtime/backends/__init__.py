"""Backends: a manifest in, logits for a tree of tokens out."""
