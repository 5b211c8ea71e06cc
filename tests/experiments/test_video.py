"""What is shown of which step, in which words, and files that open as they should."""

from __future__ import annotations

import builtins
import io
from pathlib import Path
from typing import Any

import gymnasium
import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image

from metarl.core.errors import UsageError
from metarl.core.task import Task
from metarl.env_runner.recording import DRAWN_TASKS, Episode, Recorder
from metarl.env_runner.shown_task import ShownTask
from metarl.env_runner.toy_worlds import PointWorlds
from metarl.env_runner.trial import run_trial
from metarl.experiments import metaworld_pictures, scenes, sketches, video
from metarl.experiments.graphics import Camera, Marker
from metarl.experiments.protocol import Protocol, evaluate
from metarl.experiments.reference import RandomAgent
from metarl.experiments.scenes import draw_scenes, explanation, gauge
from metarl.experiments.video import Caption, Video, in_words, make_video, median_task, shown_steps, write_video
from metarl.tasks import make_tasks
from metarl.tasks.distribution import TaskDistribution

CAPTION = Caption("point-goal · rl2 · gru", "held-out task", {0: "before any experience", 1: "after 1 episode"})
GOAL = Task(103, {"goal": (0.6, 0.8)})


def straight(task: Task, speed: float, steps: int, *, terminated: bool = False) -> Episode:
    """A point that goes right at `speed` a step; each step pays -1."""
    states = np.zeros((steps, 2))
    states[:, 0] = speed * np.arange(steps)
    return Episode(states, np.full(steps, -1.0), terminated)


def recorded(*episodes: Episode, task: Task = GOAL) -> Recorder:
    recorder = Recorder(range(len(episodes)))
    recorder.world = PointWorlds([task], sparse=False, max_episode_steps=50)
    recorder.tasks = {task.id: task}
    recorder.episodes = {(task.id, shot): episode for shot, episode in enumerate(episodes)}
    return recorder


@pytest.mark.parametrize(
    ("longest", "count", "stride"), [(1, 1, 1), (50, 50, 1), (72, 72, 1), (73, 37, 2), (200, 67, 3), (1000, 72, 4)]
)
def test_steps_are_shown_in_even_strides(longest: int, count: int, stride: int) -> None:
    steps, found = shown_steps(longest)
    assert (len(steps), found) == (count, stride)
    assert steps == [index * stride for index in range(count)]
    assert steps[-1] < longest


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({}, "the environment as it is"),
        ({"velocity": 2.314}, "target speed 2.31 m/s"),
        ({"direction": -1.0}, "run backward"),
        ({"direction": 1.0}, "run forward"),
        ({"angle": np.pi / 2}, "run towards 90°"),
        ({"goal": (-0.5, 0.25)}, "goal (−0.50, 0.25)"),
        ({"gravity_scale": 0.5}, "gravity × 0.50"),
        ({"dead_actuator": 3, "mass_scale": 0.75}, "dead actuator 3, mass × 0.75"),
        ({"dead_actuator": -1, "change_at": 87}, "no dead actuator, change at step 87"),
        (
            {"body_mass_scale": (1.0,) * 8, "speed": 1, "dof_damping_scale": (2.0,) * 4},
            "speed 1.00, own body mass, dof damping",
        ),
        ({"env": "reach-v3", "rand_vec": (0.1, -0.2, 0.3)}, "reach-v3, places (0.10, −0.20, 0.30)"),
        ({"variant": "halfcheetah-jointdec_25_bfoot"}, "halfcheetah-jointdec_25_bfoot"),
        ({"length": 0.5, "force": 8.0}, "length 0.50, force 8.00"),
    ],
)
def test_a_task_is_said_in_words(params: dict[str, Any], words: str) -> None:
    assert in_words(Task(0, params)) == words


def test_the_task_with_the_median_gain_is_shown() -> None:
    recorder = Recorder((0, 5))
    recorder.tasks = {id: Task(id, {}) for id in (100, 101, 102)}
    for id, gain in ((100, 9.0), (101, -3.0), (102, 2.0)):
        for shot, total in ((0, 1.0), (5, 1.0 + gain)):
            recorder.episodes[id, shot] = Episode(np.zeros((1, 2)), np.array([total]), False)
    assert median_task(recorder, 0, 5).id == 102


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every text that is written into a frame."""
    texts: list[str] = []
    plain = video.ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        video.ImageDraw.ImageDraw,
        "text",
        lambda pen, place, text, *style, **more: (texts.append(text), plain(pen, place, text, *style, **more)),
    )
    return texts


def test_captions_name_agent_task_shot_and_running_return(written: list[str]) -> None:
    film = make_video(recorded(straight(GOAL, 0.0, 3), straight(GOAL, 0.1, 3)), GOAL, (0, 1), CAPTION)
    assert len(film.frames) == 4
    assert film.frames[0].size == (664, 358)
    assert written[0] == "point-goal · rl2 · gru · held-out task 103: goal (0.60, 0.80)"
    assert "the disc is the goal, which the agent does not see" in written
    for text in ("shot 0", "before any experience", "shot 1", "after 1 episode"):
        assert written.count(text) == 4
    assert [text for text in written if text.startswith(("return", "total"))] == [
        *["return −1.0"] * 2,
        *["return −2.0"] * 2,
        *["return −3.0"] * 2,
        *["total −3.0"] * 2,
    ]
    assert [text for text in written if text.startswith("distance")][:2] == ["distance to the goal: 1.00"] * 2


def test_what_is_too_long_for_one_panel_stands_in_two_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    ends: dict[str, float] = {}
    plain = video.ImageDraw.ImageDraw.text

    def text(pen: Any, place: tuple[float, float], text: str, fill: Any, font: Any, **more: Any) -> None:
        ends[text] = place[0] + (font.getlength(text) if more["anchor"][0] == "l" else 0)
        plain(pen, place, text, fill, font, **more)

    monkeypatch.setattr(video.ImageDraw.ImageDraw, "text", text)
    film = make_video(recorded(straight(GOAL, 0.0, 400)), GOAL, (0,), CAPTION)
    assert list(ends)[:4] == [
        "point-goal · rl2 · gru",
        "held-out task 103: goal (0.60, 0.80)",
        "the disc is the goal, which the agent does not see",
        "the first 285 of 400 steps",
    ]
    assert max(ends.values()) <= film.frames[0].width
    assert film.frames[0].size == (336, 358 + video.TITLE + video.LEGEND)


def test_panels_differ_where_the_shots_did() -> None:
    film = make_video(recorded(straight(GOAL, 0.0, 5), straight(GOAL, 0.1, 5)), GOAL, (0, 1), CAPTION)
    pixels = np.asarray(film.frames[-1]).astype(int)
    top, bottom = video.TITLE + video.HEADER, video.TITLE + video.HEADER + video.PICTURE[1]
    left, right = (
        pixels[top:bottom, start : start + video.PICTURE[0]] for start in (video.GAP, 2 * video.GAP + video.PICTURE[0])
    )
    assert (left != right).any()
    np.testing.assert_array_equal(left[:20], right[:20])
    assert (np.asarray(film.frames[0]) != np.asarray(film.frames[-1])).any()


def test_an_episode_that_ended_early_waits_and_says_so(written: list[str]) -> None:
    make_video(recorded(straight(GOAL, 0.1, 2, terminated=True), straight(GOAL, 0.1, 4)), GOAL, (0, 1), CAPTION)
    assert written.count("ended after 2 steps") == 4  # steps 1, 2 and 3, and the end
    assert [text for text in written if text.startswith("total")] == ["total −2.0", "total −4.0"]


def test_of_a_long_episode_the_beginning_is_shown_and_the_whole_return_told(written: list[str]) -> None:
    film = make_video(recorded(straight(GOAL, 0.001, 1000)), GOAL, (0,), CAPTION)
    assert len(film.frames) == video.MAX_FRAMES + 1
    assert "the first 285 of 1000 steps" in written
    assert [text for text in written if text.startswith(("return", "total"))][-2:] == ["return −285.0", "total −1000.0"]


def test_too_many_shots_are_refused() -> None:
    with pytest.raises(UsageError, match="a video shows 4 shots at most, got 5"):
        make_video(recorded(*[straight(GOAL, 0.1, 2)] * 5), GOAL, range(5), CAPTION)


def test_worlds_without_a_picture_are_one_line() -> None:
    recorder = recorded(straight(GOAL, 0.1, 2))
    recorder.world = ShownTask(recorder.world, [GOAL])
    with pytest.raises(UsageError, match="ShownTask have no picture: videos show MuJoCo and batched Meta-World"):
        make_video(recorder, GOAL, (0,), CAPTION)
    with pytest.raises(UsageError, match="ShownTask have no picture"):
        gauge(recorder.world, GOAL, recorder.episodes[103, 0])
    assert explanation(recorder.world) == ""


def _own(render_mode: str | None) -> TaskDistribution:
    """CartPole as somebody's own environment, whose tasks are gravities."""
    return TaskDistribution(
        lambda: gymnasium.make("CartPole-v1", render_mode=render_mode),
        train=[{"gravity": 9.8}],
        test=[{"gravity": float(gravity)} for gravity in range(5, 16)],
        apply=lambda env, task: setattr(env.unwrapped, "gravity", task["gravity"]),
        max_episode_steps=6,
        name="own",
    )


def test_only_a_robot_is_told_where_to_run(written: list[str]) -> None:
    distribution = TaskDistribution(
        lambda: gymnasium.make("CartPole-v1", render_mode="rgb_array"),
        train=[{"direction": 1.0}],
        test=[{"direction": 0.4, "angle": 2.0, "velocity": 3}],  # of a wind, say
        apply=lambda env, task: None,
        max_episode_steps=2,
        name="own",
    )
    make_video(_filmed(distribution), distribution.test[0], (0, 1), CAPTION)
    assert written[0].endswith(": direction 0.40, angle 2.00, velocity 3.00")


def _filmed(distribution: TaskDistribution, task_id: int | None = None) -> Recorder:
    recorder = Recorder((0, 1), task_id)
    env = distribution.make_env(distribution.test[:1])
    agent = RandomAgent(env.single_observation_space, env.single_action_space)
    evaluate(agent, distribution, distribution.test, Protocol("few-shot", few_shot=(1,), repeats=2), recorder=recorder)
    return recorder


def test_an_own_environment_is_shown_as_it_draws_itself() -> None:
    distribution = _own("rgb_array")
    recorder = _filmed(distribution)
    assert len(recorder.tasks) == DRAWN_TASKS < len(distribution.test)
    task = median_task(recorder, 0, 1)
    (first, _), shots = recorder.episodes[task.id, 0].pictures[:2], (0, 1)
    film = make_video(recorder, task, shots, CAPTION)
    assert len(film.frames) == 7
    env = gymnasium.make("CartPole-v1", render_mode="rgb_array")
    env.reset(seed=0)
    with Image.open(io.BytesIO(first)) as image:
        assert image.size == (480, 320)
        # Cart and track in black, a few pixels from where another start state puts them; at 0.8 of the size.
        shown, drawn = (int((np.asarray(each) < 128).all(-1).sum()) for each in (image, env.render()))
    assert shown / 0.8**2 == pytest.approx(drawn, rel=0.2)
    assert drawn > 1000
    assert set(_filmed(distribution, distribution.test[-1].id).tasks) == {distribution.test[-1].id}


def test_an_environment_that_draws_nothing_says_what_would() -> None:
    recorder = _filmed(_own(None))
    with pytest.raises(UsageError, match=r"GymWorkers have no picture: .*whose render_mode is rgb_array"):
        make_video(recorder, median_task(recorder, 0, 1), (0, 1), CAPTION)


def test_an_environment_that_fails_to_draw_itself_is_measured_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError("no\nbrush")

    monkeypatch.setattr("gymnasium.envs.classic_control.CartPoleEnv.render", fail)
    recorder = _filmed(_own("rgb_array"))
    task = median_task(recorder, 0, 1)
    assert len(recorder.episodes[task.id, 1].rewards) > 1
    with pytest.raises(UsageError, match=r"render\(\) raised OSError: no brush"):
        make_video(recorder, task, (0, 1), CAPTION)


def test_a_bandit_shows_its_arms_and_its_pulls() -> None:
    bandit = make_tasks("bandit")
    recorder, task = _filmed(bandit), bandit.test[0]
    for shot in (1, 0):  # an episode begins without the pulls of the one before it
        episode = recorder.episodes[task.id, shot]
        np.testing.assert_array_equal(episode.states.sum(1), np.arange(len(episode.rewards)))
        assert (np.diff(episode.states, axis=0) >= 0).all()
    film = make_video(recorder, task, (0, 1), CAPTION)
    assert (np.asarray(film.frames[0]) != np.asarray(film.frames[-1])).any()
    shown = gauge(recorder.world, task, episode)
    assert shown.values[-1] == pytest.approx(episode.rewards.mean())
    assert shown.target == max(task["means"])


# --- scenes -----------------------------------------------------------------------------------------------------------


def body(family: str) -> tuple[Any, Task]:
    distribution = make_tasks(family)
    return distribution.make_env(distribution.test[:1]), distribution.test[0]


def moving(world: Any, speed: float, steps: int = 200) -> Episode:
    """A body that glides along x at `speed` m/s, 0.05 s a step."""
    qpos = np.repeat(world.qpos[:1].copy(), steps, axis=0)
    qpos[:, 0] = speed * 0.05 * np.arange(steps)
    return Episode(qpos, np.zeros(steps), False)


@pytest.mark.parametrize(
    ("family", "params", "label", "value", "target"),
    [
        ("halfcheetah-vel", {"velocity": 1.5}, "speed, m/s", 2.0, 1.5),
        ("halfcheetah-dir", {"direction": -1.0}, "speed the right way, m/s", -2.0, 0.0),
        ("halfcheetah-gravity", {"gravity_scale": 0.5}, "speed, m/s", 2.0, 0.0),
        ("ant-dir", {"angle": np.pi / 3}, "speed the right way, m/s", 1.0, 0.0),
        ("ant-goal", {"goal": (1.0, 0.0)}, "distance to the goal, m", 18.9, 0.0),
    ],
)
def test_gauges_of_robots_by_hand(family: str, params: dict[str, Any], label: str, value: float, target: float) -> None:
    world, _ = body(family)
    shown = gauge(world, Task(0, params), moving(world, 2.0))
    assert (shown.label, shown.target) == (label, target)
    assert shown.values[-1] == pytest.approx(value)


def test_gauges_of_small_worlds_by_hand() -> None:
    cartpole, _ = body("cartpole-dynamics")
    pendulum, _ = body("pendulum-dynamics")
    tilted = Episode(np.array([[0.0, 0.0, np.radians(3), 0.0]], np.float32), np.ones(1), True)
    hanging = Episode(np.array([[np.cos(2.0), np.sin(2.0), 0.0]], np.float32), np.ones(1), False)
    assert gauge(cartpole, GOAL, tilted).values == pytest.approx([3.0])
    assert gauge(pendulum, GOAL, hanging).values == pytest.approx([np.degrees(2.0)])
    point, _ = body("point-goal")
    assert gauge(point, GOAL, straight(GOAL, 0.6, 2)).values == pytest.approx([1.0, 0.8])


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `draw_states` is asked for; it draws nothing."""
    asked: dict[str, Any] = {}

    def draw(model: Any, qpos: np.ndarray, camera: Camera, markers: list[Marker], size: tuple[int, int]) -> np.ndarray:
        asked.update(model=model, qpos=qpos, camera=camera, markers=markers)
        return np.zeros((len(qpos), size[1], size[0], 3), np.uint8)

    monkeypatch.setattr(scenes, "draw_states", draw)
    monkeypatch.setattr(metaworld_pictures, "draw_states", draw)
    return asked


def test_the_flag_runs_at_the_target_speed_and_is_announced_where_it_is_out_of_sight(drawn: dict[str, Any]) -> None:
    world, _ = body("halfcheetah-vel")
    task = Task(0, {"velocity": 2.0})
    episodes = [moving(world, 0.0), moving(world, 2.0), moving(world, 3.0)]
    slow, fitting, fast = draw_scenes(world, task, episodes, [0, 100, 180], (320, 240))
    post = drawn["markers"][0]
    assert post.position[:, 0] == pytest.approx([0.0, 10.0, 18.0] * 3)
    assert list(slow.notes) == ["", "flag 10.0 m ahead ▶", "flag 18.0 m ahead ▶"]
    assert list(fitting.notes) == [""] * 3
    assert list(fast.notes) == ["", "◀ flag 5.0 m behind", "◀ flag 9.0 m behind"]
    np.testing.assert_array_equal(drawn["qpos"][3:6], episodes[1].states[[0, 100, 180]])


@pytest.mark.parametrize(
    ("family", "params", "heading"),
    [("halfcheetah-dir", {"direction": -1.0}, [-1.0, 0.0, 0.0]), ("ant-dir", {"angle": np.pi / 2}, [0.0, 1.0, 0.0])],
)
def test_an_arrow_points_where_the_task_asks(drawn, family: str, params: dict[str, Any], heading: list[float]) -> None:
    world, _ = body(family)
    draw_scenes(world, Task(0, params), [moving(world, 1.0)], [0, 40], (320, 240))
    (arrow,) = drawn["markers"]
    assert arrow.rotation @ [0.0, 0.0, 1.0] == pytest.approx(heading)
    assert np.linalg.det(arrow.rotation) == pytest.approx(1.0)
    assert arrow.position[1] - arrow.position[0] == pytest.approx([2.0, 0.0, 0.0])
    assert "arrow" in explanation(world)


def test_a_goal_has_a_flag_and_other_tasks_need_no_marker(drawn: dict[str, Any]) -> None:
    world, _ = body("ant-goal")
    draw_scenes(world, Task(0, {"goal": (1.0, -2.0)}), [moving(world, 1.0)], [0], (320, 240))
    assert drawn["markers"][0].position[0, :2] == pytest.approx([1.0, -2.0])
    world, task = body("halfcheetah-gravity")
    draw_scenes(world, task, [moving(world, 1.0)], [0], (320, 240))
    assert drawn["markers"] == []
    assert explanation(world) == ""


def test_the_robot_is_drawn_with_the_tasks_own_body_and_the_shared_model_is_not_repainted(drawn) -> None:
    world, _ = body("imujoco-halfcheetah")
    family = make_tasks("imujoco-halfcheetah")
    long = next(task for task in (*family.train, *family.test) if "lengthinc_150_torso" in str(task["variant"]))
    template = scenes.template_model(world.family)
    before = template.geom_size.copy(), template.mat_reflectance.copy(), template.tex_data.copy()
    draw_scenes(world, long, [moving(world, 1.0)], [0], (320, 240))
    assert (drawn["model"].geom_size != template.geom_size).any()
    for field, values in zip(("geom_size", "mat_reflectance", "tex_data"), before, strict=True):
        np.testing.assert_array_equal(getattr(template, field), values)


def test_the_pace_that_is_told_is_one_that_a_gif_can_have(drawn: dict[str, Any], written: list[str]) -> None:
    world, _ = body("halfcheetah-vel")
    recorder = recorded(moving(world, 1.0))
    recorder.world = world
    film = make_video(recorder, Task(GOAL.id, {"velocity": 2.0}), (0,), CAPTION)
    assert film.seconds[0] == 0.07  # 67 frames of three steps, 0.05 s each, are to last about five seconds
    assert "the flag runs at the target speed   2.1 × real time" in written


def test_meta_world_is_drawn_as_the_task_has_it_with_the_goal_that_is_hidden(drawn, written: list[str]) -> None:
    pytest.importorskip("metaworld")
    from metarl.env_runner.metaworld_official import reference, start
    from metarl.tasks.metaworld import DESCRIPTIONS

    distribution = make_tasks("metaworld-ml10")
    tasks = [distribution.test[0], distribution.test[-1]]  # of two classes, whose poses have other sizes
    worlds = distribution.make_env(tasks)
    agent = RandomAgent(worlds.single_observation_space, worlds.single_action_space, seed=1)
    recorder = Recorder((0,))
    run_trial(agent, recorder.wrap(worlds, {task: row for row, task in enumerate(tasks)}), tasks, episodes=1)
    for task in tasks:
        name = str(task["env"])
        before = reference(name).model.body_pos.copy(), reference(name).model.site_rgba.copy()
        film = make_video(recorder, task, (0,), CAPTION)
        begin = start(task, DESCRIPTIONS[name])
        (ball,) = drawn["markers"]
        np.testing.assert_allclose(ball.position, np.broadcast_to(begin.origin.target, (72, 3)))
        np.testing.assert_array_equal(drawn["model"].body_pos, begin.body_pos)
        np.testing.assert_array_equal(drawn["qpos"], recorder.episodes[task.id, 0].states[: 72 * 4 : 4])
        for here, there in zip(before, (reference(name).model.body_pos, reference(name).model.site_rgba), strict=True):
            np.testing.assert_array_equal(here, there)
        shown = gauge(worlds, task, recorder.episodes[task.id, 0])
        assert (shown.label, shown.target) == ("reward of the step", 10.0)
        np.testing.assert_array_equal(shown.values, recorder.episodes[task.id, 0].rewards)
        assert len(film.frames) == 73
    assert "the ball is the goal, which the agent does not see" in written
    assert any(text.startswith("0.7 × real time") for text in written)


def test_a_step_of_every_meta_world_environment_lasts_as_long() -> None:
    pytest.importorskip("metaworld")
    from metarl.env_runner.metaworld_official import environment_classes, reference
    from metarl.env_runner.metaworld_room import FRAME_SKIP

    steps = {FRAME_SKIP * reference(name).model.opt.timestep for name in environment_classes()}
    assert steps == {metaworld_pictures.STEP_SECONDS}


def blue_column(picture: np.ndarray) -> float:
    """The mean column of what moves."""
    moves = picture[..., 2].astype(int) - picture[..., 0] > 60
    return float(np.argwhere(moves).mean(axis=0)[1])


def test_sketches_show_what_moves() -> None:
    size = (96, 64)
    angles = np.array([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.2, 0.0]])
    upright, tilted = sketches.cartpole(Task(0, {"length": 1.0}), angles, size)
    assert upright.shape == (64, 96, 3)
    assert blue_column(upright) == pytest.approx(48, abs=1)
    assert blue_column(tilted) > 49
    turned = np.array([[np.cos(angle), np.sin(angle)] for angle in (1.0, -1.0)])
    left, right = sketches.pendulum(Task(0, {}), turned, size)
    assert blue_column(left) < 44
    assert blue_column(right) > 52  # a positive angle falls to the left
    (point,) = sketches.point(GOAL, np.array([[1.0, 0.0]]), 1.0, size)
    assert blue_column(point) > 60


# --- files ------------------------------------------------------------------------------------------------------------


def plain_video(size: tuple[int, int] = (64, 48)) -> Video:
    frames = []
    for index in range(5):
        frames.append(Image.new("RGB", size, (0, 100, 200)))
        frames[-1].paste("white", (10 * index, 0, 10 * index + 8, 8))
    return Video(frames, [0.1] * 4 + [0.5])


def test_a_gif_opens_with_its_frames_size_and_times(tmp_path: Path) -> None:
    write_video(tmp_path / "x.gif", plain_video())
    with Image.open(tmp_path / "x.gif") as opened:
        assert (opened.n_frames, opened.size, opened.info["loop"]) == (5, (64, 48), 0)
        times = []
        for index in range(opened.n_frames):
            opened.seek(index)
            times.append(opened.info["duration"])
        assert times == [100] * 4 + [500]
        np.testing.assert_allclose(np.asarray(opened.convert("RGB"))[0, 0], (0, 100, 200), atol=8)


def test_an_mp4_opens_with_its_frames_and_size(tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg", reason="imageio-ffmpeg is not installed: pip install '.[video]'")
    write_video(tmp_path / "x.mp4", plain_video())
    pixels = iio.imread(io.BytesIO((tmp_path / "x.mp4").read_bytes()), extension=".mp4", plugin="FFMPEG")
    assert pixels.shape == (4 + 5, 48, 64, 3)  # the last stands for five
    np.testing.assert_allclose(pixels[0, 24, 32], (0, 100, 200), atol=12)


def test_only_known_formats_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"a video is a .gif or a .mp4 file, got .*x.avi"):
        write_video(tmp_path / "x.avi", plain_video())
    plain = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "imageio_ffmpeg":
            raise ImportError(name)
        return plain(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"imageio-ffmpeg is not installed: run  pip install '.*\[video\]'"):
        write_video(tmp_path / "x.mp4", plain_video())
    assert list(tmp_path.iterdir()) == []
