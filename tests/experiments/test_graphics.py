"""A backend is found or its absence explained; a picture has what it should have, where a backend is found."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import mujoco
import numpy as np
import pytest

from metarl.core.errors import UsageError
from metarl.experiments import graphics
from metarl.experiments.graphics import Camera, Marker, draw_states, find_backend

XML = """<mujoco><worldbody><body><joint type="slide" axis="1 0 0"/><joint type="slide" axis="0 0 1"/>
<geom size=".3" rgba="1 0 0 1"/></body></worldbody></mujoco>"""
CAMERA = Camera(azimuth=90.0, elevation=0.0, distance=3.0)


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch):
    """Let backends be probed by scripts in place of frames, a keyword each."""
    monkeypatch.delenv("MUJOCO_GL", raising=False)

    def use(**scripts: str) -> None:
        monkeypatch.setattr(graphics, "RENDERING_BACKENDS", {sys.platform: tuple(scripts)})
        monkeypatch.setattr(graphics, "RENDERING_NAMES", {name: name.upper() for name in scripts})
        choose = "".join(f"if os.environ['MUJOCO_GL'] == {name!r}:\n    {code}\n" for name, code in scripts.items())
        monkeypatch.setattr(graphics, "PROBE", f"import os, sys\n{choose}")

    return use


def message_of(error: pytest.ExceptionInfo[UsageError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_first_backend_that_draws_is_taken(probes) -> None:
    probes(egl="os.abort()", osmesa="pass", other="pass")
    assert find_backend() == "osmesa"


def test_without_a_backend_one_line_says_how_to_get_one(probes) -> None:
    probes(egl="os.abort()", osmesa="sys.exit(1)")
    with pytest.raises(UsageError, match="nothing can be drawn without EGL nor OSMESA, and none works here") as error:
        find_backend()
    if sys.platform == "linux":
        assert "apt-get install libegl1" in message_of(error)


def test_a_backend_that_was_asked_for_is_the_only_one_tried(probes, monkeypatch: pytest.MonkeyPatch) -> None:
    probes(egl="sys.exit(1)", osmesa="pass")
    monkeypatch.setenv("MUJOCO_GL", "egl")
    with pytest.raises(UsageError, match="nothing can be drawn with MUJOCO_GL=egl: unset it"):
        find_backend()
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    assert find_backend() == "osmesa"


def draw(qpos: np.ndarray, markers: list[Marker] = [], camera: Camera = CAMERA) -> np.ndarray:  # noqa: B006
    model = mujoco.MjModel.from_xml_string(XML)
    return draw_states(model, qpos, camera, markers, (48, 32))


def test_a_process_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphics, "find_backend", lambda: "no-such-backend")
    with pytest.raises(UsageError, match=r"drawing with MUJOCO_GL=no-such-backend failed: .*invalid value") as error:
        draw(np.zeros((1, 2)))
    assert message_of(error)


def test_a_process_that_hangs_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphics, "find_backend", lambda: "egl")
    monkeypatch.setattr(graphics, "DRAWING_SECONDS", 0.01)
    with pytest.raises(UsageError, match="took more than 0 s"):
        draw(np.zeros((1, 2)))


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(graphics, "find_backend", lambda: "egl")
    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(UsageError, match="No space left on device; free space there"):
        draw(np.zeros((1, 2)))


def test_the_own_process_is_not_touched(probes, monkeypatch: pytest.MonkeyPatch) -> None:
    probes(egl="pass")
    seen = {}

    def record(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        seen.update(options["env"])  # type: ignore[call-overload]
        return subprocess.CompletedProcess(command, 1, "", "RuntimeError: stopped here")

    monkeypatch.setattr(subprocess, "run", record)
    with pytest.raises(UsageError, match="failed: RuntimeError: stopped here"):
        draw(np.zeros((1, 2)))
    assert seen["MUJOCO_GL"] == "egl"
    assert "MUJOCO_GL" not in os.environ


def test_pictures_follow_the_torso_and_hold_the_markers(graphics_backend: str) -> None:
    ahead = np.array([[0.0, 0.0], [5.0, 0.0], [0.0, 0.6]])
    box = int(mujoco.mjtGeom.mjGEOM_BOX)
    places = np.array([[0.9, 0.0, 0.0]] * 3)
    marker = Marker(box, (0.2, 0.2, 0.2), (0.0, 1.0, 0.0, 1.0), places, np.eye(3))
    bare, marked = draw(ahead), draw(ahead, [marker])
    assert bare.shape == marked.shape == (3, 32, 48, 3)
    assert bare.dtype == np.uint8
    np.testing.assert_array_equal(bare[0], bare[1])  # the camera goes with the torso along the ground
    red = bare[..., 0].astype(int) - bare[..., 1] > 50
    rows, columns = (np.argwhere(red[0]).mean(axis=0)).tolist()
    assert (rows, columns) == (pytest.approx(15.5, abs=1.5), pytest.approx(23.5, abs=1.5))
    assert np.argwhere(red[2]).mean(axis=0)[0] < rows - 4  # but shows how it rises
    green = marked[..., 1].astype(int) - marked[..., 0] > 50
    assert green[0].any()
    assert np.argwhere(green[0]).mean(axis=0)[1] > 30
    assert not green[1].any()


def test_a_camera_that_looks_at_a_place_stays_there(graphics_backend: str) -> None:
    still = replace(CAMERA, lookat=(0.0, 0.0, 0.0))
    before, aside = draw(np.array([[0.0, 0.0], [0.6, 0.0]]), camera=still)
    red = [picture[..., 0].astype(int) - picture[..., 1] > 50 for picture in (before, aside)]
    columns = [float(np.argwhere(part).mean(axis=0)[1]) for part in red]
    assert columns[0] == pytest.approx(23.5, abs=1.5)
    assert abs(columns[1] - columns[0]) > 4
