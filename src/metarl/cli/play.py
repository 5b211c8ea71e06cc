"""`metarl play RUN`: an agent in the browser, with its task in your hands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from metarl.core.errors import missing_extra
from metarl.experiments.console import console
from metarl.experiments.flags import Checkpoint, parse
from metarl.experiments.shipped import check_player, shipped_folder

if TYPE_CHECKING:
    import viser


@dataclass(frozen=True)
class PlayConfig:
    """Play with an agent in the browser: change its task and its world while it runs, and watch it adapt."""

    agent: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Folder of a run of a MuJoCo family, or the name of an agent that ships with the package."""
    task: int | None = None
    """Id of the task to begin in; none: the first held-out one."""
    checkpoint: Checkpoint = "last"
    """Of a run: the last one, or the best by return on train tasks."""
    seed: int = 0
    """Seed of the worlds."""
    host: str = "127.0.0.1"
    """Address to listen at; this machine alone, unless told otherwise."""
    port: int = 8080
    """Port to listen at, or the next one that is free."""


def main(arguments: list[str]) -> int:
    """A browser needs seconds until it draws, and so do the imports of what acts: the page is served first."""
    parsed = parse(PlayConfig, arguments, "play")
    check_player(parsed.agent, parsed.checkpoint)
    try:
        from metarl.experiments.play_server import serving
    except ModuleNotFoundError as error:
        raise missing_extra(str(error.name), "play") from error
    try:
        with serving(parsed.host, parsed.port) as (server, address):
            from metarl.experiments.play_body import check_body

            folder = Path(parsed.agent) if Path(parsed.agent).is_dir() else shipped_folder(parsed.agent)
            check_body(folder / "config.json")
            console.print(f"{parsed.agent}: open {address} in a browser; Ctrl-C ends it")
            play(server, parsed)
    except KeyboardInterrupt:
        return 0
    return 0


def play(server: viser.ViserServer, config: PlayConfig) -> None:
    """Put the agent that was asked for into the page, and let it live."""
    try:
        from metarl.experiments.play_page import Page
    except ModuleNotFoundError as error:
        raise missing_extra(str(error.name), "play") from error
    from metarl.experiments.play import Playground, load_player

    run, agent = load_player(config.agent, config.checkpoint)
    playground = Playground(agent, run.distribution, config.task, config.seed)
    title = " · ".join((run.distribution.name, run.config.algo, run.memory.method))
    Page(server, playground, title).run()
