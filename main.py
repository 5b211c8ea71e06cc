"""The command line from a checkout: `python main.py ...` is `metarl run ...`."""

from __future__ import annotations

import sys

from metarl.cli import main

if __name__ == "__main__":
    sys.exit(main())
