"""An agent before and after it has adapted, side by side and in step: `before_after.gif`, and `metarl video`."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import imageio.v3 as iio
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from metarl.core.errors import UsageError, missing_extra
from metarl.core.task import Task, TaskValue
from metarl.env_runner.mujoco_batch import CHANGE_AT, MujocoBatch
from metarl.env_runner.recording import Episode, Recorder
from metarl.experiments.files import atomic_write
from metarl.experiments.plots import COLOURS, GREY, INK
from metarl.experiments.scenes import Gauge, Scene, draw_scenes, explanation, gauge, step_seconds
from metarl.tasks.drift import NONE

FORMATS = (".gif", ".mp4")
MAX_PANELS = 4

PICTURE = (320, 232)
"""Width and height of one picture, in pixels."""
GAP, TITLE, HEADER, GAUGE, LEGEND = 8, 26, 22, 58, 20
"""Heights of the other parts, and the space around all."""

MAX_FRAMES, MAX_STRIDE = 72, 4
"""Every step is shown, or every second, third or fourth; of an episode too long for that, the beginning."""
SECONDS, SLOWEST, FASTEST = 5.0, 8, 15
"""What a video aims to last without its end, and its limits in frames a second."""
HOLD_SECONDS = 1.5
"""The last picture stands for so long."""

PALETTE = 160
"""Colours of a GIF, the same in all frames, so that nothing flickers and unchanged parts cost nothing."""
LONG_VECTOR = 3
"""A parameter of more numbers is named, but not written out."""
PALETTE_FRAMES = 6
"""How many frames it is drawn from."""


@dataclass(frozen=True)
class Caption:
    """What a video says about itself.

    `title` names the agent. `kind` is "held-out task", or "test task" where the parameters were trained on as well.
    `after` says by shot what the agent had of the task before.
    """

    title: str
    kind: str
    after: Mapping[int, str]


@dataclass(frozen=True)
class Video:
    """Frames of one size, and how long each is shown, in seconds."""

    frames: list[Image.Image]
    seconds: list[float]


def median_task(recorder: Recorder, before: int, after: int) -> Task:
    """The task that stands in the middle by what it gained from shot `before` to shot `after`."""
    gains = {
        id: recorder.episodes[id, after].returns[-1] - recorder.episodes[id, before].returns[-1]
        for id in recorder.tasks
    }
    return recorder.tasks[median_gain(gains)]


def median_gain(gains: Mapping[int, float]) -> int:
    """The task id whose gain is the median of all (the upper one of two): neither the best nor the worst is shown."""
    ascending = sorted(gains, key=lambda id: gains[id])
    return ascending[len(ascending) // 2]


def check_panels(shots: Sequence[int]) -> None:
    """Refuse more shots than are drawn side by side."""
    if len(shots) > MAX_PANELS:
        raise UsageError(f"a video shows {MAX_PANELS} shots at most, got {len(shots)}")


def make_video(recorder: Recorder, task: Task, shots: Sequence[int], caption: Caption) -> Video:
    """The recorded episodes of one task after so many shots, a panel each, step by step.

    Raises:
        UsageError: too many shots, worlds without a picture or that failed to draw one, or no graphics library.
    """
    check_panels(shots)
    assert recorder.world is not None
    if recorder.undrawn:
        raise UsageError(recorder.undrawn)
    episodes = [recorder.episodes[task.id, shot] for shot in shots]
    longest = max(len(episode.rewards) for episode in episodes)
    steps, stride = shown_steps(longest)
    scenes = draw_scenes(recorder.world, task, episodes, steps, PICTURE)
    gauges = [gauge(recorder.world, task, episode) for episode in episodes]
    seconds = round(1 / min(max(len(steps) / SECONDS, SLOWEST), FASTEST), 2)  # a GIF counts hundredths
    legend = [explanation(recorder.world)]
    step = step_seconds(recorder.world)
    if step is not None:
        legend.append(f"{stride * step / seconds:.1f} × real time")
    if steps[-1] + stride < longest:
        legend.append(f"the first {steps[-1] + 1} of {longest} steps")
    words = in_words(task, isinstance(recorder.world, MujocoBatch))
    width = len(shots) * (PICTURE[0] + GAP) - GAP
    head = _lines([caption.title, f"{caption.kind} {task.id}: {words}"], " · ", _font(10, bold=True), width)
    foot = _lines([part for part in legend if part], "   ", _font(11), width)
    frames = [
        _compose(head, foot, shots, caption, episodes, scenes, gauges, steps, index) for index in range(len(steps) + 1)
    ]
    return Video(frames, [seconds] * len(steps) + [HOLD_SECONDS])


def shown_steps(longest: int) -> tuple[list[int], int]:
    """The steps that are shown of episodes of this length, and the stride between them."""
    stride = min(math.ceil(longest / MAX_FRAMES), MAX_STRIDE)
    return list(range(0, min(longest, MAX_FRAMES * stride), stride)), stride


def in_words(task: Task, robot: bool = True) -> str:
    """The task's parameters as a viewer wants to read them. Of a robot it is known what a direction means; elsewhere it
    may be anything."""
    short, own = [], []
    for name, value in task.params.items():
        if isinstance(value, tuple) and len(value) > LONG_VECTOR:
            own.append(_words(name))
        else:
            short.append(_parameter(name, value, robot))
    if own:
        short.append(f"own {', '.join(own)}")
    return ", ".join(short) or "the environment as it is"


def _words(name: str) -> str:
    return "places" if name == "rand_vec" else name.removesuffix("_scale").replace("_", " ")


def _parameter(name: str, value: TaskValue, robot: bool) -> str:
    words = _words(name)
    if isinstance(value, tuple):
        text = f"{words} ({', '.join(f'{number:.2f}' for number in value)})"
    elif isinstance(value, str | bool):
        text = str(value) if name in ("variant", "env") else f"{words} {value}"
    elif robot and name == "velocity":
        text = f"target speed {value:.2f} m/s"
    elif robot and name == "direction":
        text = "run forward" if value > 0 else "run backward"
    elif robot and name == "angle":
        text = f"run towards {math.degrees(value):.0f}°"
    elif robot and name == "dead_actuator":
        text = "no dead actuator" if value == NONE else f"dead actuator {value}"
    elif robot and name == CHANGE_AT:
        text = f"change at step {value}"
    elif name.endswith("_scale"):
        text = f"{words} × {value:.2f}"
    else:
        text = f"{words} {value:.2f}"
    return _minus(text)


def _minus(text: str) -> str:
    """With the minus sign in front of numbers."""
    return re.sub(r"-(?=\d)", "\N{MINUS SIGN}", text)


# --- one frame --------------------------------------------------------------------------------------------------------


def _compose(
    head: Sequence[str],
    foot: Sequence[str],
    shots: Sequence[int],
    caption: Caption,
    episodes: Sequence[Episode],
    scenes: Sequence[Scene],
    gauges: Sequence[Gauge],
    steps: Sequence[int],
    index: int,
) -> Image.Image:
    """Frame `index`; one beyond the last step is the end, with the returns of the whole episodes."""
    width, height = PICTURE
    head_height = TITLE * len(head)
    top = head_height + HEADER
    bottom = top + height + GAUGE
    sheet = Image.new("RGB", (len(shots) * (width + GAP) + GAP, bottom + LEGEND * len(foot)), "white")
    pen = ImageDraw.Draw(sheet)
    for number, line in enumerate(head):
        _fitting(pen, (GAP, TITLE * (number + 0.5)), line, sheet.width - 2 * GAP)
    for number, line in enumerate(foot):
        pen.text((GAP, bottom + LEGEND * (number + 0.5)), line, GREY, _font(11), anchor="lm")
    bounds = _bounds(gauges)
    for panel, (shot, episode, scene) in enumerate(zip(shots, episodes, scenes, strict=True)):
        left = GAP + panel * (width + GAP)
        last = len(episode.rewards) - 1
        at_end = index == len(steps)
        step = last if at_end else min(steps[index], last)
        colour = COLOURS[1 - min(panel, 1)]
        middle = head_height + HEADER / 2
        name = f"shot {shot}"
        pen.text((left, middle), name, colour, _font(14, bold=True), anchor="lm")
        offset = pen.textlength(name, _font(14, bold=True)) + 8
        pen.text((left + offset, middle), caption.after[shot], GREY, _font(11), anchor="lm")
        total = _minus(f"{'total' if at_end else 'return'} {episode.returns[step]:.1f}")
        pen.text((left + width, middle), total, INK, _font(14, bold=at_end), anchor="rm")
        picture = min(index, len(steps) - 1)
        sheet.paste(Image.fromarray(scene.pictures[picture]), (left, top))
        ended = episode.terminated and step == last
        note = f"ended after {last + 1} steps" if ended else scene.notes[picture]
        _note(pen, note, left, top)
        box = (left, top + height, left + width, bottom)
        _draw_gauge(pen, gauges[panel], bounds, box, step, max(steps[-1] + 1, 2), colour)
    return sheet


def _note(pen: ImageDraw.ImageDraw, note: str, left: float, top: float) -> None:
    """A line at the upper edge of a picture, at the side that its arrow points to."""
    if not note:
        return
    width = PICTURE[0]
    x, anchor = (left + width - 6, "ra") if note.endswith("▶") else (left + 6, "la")
    pen.text((x, top + 5), note, INK, _font(12, bold=True), anchor=anchor)


def _bounds(gauges: Sequence[Gauge]) -> tuple[float, float]:
    """Lowest and highest number on all gauges, with their targets and a margin."""
    numbers = np.concatenate([np.append(each.values, each.target) for each in gauges])
    low, high = float(numbers.min()), float(numbers.max())
    margin = 0.08 * ((high - low) or 1.0)
    return low - margin, high + margin


def _draw_gauge(
    pen: ImageDraw.ImageDraw,
    shown: Gauge,
    bounds: tuple[float, float],
    box: tuple[float, float, float, float],
    step: int,
    horizon: int,
    colour: str,
) -> None:
    """The quantity up to `step`, on an axis of `horizon` steps, with its target as a dashed line."""
    left, top, right, bottom = box
    top += 16
    low, high = bounds

    def at(when: float, value: float) -> tuple[float, float]:
        return left + when / (horizon - 1) * (right - left), bottom - (value - low) / (high - low) * (bottom - top)

    now = f"{shown.label}: {round(float(shown.values[step]), 2) + 0.0:.2f}"  # + 0.0: no "-0.00"
    wanted = f"  (target {shown.target:.2f})" if shown.target else ""
    pen.text((left, top - 8), _minus(now + wanted), INK, _font(11), anchor="lm")
    pen.rectangle((left, top, right, bottom), "#f6f6f6")
    level = at(0, shown.target)[1]
    for dash in range(round(left), round(right), 8):
        pen.line([(dash, level), (dash + 4, level)], GREY)
    until = min(step, horizon - 1)
    line = [at(when, value) for when, value in enumerate(shown.values[: until + 1].tolist())]
    pen.line([*line, line[-1]], colour, 2)
    x, y = line[-1]
    pen.ellipse((x - 3, y - 3, x + 3, y + 3), colour)


def _lines(parts: Sequence[str], between: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """The parts in order, as many in a line as fit into its width."""
    lines = [*parts[:1]]
    for part in parts[1:]:
        longer = lines[-1] + between + part
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(part)
    return lines


def _fitting(pen: ImageDraw.ImageDraw, place: tuple[float, float], text: str, width: float) -> None:
    """A bold line, smaller where it would be too long."""
    size = next((size for size in range(14, 8, -1) if pen.textlength(text, _font(size, bold=True)) <= width), 8)
    pen.text(place, text, INK, _font(size, bold=True), anchor="lm")


@cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib."""
    from matplotlib import font_manager

    properties = font_manager.FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal")
    return ImageFont.truetype(font_manager.findfont(properties), size)


# --- files ------------------------------------------------------------------------------------------------------------


def check_format(path: Path) -> None:
    """Refuse, before anything is drawn, a file that cannot be written."""
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"a video is a {' or a '.join(FORMATS)} file, got {path}")
    if path.suffix.lower() == ".mp4":
        try:
            import imageio_ffmpeg  # noqa: F401
        except ImportError:
            raise missing_extra("imageio-ffmpeg", "video") from None


def write_video(path: Path, video: Video) -> None:
    """Write a GIF that repeats for ever, or an MP4 (H.264)."""
    check_format(path)
    atomic_write(path, _gif(video) if path.suffix.lower() == ".gif" else _mp4(video))


def _gif(video: Video) -> bytes:
    """One palette for all frames, drawn from some that are evenly spread."""
    sample = video.frames[:: -(-len(video.frames) // PALETTE_FRAMES)]
    joined = Image.new("RGB", (sample[0].width, sum(frame.height for frame in sample)))
    for index, frame in enumerate(sample):
        joined.paste(frame, (0, index * frame.height))
    palette = joined.quantize(PALETTE, dither=Image.Dither.NONE)
    frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in video.frames]
    box = io.BytesIO()
    frames[0].save(
        box,
        "GIF",
        save_all=True,
        append_images=frames[1:],
        duration=[round(1000 * seconds) for seconds in video.seconds],
        loop=0,
    )
    return box.getvalue()


def _mp4(video: Video) -> bytes:
    """Equal times a frame: a frame that stands longer is repeated."""
    rate = 1 / video.seconds[0]
    frames = [
        np.asarray(frame)
        for frame, seconds in zip(video.frames, video.seconds, strict=True)
        for _ in range(max(1, round(seconds * rate)))
    ]
    encoded = iio.imwrite(
        "<bytes>", np.array(frames), extension=".mp4", plugin="FFMPEG", fps=rate, codec="libx264", macro_block_size=2
    )
    return bytes(encoded)
