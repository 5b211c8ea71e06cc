"""Draw the life of a trial, docs/images/trial.svg:  python scripts/draw_trial.py"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

ROUND, INNER, OUTER, PLAIN, INK = "#e8f0fb", "#fde9c9", "#dcefdc", "#f3f3f3", "#223044"
LABEL, SMALL = 10.5, 8.5


def box(axes: Axes, x: float, y: float, width: float, height: float, fill: str, text: str = "") -> None:
    """A rounded box with its lower left corner at (x, y) and text in the middle; its first line is the verb."""
    shape = FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=0.12", fc=fill, ec=INK, lw=1)
    axes.add_patch(shape)
    verb, _, rest = text.partition("\n")
    middle = y + height / 2
    if verb:
        axes.text(
            x + width / 2, middle + (0.2 if rest else 0), verb, ha="center", va="center", fontsize=LABEL, color=INK
        )
    if rest:
        axes.text(x + width / 2, middle - 0.24, rest, ha="center", va="center", fontsize=SMALL, color=INK)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], bend: float = 0.0) -> None:
    style = {
        "arrowstyle": "-|>",
        "color": INK,
        "lw": 1.1,
        "connectionstyle": f"arc3,rad={bend}",
        "shrinkA": 0,
        "shrinkB": 0,
    }
    axes.annotate("", xy=end, xytext=start, arrowprops=style)


def one_round(axes: Axes, x: float, title: str) -> None:
    """A round: act, step, observe, until its episodes are over."""
    box(axes, x, 1.5, 3.1, 3.4, ROUND)
    axes.text(x + 1.55, 4.6, title, ha="center", va="center", fontsize=LABEL, weight="bold", color=INK)
    for y, text in ((3.6, "act(observation)"), (2.7, "env.step(action)"), (1.8, "observe(...)")):
        box(axes, x + 0.2, y, 2.3, 0.6, "white", text)
    for above in (3.6, 2.7):
        arrow(axes, (x + 1.35, above), (x + 1.35, above - 0.3))
    arrow(axes, (x + 2.5, 2.1), (x + 2.5, 3.9), bend=0.6)
    axes.text(
        x + 1.55, 1.28, "until every row has had its episodes", ha="center", va="center", fontsize=SMALL, color=INK
    )


def draw(path: Path) -> None:
    """Write the picture."""
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "trial", "font.family": "sans-serif"})
    figure = plt.figure(figsize=(11.2, 3.65), facecolor="white")
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0), xlim=(0, 17.6), ylim=(0, 5.7))
    axes.axis("off")
    box(axes, 0.15, 2.6, 2.25, 1.2, PLAIN, "begin_trial\nforget the last task")
    one_round(axes, 2.95, "round 0: shot 0")
    box(axes, 6.6, 2.6, 1.75, 1.2, INNER, "adapt\ninner loop")
    one_round(axes, 8.9, "round 1: shot 1")
    axes.text(12.5, 3.2, "…", ha="center", va="center", fontsize=18, color=INK)
    box(axes, 13.0, 2.6, 1.75, 1.2, ROUND, "round K\nthe query")
    box(axes, 15.3, 2.6, 2.15, 1.2, OUTER, "update\nouter loop")
    for start, end in ((2.4, 2.95), (6.05, 6.6), (8.35, 8.9), (12.0, 12.3), (12.7, 13.0), (14.75, 15.3)):
        arrow(axes, (start, 3.2), (end, 3.2))
    axes.plot([15.03, 15.03], [1.3, 5.1], color=INK, lw=0.9, ls=(0, (4, 3)))
    axes.text(16.37, 2.25, "in training only", ha="center", va="center", fontsize=SMALL, color=INK)
    above = "one trial, in one task a row: training and evaluation run this same loop (run_trial)"
    axes.text(7.6, 5.35, above, ha="center", va="center", fontsize=LABEL, color=INK)
    below = "changes what the agent knows of this task: memory, parameters, posterior"
    axes.text(8.0, 0.55, below, ha="center", va="center", fontsize=SMALL, color=INK)
    axes.text(16.37, 0.75, "changes what\nall tasks share", ha="center", va="center", fontsize=SMALL, color=INK)
    axes.plot([0.2, 14.7], [0.85, 0.85], color=INK, lw=0.9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    default = Path(__file__).resolve().parents[1] / "docs" / "images" / "trial.svg"
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else default)
