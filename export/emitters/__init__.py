"""Implementations of the op protocol: one per target format."""
