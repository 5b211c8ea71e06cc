"""A process that draws MuJoCo states: `python -m metarl.experiments.offscreen FOLDER`, with MUJOCO_GL set.

It is a process of its own because MuJoCo reads MUJOCO_GL where it is imported, and because a broken graphics library
may abort or hang whoever uses it. It imports no more than it needs.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import mujoco  # type: ignore[import-untyped]
import numpy as np

MODEL_FILE, SCENE_FILE, FRAMES_FILE = "model.mjb", "scene.npz", "frames.npy"
TORSO = 1
"""The body that the camera follows: the first after the world."""
GLOW = 0.6
"""Light that markers give off, so that their colour is seen from all sides."""


def main(folder: Path) -> None:
    """Draw every state of scene.npz on model.mjb, both in `folder`, and write frames.npy: [F, height, width, 3] bytes.

    scene.npz has `qpos` [F, nq]; `height` and `width`; the camera's `azimuth`, `elevation`, `distance` and `lookat`
    [3], or [0] where it follows the torso; and markers that no contact feels, M of them: `kind` (mjtGeom), `size`
    [M, 3], `colour` [M, 4], `rotation` [M, 9] and `position` [F, M, 3].
    """
    model = mujoco.MjModel.from_binary_path(str(folder / MODEL_FILE))
    scene = dict(np.load(folder / SCENE_FILE))
    data = mujoco.MjData(model)
    camera = mujoco.MjvCamera()
    camera.azimuth, camera.elevation, camera.distance = (
        float(scene[name]) for name in ("azimuth", "elevation", "distance")
    )
    follows = not len(scene["lookat"])
    camera.lookat[:] = (0.0, 0.0, _height(model, data)) if follows else scene["lookat"]
    frames = []
    with mujoco.Renderer(model, height=int(scene["height"]), width=int(scene["width"])) as renderer:
        for index, qpos in enumerate(scene["qpos"]):
            data.qpos[:] = qpos
            mujoco.mj_forward(model, data)
            if follows:
                camera.lookat[:2] = data.xpos[TORSO, :2]
            renderer.update_scene(data, camera)
            _add_markers(renderer.scene, scene, index)
            frames.append(renderer.render())
    np.save(folder / FRAMES_FILE, np.array(frames))


def _height(model: Any, data: Any) -> float:
    """How high the camera looks, for all frames: the torso's height in the model's first state."""
    mujoco.mj_forward(model, data)
    return float(data.xpos[TORSO, 2])


def _add_markers(drawn: Any, scene: dict[str, Any], index: int) -> None:
    for marker, kind in enumerate(scene["kind"]):
        geom = drawn.geoms[drawn.ngeom]
        mujoco.mjv_initGeom(
            geom,
            int(kind),
            scene["size"][marker],
            scene["position"][index, marker],
            scene["rotation"][marker],
            scene["colour"][marker],
        )
        geom.emission = GLOW
        drawn.ngeom += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]))
