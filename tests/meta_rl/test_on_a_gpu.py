"""Every algorithm lives on a GPU, and there learns what it learns on the CPU: same seeds, same numbers but rounding."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metarl.adaptation.adaptation_agent import AdaptationAgent
from metarl.core import memory as memories
from metarl.core.agent import Agent
from metarl.core.memory import METHODS, Memory, MemoryConfig
from metarl.core.task import Task
from metarl.env_runner.trial import run_trial
from metarl.meta_rl.registry import ALGOS, find_algorithm
from metarl.meta_rl.rl2_agent import RL2Agent, RL2Config
from metarl.tasks.registry import make_tasks

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")

SMALL: dict[str, dict[str, Any]] = {
    "rl2": {"update_steps": 12, "update_epochs": 2, "num_minibatches": 2},
    "grbal": {"model_updates": 3, "random_updates": 1, "candidates": 8, "horizon": 3, "past": 4, "future": 4},
}
FAMILY = ("point-goal", "halfcheetah-cripple")
"""Of agents with a policy, and of those that plan."""
OF_POLICIES: dict[str, Any] = {"trial_rows": 2}
BY_TRIAL = ("kl", "step_fraction")
"""What a line search ends at: whether a step is just short enough, rounding decides."""
CASES = [
    *[(algo, method) for algo in ("rl2", "maml") for method in METHODS],
    *[(algo, "ssm") for algo in ALGOS if algo not in ("rl2", "maml", "grbal")],
    *[("grbal", method) for method in ("mlp", "ssm", "gru")],
]


def make_worlds(algo: str) -> tuple[Any, list[Task]]:
    """Four worlds, and the tasks in them."""
    tasks = make_tasks(FAMILY[algo == "grbal"])
    held = [tasks.train[row % 3] for row in range(4)]
    return tasks.make_env(held, seed=0), held


def make_agent(algo: str, method: str, device: str, env: Any) -> Agent:
    algorithm = find_algorithm(algo)
    spaces = env.single_observation_space, env.single_action_space
    config = algorithm.config_class(**{**algorithm.variant, **SMALL.get(algo, OF_POLICIES)})
    family = make_tasks(FAMILY[algo == "grbal"])
    known = {name: getattr(family, name) for name in algorithm.knows}
    memory = MemoryConfig(method, width=8, context=32)
    return algorithm.make(*spaces, config, memory, num_updates=4, seed=0, device=device, **known)


def learn(
    algo: str, method: str, device: str, change: Callable[[Any], None] | None = None
) -> tuple[list[dict[str, float]], Agent]:
    """What two updates report, and the agent."""
    env, held = make_worlds(algo)
    agent = make_agent(algo, method, device, env)
    if change is not None:
        change(agent)
    agent.training = agent.explore = True
    by_steps = algo in ("rl2", "grbal")
    rounds: dict[str, Any] = {"steps": 12} if by_steps else {"shots": 1, "episodes": 1}
    renew, trial = np.array([True, False, True, False]), None
    reports = []
    for _ in range(2):
        # Trials counted in steps go on in half of the rows, whose memories are then not empty when learning begins.
        kept = {"renew": renew, "previous": trial} if trial is not None and by_steps else {"seed": 0}
        trial = run_trial(agent, env, held, **rounds, **kept)
        reports.append(dict(agent.update()))
    env.close()
    return reports, agent


@pytest.mark.parametrize(("algo", "method"), CASES)
def test_on_a_gpu_an_agent_learns_what_it_learns_on_the_cpu(algo: str, method: str) -> None:
    on_cpu, _ = learn(algo, method, "cpu")
    on_gpu, agent = learn(algo, method, "cuda")
    assert agent.device.type == "cuda"
    assert on_gpu[0].keys() == on_cpu[0].keys()
    for name in on_cpu[0].keys() - ({*BY_TRIAL} if "step_fraction" in on_cpu[0] else set()):
        value = on_cpu[0][name]
        assert on_gpu[0][name] == pytest.approx(value, rel=1e-2, abs=1e-3, nan_ok=True), name
    state = {name: value.cuda() for name, value in agent.state_dict().items()}  # as torch.load maps them
    env, _ = make_worlds(algo)
    restored = [make_agent(algo, method, device, env) for device in ("cpu", "cuda")]
    env.close()
    for again in restored:
        again.load_state_dict(state)
        for name, value in again.state_dict().items():
            assert torch.equal(value.cpu(), state[name].cpu()), name


@pytest.mark.parametrize("method", METHODS)
def test_what_is_recorded_is_what_would_be_sent_operation_by_operation(method: str) -> None:
    recorded, replaying = learn("rl2", method, "cuda")
    sent, plain = learn("rl2", method, "cuda", lambda agent: setattr(agent, "_programs", None))
    assert recorded == [pytest.approx(report, rel=1e-4, abs=1e-6, nan_ok=True) for report in sent]
    for name, value in replaying.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("method", METHODS)
def test_on_another_gpu_than_the_current_one_an_agent_learns_the_same(method: str) -> None:
    first, _ = learn("rl2", method, "cuda:0")
    second, agent = learn("rl2", method, "cuda:1")
    assert (torch.cuda.current_device(), agent.device.index) == (0, 1)
    assert second == [pytest.approx(report, rel=1e-4, abs=1e-6, nan_ok=True) for report in first]


@pytest.mark.parametrize("method", METHODS)
def test_on_a_gpu_learning_begins_with_the_probabilities_that_acting_had(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SMALL, "rl2", {"update_steps": 12, "update_epochs": 1, "num_minibatches": 1})
    reports, _ = learn("rl2", method, "cuda")
    assert [report["kl"] for report in reports] == pytest.approx([0, 0], abs=1e-6)


def test_on_a_gpu_an_agent_that_trains_acts_as_one_that_is_measured() -> None:
    """Of the size that is trained, after updates, over more than one episode: training replays, measuring does not."""
    tasks = make_tasks("halfcheetah-vel")
    held = [tasks.train[row] for row in range(64)]
    env, trial = tasks.make_env(held, seed=0), None
    spaces = env.single_observation_space, env.single_action_space
    agent = RL2Agent(*spaces, RL2Config(update_steps=50), MemoryConfig(), device="cuda")
    agent.training = agent.explore = True
    for update in range(3):
        renew = np.arange(64) % 4 == 0 if update else None
        trial = run_trial(agent, env, held, steps=50, seed=None if update else 0, renew=renew, previous=trial)
        agent.update()
    agent.explore = False
    measured = copy.deepcopy(agent)
    measured.training = False
    for each in (agent, measured):
        each.begin_trial(64)
    observation, _ = env.reset(seed=1)
    for _ in range(250):
        actions = [each.act(observation) for each in (agent, measured)]
        np.testing.assert_allclose(*actions, atol=1e-4)
        following, reward, terminated, truncated, _ = env.step(actions[0])
        for each in (agent, measured):
            each.observe(observation, actions[0], reward, terminated, truncated, following)
        observation = following
    env.close()


class Last(Memory):
    """Adds what came one step before; it has no parameters, which would say where it is."""

    def __init__(self, config: MemoryConfig) -> None:
        super().__init__()
        self.state_shape = (config.width,)

    def init_state(self, num_rows: int) -> Tensor:
        return torch.zeros(num_rows, *self.state_shape)

    def forward(self, x: Tensor, state: Tensor | None = None, starts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        before = torch.cat([x.new_zeros(x.shape[1:])[None] if state is None else state[None], x[:-1]])
        return x + (before if starts is None else before * (1 - starts.to(x.dtype))[..., None]), x[-1]


@pytest.mark.parametrize("algo", ["rl2", "maml", "grbal"])
def test_on_a_gpu_a_memory_without_parameters_goes_along(algo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(memories._METHODS, "last", Last)
    (on_cpu, _), (on_gpu, _) = (learn(algo, "last", device) for device in ("cpu", "cuda"))
    for name in on_cpu[0].keys() - {*BY_TRIAL}:
        assert on_gpu[0][name] == pytest.approx(on_cpu[0][name], rel=1e-2, abs=1e-3, nan_ok=True), name


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda agent: pickle.loads(pickle.dumps(agent))])
def test_a_copy_of_an_agent_replays_its_own_parameters(copied: Callable[[Any], Any]) -> None:
    _, agent = learn("rl2", "ssm", "cuda")
    other = copied(agent)
    with torch.no_grad():
        for parameter in other.policy.parameters():
            parameter.zero_()
    env, _ = make_worlds("rl2")
    observation, _ = env.reset(seed=0)
    env.close()
    for each in (agent, other):
        each.begin_trial(4)
        each.act(observation)
    assert agent._step.output.abs().sum() > 0
    assert other._step.output.abs().sum() == 0


@pytest.mark.parametrize(("algo", "method"), [("rl2", "ssm"), ("maml", "mlp"), ("grbal", "ssm")])
def test_on_a_gpu_an_agent_adapts_online(algo: str, method: str) -> None:
    _, agent = learn(algo, method, "cuda")
    env, _ = make_worlds(algo)
    adapting = AdaptationAgent.from_agent(agent)
    adapting.begin_trial(4)
    observation, _ = env.reset(seed=0)
    for _ in range(6):
        action = adapting.act(observation)
        following, reward, terminated, truncated, _ = env.step(action)
        adapting.observe(observation, action, reward, terminated, truncated, following)
        observation = following
    adapting.adapt()
    env.close()
    assert np.isfinite(adapting.act(observation)).all()
    again = AdaptationAgent.from_agent(agent)
    again.load_state_dict({name: value.cuda() for name, value in adapting.state_dict().items()})
    np.testing.assert_allclose(again.act(observation), adapting.act(observation), atol=1e-4)
