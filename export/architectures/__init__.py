"""One file per model family, each written once against the op protocol."""
