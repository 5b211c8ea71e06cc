from __future__ import annotations

import pytest

from metarl.experiments.protocol import Protocol
from metarl.experiments.run_config import RunConfig
from metarl.tasks import make_tasks


def test_trials_of_a_task_are_repeated_unless_it_is_asked_how_often() -> None:
    family, config = make_tasks("point-goal"), RunConfig(task_dist="point-goal", seed=3)
    assert config.protocol(family, family.test) == Protocol("standard", repeats=4, seed=3)
    assert config.protocol(family, family.test[:2]).repeats == 16
    asked = RunConfig(task_dist="point-goal", few_shot=(1, 5), adaptation_episodes=3, evaluation_episodes=2, repeats=7)
    assert asked.protocol(family, family.test) == Protocol("few-shot", (1, 5), 3, 2, repeats=7)


def test_meta_world_is_measured_as_its_authors_do() -> None:
    """10 episodes to adapt in and 3 that count, once for each of many goals; by shots it is one round as everywhere."""
    pytest.importorskip("metaworld")
    family = make_tasks("metaworld-ml1-reach")
    assert RunConfig().protocol(family, family.test) == Protocol("standard", (), 10, 3, repeats=1, interval="tasks")
    few_shot = RunConfig(few_shot=(1, 5)).protocol(family, family.test)
    assert few_shot == Protocol("few-shot", (1, 5), repeats=1, interval="tasks")
    asked = RunConfig(adaptation_episodes=5, evaluation_episodes=2, repeats=7).protocol(family, family.test)
    assert asked == Protocol("standard", (), 5, 2, repeats=7, interval="tasks")
    # One goal stands for no environment: its trials are repeated, as those of few tasks are.
    assert RunConfig().protocol(family, family.test[:1]) == Protocol("standard", (), 10, 3, repeats=32)
