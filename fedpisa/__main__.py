"""Run the command ``fedpisa`` as ``python -m fedpisa``."""

from __future__ import annotations

import sys

from fedpisa.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
