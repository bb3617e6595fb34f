"""Beam search: several answers at once, the best of them kept."""
