"""`metarl list`: task families, and agents that ship with the package."""

from __future__ import annotations

from rich.table import Table

from metarl.experiments.console import console
from metarl.experiments.flags import NoFlags, parse
from metarl.experiments.shipped import list_pretrained, load_card
from metarl.tasks import describe_tasks


def main(arguments: list[str]) -> int:
    parse(NoFlags, arguments, "list")
    table = Table("family", "what differs between tasks", title="task families for --task-dist")
    for name, summary in describe_tasks().items():
        table.add_row(name, summary)
    console.print(table)
    agents = Table("agent", "algo", "method", "return by shot", title="trained agents for metarl.load_pretrained")
    for name in list_pretrained():
        card = load_card(name)
        returns = ", ".join(f"{shot}: {scores['return']['mean']:.1f}" for shot, scores in card["shots"].items())
        agents.add_row(name, card["algo"], card["method"], returns)
    console.print(agents)
    return 0
