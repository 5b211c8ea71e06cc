"""Plain drawings of the worlds that have no robot: a point and its goal, a pole on a cart, a pendulum, a bandit."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps

from metarl.core.task import Task
from metarl.env_runner.classic_worlds import CARTPOLE_DEFAULTS, MAX_POSITION, PENDULUM_DEFAULTS
from metarl.env_runner.toy_worlds import GOAL_RADIUS
from metarl.experiments.graphics import Pixels

FINER = 2
"""Drawn so many times larger than shown: smooth edges."""

PAPER, INK, FAINT, BODY, GOAL = "#f6f6f6", "#333333", "#c8c8c8", "#0072B2", "#009E73"


class _Sheet:
    """A sheet of `size` = (width, height) pixels whose centre is `centre`, and which shows `reach` on all sides."""

    def __init__(self, size: tuple[int, int], reach: float, centre: tuple[float, float] = (0.0, 0.0)) -> None:
        self.size = size
        self.image = Image.new("RGB", (size[0] * FINER, size[1] * FINER), PAPER)
        self.pen = ImageDraw.Draw(self.image)
        self.scale = min(self.image.size) / 2 / reach
        self.centre = centre

    def at(self, x: float, y: float) -> tuple[float, float]:
        width, height = self.image.size
        return width / 2 + (x - self.centre[0]) * self.scale, height / 2 - (y - self.centre[1]) * self.scale

    def line(self, points: list[tuple[float, float]], colour: str, width: float = 1.0) -> None:
        self.pen.line([self.at(*point) for point in points], colour, round(width * FINER), "curve")

    def disc(self, x: float, y: float, radius: float, colour: str) -> None:
        self.pen.circle(self.at(x, y), radius * self.scale, colour)

    def box(self, x: float, y: float, half_width: float, half_height: float, colour: str) -> None:
        left, top = self.at(x - half_width, y + half_height)
        right, bottom = self.at(x + half_width, y - half_height)
        self.pen.rectangle((left, top, right, bottom), colour)

    def pixels(self) -> Pixels:
        return np.asarray(self.image.resize(self.size, Image.Resampling.LANCZOS))


def point(task: Task, states: NDArray[np.floating], reach: float, size: tuple[int, int]) -> Pixels:
    """[F, height, width, 3]: the way so far from the origin, and the goal; positions are states[:, :2]."""
    goal = np.array(task["goal"])
    reach = 1.1 * max(reach, float(np.abs(goal).max()) + GOAL_RADIUS)
    pictures = []
    way = [(float(x), float(y)) for x, y in states[:, :2]]
    for index, place in enumerate(way):
        sheet = _Sheet(size, reach)
        sheet.disc(float(goal[0]), float(goal[1]), GOAL_RADIUS, GOAL)
        sheet.disc(0.0, 0.0, 0.02 * reach, INK)
        sheet.line(way[: index + 1], BODY, 2.0)
        sheet.disc(place[0], place[1], 0.045 * reach, BODY)
        pictures.append(sheet.pixels())
    return np.array(pictures)


def bandit(task: Task, pulls: NDArray[np.integer], size: tuple[int, int]) -> Pixels:
    """[F, height, width, 3]: a column an arm, as high as it is likely to pay, and in it the share of pulls it got."""
    means = np.array(task["means"], dtype=float)
    reach = 0.55
    half = 0.8 * reach * size[0] / min(size) / len(means)
    pictures = []
    for counts in pulls.astype(float):
        sheet = _Sheet(size, reach, centre=(0.0, 0.5))
        for arm, (mean, share) in enumerate(zip(means, counts / max(1.0, counts.sum()), strict=True)):
            x = half * 1.2 * (2 * arm + 1 - len(means))
            sheet.box(x, mean / 2, half, mean / 2, GOAL if mean == means.max() else FAINT)
            sheet.box(x, share / 2, half / 2, share / 2, BODY)
        pictures.append(sheet.pixels())
    return np.array(pictures)


def cartpole(task: Task, states: NDArray[np.floating], size: tuple[int, int]) -> Pixels:
    """[F, height, width, 3]: cart and pole to scale; the track ends where the episode does."""
    length = 2 * float(np.asarray(task.params.get("length", CARTPOLE_DEFAULTS["length"])))
    reach = 1.1 * MAX_POSITION * min(size) / size[0]
    pictures = []
    for x, _, angle, _ in states[:, :4].astype(float):
        sheet = _Sheet(size, reach, centre=(0.0, 0.8))
        sheet.line([(-MAX_POSITION, 0.0), (MAX_POSITION, 0.0)], FAINT, 2.0)
        sheet.box(x, 0.0, 0.25, 0.13, INK)
        sheet.line([(x, 0.13), (x + length * np.sin(angle), 0.13 + length * np.cos(angle))], BODY, 5.0)
        pictures.append(sheet.pixels())
    return np.array(pictures)


def pendulum(task: Task, states: NDArray[np.floating], size: tuple[int, int]) -> Pixels:
    """[F, height, width, 3]: the rod to scale, and where it is to stand."""
    length = float(np.asarray(task.params.get("length", PENDULUM_DEFAULTS["length"])))
    pictures = []
    for cosine, sine in states[:, :2].astype(float):
        sheet = _Sheet(size, 1.5)
        sheet.line([(0.0, 0.0), (0.0, length)], FAINT, 3.0)
        sheet.line([(0.0, 0.0), (-length * sine, length * cosine)], BODY, 8.0)
        sheet.disc(0.0, 0.0, 0.07, INK)
        pictures.append(sheet.pixels())
    return np.array(pictures)


def own(pictures: list[bytes], size: tuple[int, int]) -> Pixels:
    """[F, height, width, 3]: what an environment drew of itself, fitted into the size."""
    images = [Image.open(io.BytesIO(picture)) for picture in pictures]
    return np.array([np.asarray(ImageOps.pad(image.convert("RGB"), size, color=PAPER)) for image in images])
