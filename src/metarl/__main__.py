"""`python -m metarl` is `metarl`."""

from __future__ import annotations

import sys

from metarl.cli import main

sys.exit(main())
