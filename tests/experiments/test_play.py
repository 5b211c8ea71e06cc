"""The playground without a page: it is the trial that `run_trial` runs, until a hand changes something."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from metarl.core.agent import Agent
from metarl.core.errors import UsageError
from metarl.core.memory import MemoryConfig
from metarl.core.optimization import TrainingDiverged
from metarl.env_runner.trial import run_trial
from metarl.experiments.play import Playground, arranged, load_player
from metarl.meta_rl.maml_agent import MAMLConfig
from metarl.meta_rl.registry import find_algorithm
from metarl.meta_rl.rl2_agent import RL2Config
from metarl.tasks.distribution import TaskDistribution
from metarl.tasks.locomotion import FAMILIES, make_worlds
from metarl.tasks.registry import make_tasks

HORIZON = 12
CONFIGS = {"rl2": RL2Config(), "maml": MAMLConfig(trial_rows=3)}


def short(name: str = "halfcheetah-vel", horizon: int = HORIZON) -> TaskDistribution:
    """A family whose episodes are over soon."""
    worlds = partial(make_worlds, FAMILIES[name][1], horizon, 1)
    source = FAMILIES[name][2]
    assert isinstance(source, dict)
    return TaskDistribution(train=source, test=source, max_episode_steps=horizon, name=name, make_worlds=worlds)


def agent_for(distribution: TaskDistribution, algo: str = "rl2", method: str = "gru") -> Agent:
    env = distribution.make_env(distribution.test[:1])
    spaces = env.single_observation_space, env.single_action_space
    return find_algorithm(algo).make(*spaces, CONFIGS[algo], MemoryConfig(method, width=8, state_dim=8))


def playground(algo: str = "rl2", method: str = "gru", name: str = "halfcheetah-vel", horizon: int = HORIZON):
    distribution = short(name, horizon)
    return Playground(agent_for(distribution, algo, method), distribution, seed=3)


def play(ground: Playground, episodes: int) -> list[float]:
    """The returns of the next episodes."""
    first = len(ground.finished)
    while len(ground.finished) < first + episodes:
        ground.step()
    return [each.reward for each in list(ground.finished)[first:]]


@pytest.mark.parametrize("algo", CONFIGS)
@pytest.mark.parametrize("name", ["halfcheetah-vel", "walker2d-vel"])
def test_left_alone_it_is_the_trial_that_is_measured(algo: str, name: str) -> None:
    horizon = HORIZON if name == "halfcheetah-vel" else 60  # so that walkers fall, each at its own time
    distribution = short(name, horizon)
    agent, env_agent = (agent_for(distribution, algo) for _ in range(2))
    tasks = distribution.test[:1] * agent.trial_rows
    agent.explore, agent.training = agent.explores_to_adapt, False
    trial = run_trial(agent, distribution.make_env(tasks, seed=3), tasks, shots=3, episodes=1)
    ground = Playground(env_agent, distribution, seed=3)
    assert play(ground, 4) == pytest.approx([trial.mean_return(shot) for shot in range(4)], rel=1e-12)
    assert [(each.trial, each.episode) for each in ground.finished] == [(1, 1), (1, 2), (1, 3), (1, 4)]


def test_while_others_finish_a_round_nothing_is_shown() -> None:
    ground = playground("maml", name="walker2d-vel", horizon=80)
    waited = 0
    while len(ground.finished) < 8:
        shown = ground.qpos
        ground.step()
        if ground.waiting:
            waited += 1
            assert ground.gauge().values.size > 0
        else:
            assert ground.qpos is not shown
    assert waited > 0


def test_a_knob_changes_the_world_at_the_next_step() -> None:
    ground, alone = playground(), playground()
    (speed,) = ground.task_knobs
    gravity = ground.world_knobs[0]
    for each in (ground, alone):
        each.step()
    ground.turn(speed, 3.0)
    assert ground.steps == 1
    for each in (ground, alone):
        each.step()
    assert np.array_equal(ground.qpos, alone.qpos), "where it is and how it moves stays"
    assert ground.reward < alone.reward
    assert ground.asked == 3.0
    ground.turn(gravity, 2.0)
    for each in (ground, alone):
        each.step()
    assert not np.array_equal(ground.qpos, alone.qpos)
    assert play(ground, 1)
    assert ground.finished[-1].task["gravity_scale"] == 2.0


def test_the_pacer_runs_at_the_target_speed_beside_the_robot() -> None:
    ground = playground()
    start = ground.pacer
    for _ in range(4):
        ground.step()
    assert ground.pacer == pytest.approx(start + 4 * 0.05 * ground.asked)
    ground.turn(ground.task_knobs[0], 1.0)
    assert ground.pacer == ground.qpos[0]


@pytest.mark.parametrize("algo", CONFIGS)
def test_forgetting_begins_a_trial_that_knows_nothing(algo: str) -> None:
    ground = playground(algo)
    play(ground, 2)
    ground.step()
    assert ground.agent.trial_state().any()
    ground.forget()
    assert not ground.agent.trial_state().any()
    assert (ground.trial, ground.episode, ground.steps) == (2, 0, 0)


@pytest.mark.parametrize("algo", CONFIGS)
def test_what_is_frozen_stands_still_until_it_adapts_again(algo: str) -> None:
    ground = playground(algo)
    play(ground, 1)
    ground.step()
    ground.freeze()
    known = ground.agent.trial_state().copy()
    assert known.any()
    play(ground, 2)
    ground.step()
    assert np.array_equal(ground.agent.trial_state(), known)
    assert not ground.agent.explore
    ground.adapt()
    assert ground.agent.explore == ground.by_gradients
    play(ground, 1)
    assert not np.array_equal(ground.agent.trial_state(), known)


def test_a_gradient_agent_takes_a_step_at_once_when_it_is_told_to() -> None:
    ground = playground("maml")
    ground.adapt()
    assert not ground.agent.trial_state().any(), "there is nothing to adapt to yet"
    ground.step()
    ground.step()
    ground.adapt()
    assert ground.agent.trial_state().any()
    assert (ground.steps, ground.episode, len(ground.finished)) == (0, 0, 0)


def test_an_agent_with_memory_has_nothing_to_do_but_go_on() -> None:
    ground = playground()
    ground.step()
    ground.adapt()
    assert ground.steps == 1


def test_an_agent_that_diverges_begins_anew_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    ground = playground("maml")

    def diverge() -> None:
        raise TrainingDiverged("not finite: body of task 0")

    monkeypatch.setattr(ground.agent, "adapt", diverge)
    play(ground, 1)
    assert ground.said == "not finite: body of task 0: it begins anew"
    assert (ground.trial, ground.episode, ground.steps) == (2, 0, 0)
    assert not ground.agent.trial_state().any()
    ground.forget()
    assert ground.said == "", "this trial begins because it was told to"


def test_what_is_asked_for_is_a_level_or_as_much_as_can_be() -> None:
    assert playground().asked == pytest.approx(short().test[0]["velocity"])
    assert playground(name="halfcheetah-gravity").asked is None


def test_pictures_are_twice_as_wide_as_high_and_hold_everything() -> None:
    values = np.arange(-128.0, 0.0).reshape(2, 64)
    shown = arranged(values)
    assert shown.shape == (8, 16)
    assert (shown.min(), shown[0, 0], shown[-1, -1]) == (-1.0, -1.0, pytest.approx(-1 / 128, rel=0.03))
    assert arranged(np.ones(5)).shape == (1, 5)
    assert arranged(np.ones(11)).tolist() == [[1.0] * 6, [1.0] * 5 + [0.0]]
    assert arranged(np.eye(1, 200)).max() == 1.0, "one number alone is no outlier"
    assert arranged(np.zeros(4)).tolist() == [[0.0] * 4]
    assert arranged(np.zeros(0)).size == 0
    assert playground(method="mlp").picture().size == 0


def test_the_task_to_begin_in_is_chosen_by_its_id() -> None:
    distribution = short()
    assert Playground(agent_for(distribution), distribution, 7).task["velocity"] == distribution.train[7]["velocity"]
    with pytest.raises(UsageError, match=r"'halfcheetah-vel' has no task 500: choose from 0\.\.129"):
        Playground(agent_for(distribution), distribution, 500)


@pytest.mark.parametrize("told", [False, True])
def test_only_bodies_of_mujoco_are_shown_and_only_to_agents_that_must_find_out(told: bool) -> None:
    distribution = short().showing_tasks() if told else make_tasks("point-goal")
    with pytest.raises(UsageError, match="has no MuJoCo body to show: play with a run of a MuJoCo family") as error:
        Playground(agent_for(distribution), distribution)
    assert "\n" not in str(error.value)


def test_neither_a_run_nor_an_agent_of_the_package(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"'nothing' is neither the folder of a run nor an agent .*: .*halfcheetah-vel"
    ):
        load_player("nothing")
    with pytest.raises(UsageError, match="is neither the folder of a run nor an agent"):
        load_player("x" * 300)
    with pytest.raises(UsageError, match=r"is not the folder of a run"):
        load_player(str(tmp_path))
