"""`metarl play RUN`: an agent in the browser, with its task in your hands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from metarl.core.errors import missing_extra
from metarl.experiments.console import console
from metarl.experiments.flags import parse
from metarl.experiments.play import Playground, load_player


@dataclass(frozen=True)
class PlayConfig:
    """Play with an agent in the browser: change its task and its world while it runs, and watch it adapt."""

    agent: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Folder of a run of a MuJoCo family, or the name of an agent that ships with the package."""
    task: int | None = None
    """Id of the task to begin in; none: the first held-out one."""
    seed: int = 0
    """Seed of the worlds."""
    host: str = "127.0.0.1"
    """Address to listen at; this machine alone, unless told otherwise."""
    port: int = 8080
    """Port to listen at, or the next one that is free."""


def main(arguments: list[str]) -> int:
    parsed = parse(PlayConfig, arguments, "play")
    try:
        from metarl.experiments.play_page import serve
    except ModuleNotFoundError as error:
        raise missing_extra(str(error.name), "play") from error
    run, agent = load_player(parsed.agent)
    playground = Playground(agent, run.distribution, parsed.task, parsed.seed)
    title = " · ".join((run.distribution.name, run.config.algo, run.memory.method))
    try:
        serve(
            playground,
            title,
            parsed.host,
            parsed.port,
            lambda address: console.print(f"{title}: open {address} in a browser; Ctrl-C ends it"),
        )
    except KeyboardInterrupt:
        return 0
    return 0
