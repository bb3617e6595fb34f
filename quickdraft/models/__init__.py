"""Model names: from an alias, repository, file or folder to a bundle in the cache."""
