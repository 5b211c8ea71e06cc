"""The page of a `Playground`: the robot in 3-D, knobs for its task, and what the agent makes of it, in a browser."""

from __future__ import annotations

import time
from collections.abc import Callable
from html import escape
from queue import SimpleQueue
from typing import Any, TypeAlias

import numpy as np
import viser
from viser import uplot

from metarl.core.threads import torch_threads
from metarl.env_runner.task_env import Array
from metarl.experiments.play import Playground
from metarl.experiments.play_scene import Scene
from metarl.tasks.knobs import Knob, Slider

FRAME, REPORT = 1 / 30, 1 / 5
"""Seconds between two pictures, and between two changes of the numbers and curves."""

IDLE = 0.05
"""Seconds between two looks for a browser, while none is open: nothing is simulated then."""

CURVE_POINTS = 250
"""No more are sent to a browser."""

FEW_EPISODES = 10
"""The curve of returns is drawn for at least so many."""

LEFT, RIGHT = 320, 300
"""Widths of the panels in pixels."""

BLUE, ORANGE, PAPER = np.array([44, 94, 173]), np.array([217, 108, 20]), np.array([247, 247, 245])
BLUE_HEX, GOLD_HEX = "#2c5ead", "#e09a00"

PICTURE_PIXELS = 280
"""How wide the picture of the memory is, at most a cell less."""

Curves: TypeAlias = tuple[Array, ...]


class Page:
    """Everything that is on the page. Browsers ask in threads of their own; what they ask for is done between steps."""

    def __init__(self, server: viser.ViserServer, playground: Playground, title: str) -> None:
        self.server, self.playground = server, playground
        self._asked: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._scene = Scene(server, playground.family, playground.task)
        server.gui.reset()  # until now it said that it loads
        server.gui.main_panel.dock_right()
        server.gui.main_panel.set_width(RIGHT)
        self._add_controls()
        panel = server.gui.add_panel()
        panel.dock_left()
        panel.set_width(LEFT)
        with panel.add_tab("What happens"):
            self._add_reports(title)

    # --- what is on it ------------------------------------------------------------------------------------------------

    def _add_controls(self) -> None:
        gui, playground = self.server.gui, self.playground
        for name, knobs in (("Task", playground.task_knobs), ("Body and world", playground.world_knobs)):
            if knobs:
                with gui.add_folder(name):
                    for knob in knobs:
                        self._add_knob(knob)
        with gui.add_folder("Agent"):
            self._forget = gui.add_button("Forget", hint="Begin a new trial: what it found out of this task is gone")
            self._freeze = gui.add_button("Freeze", hint="What it knows stands still: it no longer adapts")
            self._adapt = gui.add_button("Adapt", hint="Adapt again; a gradient agent takes a step now")
        self._forget.on_click(lambda _: self._asked.put(playground.forget))
        self._freeze.on_click(lambda _: self._asked.put(playground.freeze))
        self._adapt.on_click(lambda _: self._asked.put(playground.adapt))
        with gui.add_folder("Time"):
            self._pause = gui.add_checkbox("pause", initial_value=False)
            self._pace = gui.add_slider("speed ×", min=0.1, max=4.0, step=0.1, initial_value=1.0)

    def _add_knob(self, knob: Knob) -> None:
        gui, task = self.server.gui, self.playground.task
        handle: Any
        if isinstance(knob, Slider):
            handle = gui.add_slider(
                knob.label, min=knob.low, max=knob.high, step=knob.step, initial_value=knob.read(task)
            )
        else:
            handle = gui.add_dropdown(knob.label, tuple(knob.options), initial_value=knob.read(task))
        # Read as it is done: threads of a browser may ask in another order than the slider was moved in.
        handle.on_update(lambda _: self._asked.put(lambda: self._turn(knob, handle.value)))

    def _turn(self, knob: Knob, value: float | str) -> None:
        self.playground.turn(knob, value)
        self._scene.change(self.playground.task)

    def _add_reports(self, title: str) -> None:
        gui, gauge = self.server.gui, self.playground.gauge()
        gui.add_html(f'<div style="padding:.8em 1em 0;font-weight:700">{escape(title)}</div>')
        self._numbers = gui.add_html(numbers(self.playground, self._pause.value))
        self._speed = self._add_curves(gauge.label, 140, self._speeds(), dots=False)
        self._returns = self._add_curves("return by episode", 130, self._episodes(), dots=True)
        self._memory = gui.add_image(picture(self.playground.picture()), label=self._memory_title(), format="png")

    def _add_curves(self, title: str, height: int, data: Curves, dots: bool) -> viser.GuiUplotHandle:
        points = uplot.Series_Points(show=dots, size=6)
        return self.server.gui.add_uplot(
            data,
            (
                uplot.Series(),
                uplot.Series(stroke=BLUE_HEX, width=2, points=points),
                uplot.Series(stroke=GOLD_HEX, width=2, dash=(6, 4), points=points),
            )[: len(data)],
            title=title,
            height=height,
            scales={"x": uplot.Scale(time=False)},
            legend=uplot.Legend(show=False),
            cursor=uplot.Cursor(show=False),
        )

    def _speeds(self) -> Curves:
        """Seconds, what was achieved, and what was asked for, where that is a level."""
        gauge, dt = self.playground.gauge(), self.playground.dt
        curves = np.array(self.playground.gauges or [(gauge.values[-1], gauge.target)])
        every = -(-len(curves) // CURVE_POINTS)
        curves = np.concatenate([curves[:1], curves[::-1][::every][::-1]])
        seconds = dt * every * np.arange(1 - len(curves), 1)
        asked = () if self.playground.asked is None else (curves[:, 1].copy(),)
        return (seconds, curves[:, 0].copy(), *asked)

    def _episodes(self) -> Curves:
        """Episodes and their returns; those to come are not a number, where there are few."""
        returns = [each.reward for each in self.playground.finished]
        returns += [np.nan] * (FEW_EPISODES - len(returns))
        return (np.arange(1.0, len(returns) + 1), np.array(returns, dtype=np.float64))

    def _memory_title(self) -> str:
        if not self.playground.picture().size:
            return "this agent remembers nothing"
        return "what gradient steps changed" if self.playground.by_gradients else "what it remembers"

    # --- what happens -------------------------------------------------------------------------------------------------

    def do_what_was_asked(self) -> None:
        """Turn the knobs and push the buttons that browsers have turned and pushed since the last time."""
        while not self._asked.empty():
            self._asked.get()()

    def draw(self, between: float) -> None:
        """Show the robot; `between` 0 is its position before the last step, 1 that after it."""
        playground = self.playground
        qpos = (1.0 - between) * playground.previous + between * playground.qpos
        lag = (1.0 - between) * playground.dt * float(playground.task.params.get("velocity", 0.0))  # type: ignore[arg-type]
        self._scene.draw(qpos, playground.task, playground.pacer - lag)

    def report(self) -> None:
        """Bring numbers, curves and the picture of the memory up to date."""
        playground = self.playground
        self._numbers.content = numbers(playground, self._pause.value)
        self._freeze.disabled = playground.frozen
        self._adapt.disabled = not (playground.frozen or playground.by_gradients)
        self._speed.data = self._speeds()
        self._returns.data = self._episodes()
        self._memory.image = picture(playground.picture())

    @torch_threads(1)
    def run(self, stop: Callable[[], bool] = lambda: False) -> None:
        """Step and draw in real time, times the pace that is asked for; nothing happens while no browser is open."""
        last = reported = time.perf_counter()
        behind = 0.0
        while not stop():
            now = time.perf_counter()
            watched = bool(self.server.get_clients())
            behind += (now - last) * self._pace.value * (watched and not self._pause.value)
            last = now
            self.do_what_was_asked()
            while self.playground.waiting or (behind >= self.playground.dt and time.perf_counter() < now + FRAME):
                behind -= 0.0 if self.playground.waiting else self.playground.dt
                self.playground.step()
            behind = min(behind, self.playground.dt)  # what could not be done in time is left out, not caught up with
            if watched:
                self.draw(behind / self.playground.dt)
                if now - reported >= REPORT:
                    self.report()
                    reported = now
            time.sleep(max(0.0, now + (FRAME if watched else IDLE) - time.perf_counter()))


def numbers(playground: Playground, paused: bool) -> str:
    """What is asked for, what is achieved, and where the agent is in its trial, as HTML."""
    gauge = playground.gauge()
    state = "paused" if paused else "frozen" if playground.frozen else "adapting"
    colour = {"paused": "#888", "frozen": "#2c8fad", "adapting": "#2e8b57"}[state]
    quantity, _, unit = gauge.label.partition(", ")
    asked = playground.asked
    rows = {
        "achieved": (quantity, f"{gauge.values[-1]:.2f} {unit}"),
        "asked": ("asked for", "as much as it can" if asked is None else f"{asked:.2f} {unit}"),
        "place": ("trial · episode · step", f"{playground.trial} · {playground.episode + 1} · {playground.steps}"),
        "return": ("return so far", f"{playground.reward:.1f}"),
        "last": ("last episode", f"{playground.finished[-1].reward:.1f}" if playground.finished else "none yet"),
    }
    lines = "".join(
        f'<tr><td style="opacity:.65">{escape(label)}</td>'
        f'<td data-play="{name}" style="text-align:right;font-weight:600">{escape(value)}</td></tr>'
        for name, (label, value) in rows.items()
    )
    said = f'<div style="color:#b00">{escape(playground.said)}</div>' if playground.said else ""
    return (
        f'<div style="padding:.6em 1em;font-size:.9em"><span data-play="state" style="background:{colour};color:#fff;'
        f'border-radius:1em;padding:.1em .8em">{state}</span>'
        f'<table style="width:100%;margin-top:.5em;font-variant-numeric:tabular-nums">{lines}</table>{said}</div>'
    )


def picture(values: Array) -> Array:
    """Values [h, w] within [-1, 1] as pixels: blue below 0, orange above, paper at 0; cells are squares."""
    if not values.size:
        values = np.zeros((1, 8))
    values = values[..., None]
    pixels = PAPER + np.where(values < 0.0, -values * (BLUE - PAPER), values * (ORANGE - PAPER))
    cell = max(1, PICTURE_PIXELS // values.shape[1])
    shown: Array = pixels.astype(np.uint8).repeat(cell, 0).repeat(cell, 1)
    return shown
