from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import gymnasium
import pytest
import torch

from metarl.core.agent import Agent
from metarl.core.errors import UsageError
from metarl.core.memory import MemoryConfig
from metarl.experiments.run import Run
from metarl.experiments.run_config import RunConfig
from metarl.experiments.run_flags import plan_run
from metarl.meta_rl import registry
from metarl.meta_rl.registry import ALGOS, find_algorithm
from metarl.tasks.reward_model import RewardModel


@pytest.mark.parametrize("name", ALGOS)
def test_every_algorithm_makes_an_agent_from_its_config(name: str) -> None:
    algorithm = find_algorithm(name)
    assert is_dataclass(algorithm.config_class)
    assert fields(algorithm.config_class)
    space = gymnasium.spaces.Box(-1.0, 1.0, (3,))
    family = {"reward_model": RewardModel(lambda *step: step[0].sum(-1)), "reward_scale": 0.5}
    known = {name: family[name] for name in algorithm.knows}
    agent = algorithm.make(
        space, space, algorithm.config(), algorithm.memory, num_updates=10, seed=1, device="cpu", **known
    )
    assert isinstance(agent, Agent)
    assert algorithm.num_envs % agent.trial_rows == 0


@pytest.mark.parametrize("name", ["maml", "rl2", "grbal"])
def test_to_make_an_agent_leaves_the_global_random_streams_alone_on_every_device(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    torch.manual_seed(3)
    assert seeded == [3], "or torch seeds GPUs in another way, and this shows nothing"
    before = torch.get_rng_state()
    space = gymnasium.spaces.Box(-1.0, 1.0, (3,))
    known = {"reward_model": RewardModel(lambda *step: step[0].sum(-1))} if name == "grbal" else {}
    algorithm = find_algorithm(name)
    algorithm.make(space, space, algorithm.config(), algorithm.memory, num_updates=10, seed=1, device="cpu", **known)
    assert seeded == [3]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ALGOS)
def test_settings_are_flags_of_their_own_and_say_how_long_an_update_is_where_compiling_asks(name: str) -> None:
    algorithm = find_algorithm(name)
    others = {each.name for config in (RunConfig, MemoryConfig) for each in fields(config)}
    assert not others & {each.name for each in fields(algorithm.config_class)}
    assert not algorithm.compiles or algorithm.config().row_steps(10) >= 10


def test_variants_differ_from_maml_in_what_their_name_says() -> None:
    maml = find_algorithm("maml").config()
    differences = {
        name: {
            field.name: getattr(other, field.name)
            for field in fields(maml)
            if getattr(other, field.name) != getattr(maml, field.name)
        }
        for name in ALGOS
        if isinstance(other := find_algorithm(name).config(), type(maml))
    }
    assert differences == {
        "maml": {},
        "promp": {"outer": "ppo"},
        "fomaml": {"first_order": True},
        "reptile": {"reptile": True, "outer": "ppo"},
        "anil": {"adapt": "head"},
        "metasgd": {"learn_rates": True},
    }


def test_a_single_environment_has_defaults_of_its_own() -> None:
    rl2 = find_algorithm("rl2")
    assert rl2.config(single=True).update_steps == 128 != rl2.config().update_steps


def test_gradient_agents_train_in_fewer_rows_in_metaworld_unless_asked() -> None:
    maml, rl2 = find_algorithm("maml"), find_algorithm("rl2")
    assert (maml.rows("metaworld-ml10"), maml.config("metaworld-ml10").trial_rows) == (40, 5)
    assert (maml.rows("halfcheetah-vel"), maml.config("halfcheetah-vel").trial_rows) == (200, 10)
    assert rl2.rows("metaworld-ml10") == rl2.num_envs
    assert rl2.config("metaworld-ml10") == rl2.config()
    for flags, expected in (("", (40, 5)), ("--num-envs 200 --trial-rows 10", (200, 10))):
        run = plan_run(["--task-dist", "metaworld-ml1-reach", *flags.split()])
        assert (run.config.num_envs, run.algorithm.trial_rows) == expected


def test_an_own_algorithm_is_known_to_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(registry, "_ALGORITHMS", dict(registry._ALGORITHMS))
    registry.register_algorithm("mine", replace(find_algorithm("rl2"), num_envs=2))
    flags = f"--algo mine --task-dist point-goal --clip 0.3 --method mlp --output-dir {tmp_path}"
    run = Run.load(plan_run(flags.split()).prepare_folder().folder)
    assert (run.config.algo, run.config.num_envs, run.algorithm.clip) == ("mine", 2, 0.3)
    with pytest.raises(UsageError, match="algo 'rl2' is registered already; choose another name"):
        registry.register_algorithm("rl2", find_algorithm("maml"))


def test_an_unknown_algorithm_names_the_known() -> None:
    with pytest.raises(UsageError, match=r"unknown algo 'rl3': choose from .*rl2.*did you mean 'rl2'"):
        find_algorithm("rl3")
