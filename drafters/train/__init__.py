"""Training: everything a small network learns before it is exported. Needs the extra `train`.

Nothing that runs models imports this package; the commands of `quickdraft train` do.
"""
