"""Learn to fit a sine curve from a few points by one gradient step: MAML and Meta-SGD beside plain pretraining.

    python examples/maml_sinusoid.py                                      # under two minutes on two cores
    python examples/maml_sinusoid.py --shots 10 --frequencies 0.8 1.2     # the tasks of the published figures

A task is a curve y = A sin(ω x + p), and K of its points, the shots, are all that is given of it. MAML learns weights
from which one gradient step on these points fits the whole curve (Finn et al. 2017, arXiv 1703.03400); Meta-SGD learns
the step's rates too (Li et al. 2017, 1707.09835). Pretraining learns to fit all curves at once, and then takes the same
step: it only ever knows the average curve.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from metarl.meta_rl.meta_maml import MetaMAML

TEST_TASKS, TEST_POINTS = 1000, 100
TASKS, QUERY_POINTS = 50, 10  # of one meta-update
OUTER_LR = 1e-2  # decays to 0
PUBLISHED = {  # mean squared error after one step; Li et al. 2017, table 1, meta-trained with as many shots
    ("MAML", 5): "1.13 ± 0.18",
    ("MAML", 10): "0.77 ± 0.11",
    ("Meta-SGD", 5): "0.90 ± 0.16",
    ("Meta-SGD", 10): "0.53 ± 0.09",
}


def sample_tasks(
    number: int, shots: int, queries: int, frequencies: tuple[float, float], generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Support x and y [number, shots, 1], query x and y [number, queries, 1] of so many curves."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    amplitude, phase = uniform(0.1, 5, number, 1, 1), uniform(0, math.pi, number, 1, 1)
    x = uniform(-5, 5, number, shots + queries, 1)
    y = amplitude * torch.sin(uniform(*frequencies, number, 1, 1) * x + phase)
    return x[:, :shots], y[:, :shots], x[:, shots:], y[:, shots:]


def make_learners() -> dict[str, MetaMAML]:
    """Three times the same network and one inner step; what differs is what is learned before."""

    def network() -> nn.Module:
        return nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))

    return {
        "pretrained": MetaMAML(network(), inner_lr=0.01, outer_lr=OUTER_LR),
        "MAML": MetaMAML(network(), inner_lr=0.01, outer_lr=OUTER_LR),
        "Meta-SGD": MetaMAML(network(), inner_lr=0.01, outer_lr=OUTER_LR, learn_rates=True),
    }


def train(
    name: str, learner: MetaMAML, updates: int, shots: int, frequencies: tuple[float, float], generator: torch.Generator
) -> None:
    """So many updates; the pretrained network fits what the others fit after their inner step, without that step."""
    for update in range(updates):
        for group in learner.optimizer.param_groups:
            group["lr"] = OUTER_LR * (1 + math.cos(math.pi * update / updates)) / 2
        tasks = sample_tasks(TASKS, shots, QUERY_POINTS, frequencies, generator)
        if name == "pretrained":
            learner.optimizer.zero_grad()
            mse_loss(learner.model(torch.cat(tasks[::2], 1)), torch.cat(tasks[1::2], 1)).backward()
            learner.optimizer.step()
        else:
            learner.meta_update(tasks)


@torch.no_grad()
def errors(learner: MetaMAML, tasks: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The mean squared error [tasks] on the query points, before and after the step on the support points."""
    support_x, support_y, query_x, query_y = tasks
    before = learner.model(query_x)
    after = learner.forward_tasks(query_x, learner.adapt_tasks(support_x, support_y))
    return (before - query_y).square().mean((1, 2)), (after - query_y).square().mean((1, 2))


def with_interval(values: Tensor) -> str:
    """Mean and half of its 95 % confidence interval."""
    return f"{values.mean():.2f} ± {1.96 * values.std() / math.sqrt(len(values)):.2f}"


@torch.no_grad()
def draw(learners: dict[str, MetaMAML], axes: Sequence[Axes], shots: int) -> None:
    """One curve: the points that are given, and the fits before and after the step on them."""
    x = torch.linspace(-5, 5, 200)[:, None]
    given = torch.linspace(-4.5, 0.5, shots)[:, None]  # one side only: the other has to be known from other tasks
    for axis, (name, learner) in zip(axes, learners.items(), strict=True):
        adapted = learner.adapt_task(given, 3 * torch.sin(given + 1))
        axis.plot(x, 3 * torch.sin(x + 1), "0.6", label="task")
        axis.plot(x, learner.model(x), "C0--", label="before")
        axis.plot(x, learner.functional_forward(x, adapted), "C1", label="after one step")
        axis.plot(given, 3 * torch.sin(given + 1), "k^", label="given points")
        axis.set_title(f"{name}, {shots} shots")


def main() -> None:
    parser = argparse.ArgumentParser(description="MAML and Meta-SGD on sine curves")
    parser.add_argument("--shots", type=int, nargs="+", default=[5, 10], help="points that are given of a curve")
    parser.add_argument("--frequencies", type=float, nargs=2, default=[1, 1], help="lowest and highest ω")
    parser.add_argument("--updates", type=int, default=2500, help="meta-updates of every method")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/maml_sinusoid.png"), help="where the figure goes")
    flags = parser.parse_args()
    torch.set_num_threads(1)  # matrices are small here: more threads would only wait for each other
    frequencies = (flags.frequencies[0], flags.frequencies[1])
    table = Table("shots", "method", "MSE before", "MSE after one step", "published")
    figure = Figure(figsize=(12, 3 * len(flags.shots)), layout="constrained")
    axes = figure.subplots(len(flags.shots), 3, squeeze=False, sharex=True, sharey=True)
    for row, shots in enumerate(flags.shots):
        torch.manual_seed(flags.seed)  # the networks' initial weights
        learners = make_learners()
        test_tasks = sample_tasks(TEST_TASKS, shots, TEST_POINTS, frequencies, torch.Generator().manual_seed(12345))
        for name, learner in learners.items():
            train(name, learner, flags.updates, shots, frequencies, torch.Generator().manual_seed(flags.seed))
            before, after = errors(learner, test_tasks)
            published = PUBLISHED.get((name, shots), "")
            table.add_row(str(shots), name, with_interval(before), with_interval(after), published)
        draw(learners, axes[row], shots)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(flags.out, dpi=120)
    Console().print(table)
    print(f"Mean squared errors with 95 % confidence intervals over {TEST_TASKS:,} test tasks.")
    print("Published: Li et al. 2017, table 1, where curves differ in frequency too: --frequencies 0.8 1.2.")
    print(f"figure: {flags.out}")


if __name__ == "__main__":
    main()
