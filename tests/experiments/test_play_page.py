"""The page: what it says, and what a real browser makes of it when a slider is moved."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest

from metarl.cli import main
from metarl.core.errors import UsageError
from metarl.core.memory import MemoryConfig
from metarl.core.task import Task
from metarl.experiments.checkpoint import LAST, save_checkpoint
from metarl.experiments.play import Playground
from metarl.experiments.run import Run
from metarl.experiments.run_config import RunConfig
from metarl.meta_rl.rl2_agent import RL2Agent, RL2Config
from metarl.tasks.distribution import TaskDistribution
from metarl.tasks.locomotion import FAMILIES, make_worlds

pytest.importorskip("mjviser", reason="without mjviser:  pip install 'metarl-agent-framework[play]'")

from metarl.experiments.play_page import Page, numbers, picture
from metarl.experiments.play_scene import BODY, DEAD, HEAVY, LIGHT, Scene, painted
from metarl.experiments.play_server import serving

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SECONDS = 60_000
"""How long a browser is waited for, in ms; seconds are usual, but tests may share their cores with others."""


@pytest.fixture
def playground() -> Playground:
    """An agent that has learned nothing, in a half-cheetah's world whose episodes are over in a second."""
    worlds = partial(make_worlds, FAMILIES["halfcheetah-vel"][1], 20, 1)
    speeds = [{"velocity": 1.0}]
    tasks = TaskDistribution(train=speeds, test=speeds, max_episode_steps=20, name="<b>short", make_worlds=worlds)
    env = tasks.make_env(tasks.test)
    agent = RL2Agent(env.single_observation_space, env.single_action_space, memory=MemoryConfig("gru", width=8))
    return Playground(agent, tasks)


def said(playground: Playground) -> dict[str, str]:
    return dict(re.findall(r'data-play="(\w+)"[^>]*>([^<]*)<', numbers(playground, paused=False)))


def test_the_numbers_say_what_is_asked_for_and_achieved(playground: Playground) -> None:
    assert said(playground) == {
        "state": "adapting",
        "achieved": "0.00 m/s",
        "asked": "1.00 m/s",
        "place": "1 · 1 · 0",
        "return": "0.0",
        "last": "none yet",
    }
    playground.freeze()
    for _ in range(21):
        playground.step()
    assert (said(playground)["state"], said(playground)["place"]) == ("frozen", "1 · 2 · 1")
    assert said(playground)["last"] == f"{playground.finished[0].reward:.1f}"
    assert ">paused<" in numbers(playground, paused=True)
    playground.said = "<script>"
    assert "&lt;script&gt;" in numbers(playground, paused=False)


def test_memories_are_drawn_as_squares_blue_below_zero_and_orange_above() -> None:
    shown = picture(np.array([[-1.0, 0.0], [0.5, 1.0]]))
    assert shown.shape == (280, 280, 3)
    blue, paper, orange = (shown[at].astype(int) for at in ((0, 0), (0, 279), (279, 279)))
    assert blue[2] > blue[0]
    assert orange[0] > orange[2]
    assert paper.min() > 240
    assert picture(np.zeros((0, 0))).shape == (35, 280, 3)


def test_what_is_broken_can_be_seen(playground: Playground) -> None:
    family, task = playground.family, playground.task

    def colours(**params: float) -> list[tuple[float, ...]]:
        model = painted(family, type(task)(task.id, {**task.params, **params}))
        return [tuple(np.round(colour, 2)) for colour in model.geom_rgba[1:].tolist()]

    assert set(colours()) == {BODY}
    assert colours(dead_actuator=0) == [BODY, BODY, DEAD, *[BODY] * 5]
    assert colours(limb=3, limb_mass_scale=2.0) == [*[BODY] * 3, HEAVY, *[BODY] * 4]
    assert colours(limb=3, limb_mass_scale=0.5)[3] == LIGHT


def test_a_host_that_is_not_here_is_refused() -> None:
    refusal = pytest.raises(UsageError, match=r"cannot listen at 203\.0\.113\.1 \([\w ]+\): --host 127\.0\.0\.1 is")
    with refusal, serving("203.0.113.1", 8080):
        pass


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run with the checkpoint of an agent that has learned nothing yet."""
    asked = RunConfig(algo="rl2", epochs=1, output_dir=str(tmp_path))
    run = Run.plan(asked, RL2Config(), MemoryConfig("gru", width=8), "metarl run").prepare_folder()
    run.checkpoints.mkdir()
    save_checkpoint(run.checkpoints / LAST, run.make_agent().state_dict(), {"epoch": 1})
    return run


def test_the_command_serves_a_run_to_this_machine_alone(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []

    @contextmanager
    def serving(host: str, port: int) -> Iterator[tuple[None, str]]:
        seen.extend((host, port))
        yield None, "http://127.0.0.1:8080"

    class Page:
        def __init__(self, server: None, playground: Playground, title: str) -> None:
            assert "open http://127.0.0.1:8080 in a browser" in capsys.readouterr().out, "said before the agent loads"
            seen.extend((playground.task.id, title))

        def run(self) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr("metarl.experiments.play_server.serving", serving)
    monkeypatch.setattr("metarl.experiments.play_page.Page", Page)
    assert main(["play", str(run.folder), "--task", "103"]) == 0
    assert seen == ["127.0.0.1", 8080, 103, "halfcheetah-vel · rl2 · gru"]


def test_what_is_no_agent_is_refused_before_anything_is_served(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["play", "nothing"]) == 2
    said = capsys.readouterr()
    assert "'nothing' is neither the folder of a run nor an agent that ships with metarl: ant-dir" in said.err
    assert said.out == ""


def test_the_page_is_served_before_what_acts_and_simulates_is_imported() -> None:
    code = "import sys, metarl.cli.play, metarl.experiments.play_server"
    code += "; print([name for name in ('torch', 'mujoco') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n", "a browser needs seconds to draw: it can begin meanwhile"


def test_a_player_is_made_without_what_only_learning_needs(run: Run) -> None:
    code = f"from metarl.experiments.play import load_player; load_player({str(run.folder)!r})"
    late = ("torch._dynamo", "scipy.stats", "numba")
    code += f"; import sys; print([name for name in {late} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n", "each takes a second or two, and the first picture is waited for"


def test_without_the_extra_the_line_that_brings_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "metarl.experiments.play_server")
    monkeypatch.setitem(sys.modules, "viser", None)
    assert main(["play", "halfcheetah-vel"]) == 2
    assert "pip install 'metarl-agent-framework[play]'" in capsys.readouterr().err


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[Any]:
    with serving("127.0.0.1", 0) as (server, _):
        yield server


@pytest.fixture
def living(server: Any, playground: Playground) -> Iterator[Callable[[], None]]:
    """Call it to put the playground into the page, where it lives while the test runs."""
    over, made = threading.Event(), threading.Event()

    def live() -> None:
        page = Page(server, playground, "<i>title")
        made.set()
        page.run(over.is_set)

    def begin() -> None:
        thread.start()
        assert made.wait(60)

    thread = threading.Thread(target=live)
    yield begin
    over.set()
    if thread.ident is not None:
        thread.join(60)
    assert not thread.is_alive()


def test_only_this_machine_is_listened_to_and_nothing_moves_while_nobody_looks(
    server: Any, playground: Playground, living: Callable[[], None]
) -> None:
    living()
    with socket.socket() as elsewhere, pytest.raises(OSError, match="refused"):
        elsewhere.connect(("127.0.0.2", server.get_port()))
    time.sleep(0.3)
    assert playground.steps == 0


def test_the_world_is_what_the_slider_shows_when_it_is_turned(server: Any, playground: Playground) -> None:
    page = Page(server, playground, "title")
    speed = next(each for each in server.gui._gui_input_handle_from_uuid.values() if each.label == "target speed, m/s")
    speed.value = 2.0
    speed._impl.value = 2.5  # moved on; the thread that says so comes later
    page.do_what_was_asked()
    assert playground.task["velocity"] == 2.5


def _sink(model: Any, task: Task) -> None:
    model.qpos0[1] += task["depth"]


def test_a_body_is_drawn_where_it_is_whatever_its_joints_are_counted_from(server: Any) -> None:
    family = replace(FAMILIES["halfcheetah-vel"][1], edit=_sink)
    shallow, deep = (Task(0, {"velocity": 1.0, "depth": depth}) for depth in (0.0, 0.3))
    scene = Scene(server, family, shallow)
    scene.change(deep)
    scene.draw(np.zeros(9), deep, 0.0)
    model = painted(family, deep)
    data = mujoco.MjData(model)
    data.qpos[:] = 0.0
    mujoco.mj_kinematics(model, data)
    np.testing.assert_array_equal(scene._data.xpos, data.xpos)


@pytest.fixture
def page(server: Any, living: Callable[[], None]) -> Iterator[Any]:
    """The page in headless Chromium, which opened it while it loaded; errors, and requests to anywhere else, fail."""
    browser_path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser_path is None:
        pytest.skip("no Chromium here: on Debian and Ubuntu,  apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="without playwright:  pip install -e '.[dev]'")
    complaints: list[str] = []
    address = f"http://127.0.0.1:{server.get_port()}"
    local = (address, address.replace("http", "ws"), "data:", "blob:")
    with playwright.sync_playwright() as running:
        # No graphics card is needed: WebGL is drawn by the processor. Chromium refuses to sandbox for root.
        arguments = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
        arguments += ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = running.chromium.launch(executable_path=browser_path, args=arguments)
        opened = browser.new_page(viewport={"width": 900, "height": 600})
        opened.on("pageerror", lambda error: complaints.append(str(error)))
        opened.on("request", lambda asked: None if asked.url.startswith(local) else complaints.append(asked.url))
        opened.goto(address)
        opened.get_by_text("are loading").wait_for(timeout=SECONDS)
        living()
        opened.wait_for_selector("[data-play=state]", timeout=SECONDS)
        assert opened.get_by_text("are loading").count() == 0
        yield opened
        browser.close()
    assert complaints == []


def test_a_slider_that_is_moved_changes_the_world_at_once(page: Any, playground: Playground) -> None:
    """One page for all: a browser takes longer to start than to do any of this."""

    def waits_for(name: str, pattern: str) -> None:
        page.wait_for_function(
            "([name, pattern]) => new RegExp(pattern).test(document.querySelector(`[data-play=${name}]`)?.textContent)",
            arg=[name, pattern],
            timeout=SECONDS,
        )

    def press(control: Any) -> None:
        control.dispatch_event("click")  # `click` waits for pictures, and without a GPU one may take seconds

    assert page.locator("canvas").count() >= 3, "the robot and two curves"
    assert page.get_by_text("<i>title").count() == 1
    assert page.locator("[data-play=asked]").text_content() == "1.00 m/s"
    page.get_by_role("slider").first.focus()
    page.keyboard.press("ArrowRight")
    waits_for("asked", r"1\.05 m/s")
    assert playground.task["velocity"] == pytest.approx(1.05)
    waits_for("last", "-")  # an episode goes by
    press(page.get_by_role("button", name="Freeze"))
    waits_for("state", "frozen")
    press(page.get_by_role("button", name="Adapt"))
    waits_for("state", "adapting")
    press(page.get_by_role("button", name="Forget"))
    waits_for("place", "^2 ·")
    press(page.get_by_label("pause"))
    waits_for("state", "paused")
    steps = playground.steps
    time.sleep(0.3)
    assert playground.steps == steps
