"""Ship the agent of a finished benchmark run with the package, in place of the one of that name.

python scripts/ship_agent.py runs/20260101-120000-point-goal-rl2-ssm-s0
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from metarl.core.errors import UsageError
from metarl.experiments.pretrained import ship
from metarl.experiments.shipped import WEIGHTS_FILE


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, help="folder of the run, measured with --benchmark-mode")
    parser.add_argument("--name", help="of the agent; without it, the family that it was trained on")
    arguments = parser.parse_args()
    try:
        folder = ship(arguments.run, arguments.name)
    except UsageError as error:
        print(f"ship_agent: {error}", file=sys.stderr)
        return 2
    print(f"wrote {folder} ({(folder / WEIGHTS_FILE).stat().st_size:,} bytes of weights)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
