"""Drawing MuJoCo worlds without a window: which graphics library works here, and pictures drawn by it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mujoco  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from metarl.core.errors import UsageError
from metarl.experiments.offscreen import FRAMES_FILE, MODEL_FILE, SCENE_FILE

Pixels = NDArray[np.uint8]

RENDERING_NAMES = {"egl": "EGL", "osmesa": "OSMesa", "cgl": "CGL", "wgl": "WGL"}
"""What MuJoCo takes in the variable MUJOCO_GL for rendering without a window, and how each is usually written."""

RENDERING_BACKENDS = {"linux": ("egl", "osmesa"), "darwin": ("cgl",), "win32": ("wgl",)}
"""In the order in which they are tried."""

PROBE_SECONDS = 10.0
"""A backend that has not drawn a frame by then counts as broken; a working one takes about one second."""

DRAWING_SECONDS = 300.0
"""All pictures of a video have to be drawn by then; about five seconds is usual."""

PROBE = """
import mujoco
model = mujoco.MjModel.from_xml_string("<mujoco/>")
with mujoco.Renderer(model, height=8, width=8) as renderer:
    renderer.update_scene(mujoco.MjData(model))
    renderer.render()
"""


@dataclass(frozen=True)
class Marker:
    """A shape that is drawn into every picture and touches nothing: an mjtGeom with the size that MuJoCo gives it."""

    kind: int
    size: tuple[float, float, float]
    colour: tuple[float, float, float, float]
    position: NDArray[np.float64]
    """[F, 3] in m."""
    rotation: NDArray[np.float64]
    """[3, 3]."""


@dataclass(frozen=True)
class Camera:
    """Where a world is seen from; MuJoCo's angles in degrees, distance in m."""

    azimuth: float
    elevation: float
    distance: float
    lookat: tuple[float, float, float] | None = None
    """What it looks at, in m; None: the torso, which it goes with."""


@contextmanager
def rendering_probes(backends: Iterable[str] | None = None) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """One process a backend that draws a frame: a broken graphics library may abort the process that tries it."""
    backends = RENDERING_BACKENDS.get(sys.platform, ()) if backends is None else backends
    with tempfile.TemporaryDirectory() as folder:
        probes = {
            backend: subprocess.Popen(
                [sys.executable, "-c", PROBE],
                cwd=folder,
                env={**os.environ, "MUJOCO_GL": backend},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for backend in backends
        }
        try:
            yield probes
        finally:
            for probe in probes.values():
                probe.kill()
                probe.wait()


def working(probes: Mapping[str, subprocess.Popen[bytes]]) -> Iterator[str]:
    """The backends whose probe draws its frame, in order; waits for each when it is asked for."""
    for backend, probe in probes.items():
        try:
            if probe.wait(timeout=PROBE_SECONDS) == 0:
                yield backend
        except subprocess.TimeoutExpired:
            continue


def rendering_advice() -> str:
    """What brings a rendering backend to this machine."""
    if sys.platform == "linux":
        return "on Debian and Ubuntu this brings EGL:  apt-get install libegl1 libopengl0 libgl1-mesa-dri"
    return "a session with a display is needed"


def find_backend() -> str:
    """The first backend that draws here; where MUJOCO_GL is set, that one or none.

    Raises:
        UsageError: none does; says how to get one.
    """
    wanted = os.environ.get("MUJOCO_GL")
    with rendering_probes((wanted,) if wanted else None) as probes:
        backend = next(working(probes), None)
    if backend is not None:
        return backend
    if wanted:
        raise UsageError(f"nothing can be drawn with MUJOCO_GL={wanted}: unset it, and what works here is found")
    names = " nor ".join(RENDERING_NAMES[name] for name in RENDERING_BACKENDS.get(sys.platform, ()))
    raise UsageError(f"nothing can be drawn without {names}, and none works here; {rendering_advice()}")


def draw_states(
    model: mujoco.MjModel,
    qpos: NDArray[np.float64],
    camera: Camera,
    markers: Sequence[Marker],
    size: tuple[int, int],
) -> Pixels:
    """Pictures [F, height, width, 3] of the positions qpos [F, nq].

    They are drawn by a process of its own (`metarl.experiments.offscreen`), so that a broken graphics library cannot
    take this one with it. The model is drawn as it is given.

    Args:
        size: (width, height).

    Raises:
        UsageError: no backend works here (with the line that brings one), or drawing failed or took too long.
    """
    backend = find_backend()
    package = Path(__file__).parents[2]
    path = os.pathsep.join(filter(None, (str(package), os.environ.get("PYTHONPATH"))))
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            mujoco.mj_saveModel(model, str(folder / MODEL_FILE))
            np.savez(
                folder / SCENE_FILE,
                qpos=qpos,
                width=size[0],
                height=size[1],
                azimuth=camera.azimuth,
                elevation=camera.elevation,
                distance=camera.distance,
                lookat=np.array(camera.lookat or (), dtype=np.float64),
                kind=np.array([marker.kind for marker in markers], dtype=np.int64),
                size=np.array([marker.size for marker in markers]).reshape(-1, 3),
                colour=np.array([marker.colour for marker in markers], dtype=np.float32).reshape(-1, 4),
                position=np.array([marker.position for marker in markers]).reshape(-1, len(qpos), 3).swapaxes(0, 1),
                rotation=np.array([marker.rotation.ravel() for marker in markers]).reshape(-1, 9),
            )
            done = subprocess.run(
                [sys.executable, "-m", "metarl.experiments.offscreen", name],
                cwd=name,
                env={**os.environ, "MUJOCO_GL": backend, "PYTHONPATH": path},
                capture_output=True,
                text=True,
                timeout=DRAWING_SECONDS,
                check=False,
            )
            if done.returncode != 0:
                reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
                raise UsageError(f"drawing with MUJOCO_GL={backend} failed: {reason}; metarl doctor shows what works")
            frames: Pixels = np.load(folder / FRAMES_FILE)
            return frames
    except subprocess.TimeoutExpired as error:
        raise UsageError(f"drawing with MUJOCO_GL={backend} took more than {DRAWING_SECONDS:.0f} s") from error
    except OSError as error:
        raise UsageError(f"drawing needs a temporary folder: {error}; free space there") from error
