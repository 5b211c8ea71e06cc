"""The robot of a `Playground` in 3-D, as a browser shows it: its body, what the task asks for, and what is broken."""

from __future__ import annotations

import math
from typing import Any

import mujoco  # type: ignore[import-untyped]
import numpy as np
import trimesh
import viser
from mjviser import ViserMujocoScene
from numpy.typing import NDArray

from metarl.core.task import Task
from metarl.env_runner.mujoco_family import MujocoFamily, changed_fields, template_model
from metarl.experiments.graphics import Camera, Marker
from metarl.experiments.scenes import OBLIQUE_VIEW, SIDE_VIEW, markers
from metarl.tasks.drift import NONE

BODY = (0.26, 0.42, 0.66, 1.0)
DEAD, HEAVY, LIGHT = (0.80, 0.16, 0.16, 1.0), (0.10, 0.13, 0.20, 1.0), (0.72, 0.82, 0.95, 1.0)
"""Colours of the body, of a limb whose joint is dead, and of one that is heavier or lighter than it was."""

SKY = np.array([150.0, 186.0, 222.0])

SUN, SUN_LIGHT, SKY_LIGHT = (2.0, -6.0, 7.0), 2.5, 3.0
"""Where the sun stands, and how bright it and the sky are."""

FURTHER = 1.3
"""Times the distance of the films' cameras: panels at both sides leave a picture that is no wider than high."""

FIELD_OF_VIEW = math.radians(45.0)
"""Vertical; what MuJoCo's own camera has."""


class Scene:
    """A robot that stays in the middle of the picture, while the ground passes by."""

    def __init__(self, server: viser.ViserServer, family: MujocoFamily, task: Task) -> None:
        self._server, self._family = server, family
        self._model = painted(family, task)
        self._data = mujoco.MjData(self._model)
        self._robot = ViserMujocoScene(server, self._model, num_envs=1)
        self._robot.camera_tracking_enabled = False  # it would hold the torso's height too, and the ground would bounce
        self._marks = [
            _add_marker(server, f"/task/{number}", marker)
            for number, marker in enumerate(self._markers(task, np.zeros((1, 3)), 0.0))
        ]
        _light(server)
        server.scene.set_background_image(_sky())
        _look(server, SIDE_VIEW if family.torso_axes == 1 else OBLIQUE_VIEW)

    def change(self, task: Task) -> None:
        """Show the body that the task has."""
        model = painted(self._family, task)
        changed = changed_fields(self._model, model)
        for name in changed:
            if name.startswith(("geom_", "body_", "jnt_", "qpos0")):
                getattr(self._model, name)[...] = changed[name]
        if any(name.startswith("geom_") for name in changed):
            self._robot.rebuild_visual_handles()

    def draw(self, qpos: NDArray[np.float64], task: Task, pacer: float) -> None:
        """Show the robot at qpos [nq]; `pacer`: where along x whoever runs at the target speed is."""
        self._data.qpos[:] = qpos
        mujoco.mj_normalizeQuat(self._model, self._data.qpos)
        mujoco.mj_kinematics(self._model, self._data)
        axes = self._family.torso_axes
        torso = np.zeros((1, 3))
        torso[0, :axes] = qpos[:axes]
        with self._server.atomic():
            self._robot.update_from_arrays(
                (self._data.xpos - torso)[None], self._data.xmat.reshape(-1, 3, 3)[None].copy()
            )
            self._robot.fixed_bodies_frame.position = -torso[0]
            for handle, marker in zip(self._marks, self._markers(task, torso, pacer), strict=True):
                handle.position = marker.position[0] - torso[0]
                handle.wxyz = _quaternion(marker.rotation)

    def _markers(self, task: Task, torso: NDArray[np.float64], pacer: float) -> list[Marker]:
        return markers(self._family, task, torso, np.array([pacer]) if "velocity" in task else None)


def painted(family: MujocoFamily, task: Task) -> mujoco.MjModel:
    """The task's model, coloured: what is dead, heavier or lighter than it was can be seen."""
    model = family.task_model(template_model(family), task)
    moves = model.body_weldid[model.geom_bodyid] != 0
    seen = moves & (model.geom_rgba[:, 3] > 0)
    model.geom_matid[seen] = -1
    model.geom_rgba[seen] = BODY
    factor = float(task.params.get("limb_mass_scale", 1.0))  # type: ignore[arg-type]
    if factor != 1.0:
        model.geom_rgba[seen & (model.geom_bodyid == task["limb"])] = HEAVY if factor > 1.0 else LIGHT
    dead = int(task.params.get("dead_actuator", NONE))  # type: ignore[arg-type]
    if dead != NONE:
        body = model.jnt_bodyid[model.actuator_trnid[dead, 0]]
        model.geom_rgba[seen & (model.geom_bodyid == body)] = DEAD
    return model


def _sky() -> NDArray[np.uint8]:
    """[height, 1, 3]: darker above, white at the horizon."""
    height = np.linspace(1.0, 0.0, 256)[:, None, None]
    return (255.0 - height * (255.0 - SKY)).astype(np.uint8)


def _light(server: viser.ViserServer) -> None:
    """A sky and a sun, in place of the picture of a hall that lights a scene by default: where there is no GPU, that
    makes a frame four times as long."""
    server.scene.configure_environment_map(None)
    server.scene.configure_default_lights(enabled=False)
    server.scene.add_light_ambient("/light/sky", intensity=SKY_LIGHT)
    server.scene.add_light_directional("/light/sun", intensity=SUN_LIGHT, cast_shadow=True, position=SUN)


def _look(server: viser.ViserServer, camera: Camera) -> None:
    """Where browsers look from, those that have opened the page already and those that will."""
    azimuth, elevation = math.radians(camera.azimuth), math.radians(camera.elevation)
    towards = np.array(
        [math.cos(elevation) * math.cos(azimuth), math.cos(elevation) * math.sin(azimuth), math.sin(elevation)]
    )
    middle = np.array([0.0, 0.0, 0.6])
    browsers = [client.camera for client in server.get_clients().values()]
    views: list[Any] = [server.initial_camera, *browsers]
    for view in views:
        view.position = middle - FURTHER * camera.distance * towards
        view.look_at = middle
        view.fov = FIELD_OF_VIEW


def _add_marker(server: viser.ViserServer, name: str, marker: Marker) -> viser.MeshHandle:
    red, green, blue, alpha = marker.colour
    colour = (round(255 * red), round(255 * green), round(255 * blue))
    vertices, faces = _shape(marker)
    return server.scene.add_mesh_simple(name, vertices, faces, color=colour, opacity=alpha)


def _shape(marker: Marker) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Vertices [V, 3] and faces [F, 3] in the marker's own frame; MuJoCo draws an arrow half as long as its size
    says."""
    if marker.kind == mujoco.mjtGeom.mjGEOM_BOX:
        box = trimesh.creation.box(extents=2.0 * np.array(marker.size))
        return np.array(box.vertices), np.array(box.faces)
    if marker.kind == mujoco.mjtGeom.mjGEOM_CYLINDER:
        post = trimesh.creation.cylinder(radius=marker.size[0], height=2.0 * marker.size[1])
        return np.array(post.vertices), np.array(post.faces)
    assert marker.kind == mujoco.mjtGeom.mjGEOM_ARROW
    radius, length = marker.size[0] / 2, marker.size[2] / 2
    shaft = trimesh.creation.cylinder(radius=radius, height=0.7 * length)
    head = trimesh.creation.cone(radius=2.5 * radius, height=0.3 * length)
    up = np.array([0.0, 0.0, length])
    raised = shaft.vertices + 0.35 * up, head.vertices + 0.7 * up
    return np.concatenate(raised), np.concatenate([shaft.faces, head.faces + len(shaft.vertices)])


def _quaternion(rotation: NDArray[np.float64]) -> NDArray[np.float64]:
    quaternion = np.zeros(4)
    mujoco.mju_mat2Quat(quaternion, rotation.ravel())
    return quaternion
