"""The server of a page to play on. It stands before the page does: a browser loads meanwhile."""

from __future__ import annotations

import io
import socket
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

import viser

from metarl.core.errors import UsageError


@contextmanager
def serving(host: str, port: int) -> Iterator[tuple[viser.ViserServer, str]]:
    """A server at http://host:port, or the next port that is free, and its address; its page says that it loads.

    Raises:
        UsageError: nothing can listen at this host, or there is no such port.
    """
    if not 0 <= port < 2**16:
        raise UsageError(f"--port is from 0 (any that is free) to {2**16 - 1}, got {port}")
    try:
        with socket.create_server((host, 0)):
            pass
    except OSError as error:
        reason = str(error.strerror).partition(" (")[0]
        raise UsageError(f"cannot listen at {host} ({reason}): --host 127.0.0.1 is this machine alone") from error
    quiet = io.StringIO()  # viser announces itself; one line of our own says it
    with redirect_stdout(quiet):
        server = viser.ViserServer(host, port, verbose=False)
    server.gui.configure_theme(show_logo=False, show_share_button=False, brand_color=(44, 94, 173))
    server.gui.set_panel_label("Controls")
    server.gui.add_markdown("The agent and its world are loading.")
    try:
        yield server, f"http://{host}:{server.get_port()}"
    finally:
        with redirect_stdout(quiet):
            server.stop()
