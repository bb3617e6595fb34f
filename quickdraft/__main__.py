"""`python -m quickdraft` is the command line too."""

from __future__ import annotations

import sys

from quickdraft.cli import main

if __name__ == "__main__":
    sys.exit(main())
