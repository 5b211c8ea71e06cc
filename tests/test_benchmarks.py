"""Every benchmark runs at a tiny size, and the numbers it writes agree with each other. No speed is asserted."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import mujoco
import numpy as np
import pytest

from metarl.env_runner.mujoco_batch import MujocoBatch
from metarl.env_runner.mujoco_engine import stop_timers
from metarl.meta_rl.registry import ALGOS, find_algorithm
from metarl.meta_rl.rl2_config import RL2Config
from metarl.tasks.registry import make_tasks

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
SECONDS = 120
# Thread pools that spin at barriers make tiny work slow where other tests have the cores.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}


def run_benchmark(script: str, folder: Path, *flags: str) -> dict[str, Any]:
    """The JSON report of a benchmark, run as a user runs it."""
    out = folder / "reports" / "report.json"
    command = [sys.executable, str(BENCHMARKS / script), *flags, "--out", str(out)]
    environment = {**os.environ, **ONE_THREAD}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(out.read_text())
    assert set(report) == {"name", "rows", "notes", "versions", "hardware"}
    assert {"python", "torch", "numpy"} <= set(report["versions"])
    assert report["hardware"]["cores"] >= 1
    header = "| " + " | ".join(report["rows"][0]) + " |"
    assert header in done.stdout.splitlines()
    assert [path.name for path in folder.iterdir()] == ["reports"]
    return report


def test_memory(tmp_path: Path) -> None:
    rows = run_benchmark("memory.py", tmp_path, "--quick")["rows"]
    ours = ["ssm", "StateSpaceModel"]
    peers = ["nn.LSTM", "nn.GRU", "transformer"]
    learning = {*ours, "linear_scan", "matmuls", "layer matmuls", *peers}
    stepping = {*ours, "matmuls", "layer matmuls", *peers, "nn.LSTMCell", "nn.GRUCell"}
    by_work: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    for row in rows:
        by_work.setdefault((row["work"], row["T"]), {})[row["side"]] = row
    assert {work: set(sides) for work, sides in by_work.items()} == {
        ("forward and backward", 8): learning,
        ("forward and backward", 16): learning,
        ("one step", 1): stepping,
    }
    # A quick run takes one turn, so that the median of the ratios is the ratio of the medians.
    for sides in by_work.values():
        for row in sides.values():
            assert row["ms"] > 0
            assert row["this / matmuls"] == pytest.approx(row["ms"] / sides["matmuls"]["ms"])
            for peer in peers:
                assert row[f"{peer} / this"] == pytest.approx(sides[peer]["ms"] / row["ms"])


def test_maml(tmp_path: Path) -> None:
    report = run_benchmark("maml.py", tmp_path, "--quick")
    problems: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in report["rows"]:
        form = (row["tasks"], row["samples"], row["inner steps"], row["order"])
        problems.setdefault(form, []).append(row)
    peers = [peer for peer in ("higher", "torchopt") if find_spec(peer) is not None]
    compiled = ["MetaMAML, compile"] if shutil.which("g++") else []
    mlps = [("mlp", side) for side in ("MetaMAML", *compiled, *peers, "autograd loop", "matrix products alone")]
    recomputed = [("mlp", "MetaMAML"), ("mlp", "MetaMAML, recompute")]
    assert {form: [(row["model"], row["side"]) for row in rows] for form, rows in problems.items()} == {
        (3, "4", 1, "second"): mlps,
        (2, "3 x 2", 1, "second"): [("ssm", "MetaMAML"), ("lstm", "MetaMAML"), ("lstm", "autograd loop")],
        **{(2, "4", steps, "second"): recomputed for steps in (1, 10)},
    }
    for rows in problems.values():
        for row in rows:
            assert row["ms"] > 0
            assert row["this / first"] == pytest.approx(row["ms"] / rows[0]["ms"])  # a quick run takes one turn
            limit = row["side"] == "matrix products alone"
            assert row["difference"] is None if limit else row["difference"] < 1e-5
            unmeasured = limit or row["side"] == "MetaMAML, compile"
            assert (row["peak MB"] is None) == (unmeasured or sys.platform != "linux")
    gone = [note for note in report["notes"] if "is missing: " in note]
    assert len(peers) + len(compiled) + len(gone) == 3


def test_maml_stops_at_other_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    maml = importlib.import_module("maml")
    exact = maml.PEERS[maml.LOOP]
    monkeypatch.setitem(maml.PEERS, maml.LOOP, lambda *args: [1.001 * part for part in exact(*args)])
    problem = maml.Problem(2, (3,), 4, 1, False)
    with pytest.raises(ArithmeticError, match=r"MetaMAML.* differs from the autograd loop by 0\.001 "):
        maml.measure(problem, [maml.Side("mlp", maml.OURS)], 1, "cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_peak_memory_counts_what_is_given_back() -> None:
    """In a process of its own: one that has worked before gives and takes memory for reasons of its own."""
    program = """
from common import peak_memory

def twice():
    for size in (100_000_000, 60_000_000):
        assert len(b"x" * size) == size

print(peak_memory(twice))
"""
    environment = {**os.environ, "PYTHONPATH": str(BENCHMARKS)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=SECONDS, check=True
    )
    assert int(done.stdout) == pytest.approx(100_000_000, rel=0.05)


def test_adaptation(tmp_path: Path) -> None:
    rows = run_benchmark("adaptation.py", tmp_path, "--quick")["rows"]
    by_model: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        by_model.setdefault(row["model"], {})[row["side"]] = row
    assert len(by_model) == 6
    for sides in by_model.values():
        assert {side: row["limit"] for side, row in sides.items()} == {
            "forward": None,
            "plain step": None,
            "update_step": 1.3,
            "observe between updates": 1.2,
            "observe, all": None,
            "predict": None,
        }
        for row in sides.values():
            assert row["ratio"] == pytest.approx(row["µs"] / sides[row["against"]]["µs"])


def test_coordinator(tmp_path: Path) -> None:
    rows = run_benchmark("coordinator.py", tmp_path, "--quick", "--repeats", "1")["rows"]
    assert [(row["worlds"], row["agents"], row["rows"]) for row in rows] == [
        (worlds, agents, 2) for worlds in ("apart", "shared") for agents in ("2 policy", "2 planner")
    ]
    for row in rows:
        assert row["sequential / parallel"] == pytest.approx(row["sequential s"] / row["parallel s"])


def test_end_to_end(tmp_path: Path) -> None:
    report = run_benchmark("end_to_end.py", tmp_path, "--quick")
    sides = [(row["side"], row["rows"]) for row in report["rows"]]
    has_peer = find_spec("sb3_contrib") is not None
    peers = [("RecurrentPPO", 8), ("RecurrentPPO", 2)] if has_peer else []
    assert sides == [("metarl RL2", 8), ("physics limit", 8), *peers]
    # One line says why the peer is not there, or with which versions it ran.
    mentions = "ran with" if has_peer else "is missing"
    assert sum(note.startswith(f"RecurrentPPO {mentions}") for note in report["notes"]) == 1
    ours, limit = report["rows"][:2]
    for row in report["rows"]:
        phases = ("simulate",) if row is limit else ("act", "simulate", "observe", "learn", "rest")
        assert all(row[f"{phase} s"] > 0 for phase in phases)
        assert sum(row[f"{phase} s"] for phase in phases) == pytest.approx(20 * row["rows"] / row["env-steps/s"])
        assert sum(row[f"{phase} %"] for phase in phases) == pytest.approx(100)
        assert row["this / limit"] == pytest.approx(row["env-steps/s"] / limit["env-steps/s"])
        assert row["ours / this"] == pytest.approx(ours["env-steps/s"] / row["env-steps/s"])
    assert limit["learn s"] is None


def test_a_turn_of_training_is_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    said, config = importlib.import_module("end_to_end").__doc__, RL2Config()
    assert f"{config.update_steps} steps of every row on" in said
    assert f"{config.update_epochs} epochs of {config.num_minibatches} minibatches" in said


def test_worlds(tmp_path: Path) -> None:
    flags = ("--worlds", "halfcheetah-vel", "--rows", "2", "--steps", "5", "--repeats", "1")
    (row,) = run_benchmark("worlds.py", tmp_path, *flags)["rows"]
    assert (row["worlds"], row["rows"]) == ("halfcheetah-vel", 2)
    present = ["limit", "Gymnasium sync", "Gymnasium async"] + (["EnvPool"] if find_spec("envpool") else [])
    for side in present:
        assert row[f"ours / {side}"] == pytest.approx(row["ours"] / row[side])
    assert (row["EnvPool"] is None) == ("EnvPool" not in present)


def test_processes_of_a_peer_begin_with_the_timers_that_mujoco_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    worlds = importlib.import_module("worlds")
    durations = []

    class Forking:
        def __init__(self, constructors: Any, autoreset_mode: Any) -> None:
            model = mujoco.MjModel.from_xml_string("<mujoco/>")
            data = mujoco.MjData(model)
            mujoco.mj_step(model, data)
            durations.append(data.timer[mujoco.mjtTimer.mjTIMER_STEP].duration)

        def reset(self, seed: int) -> None: ...

        step = close = reset

    monkeypatch.setattr(worlds, "AsyncVectorEnv", Forking)
    stop_timers()
    with ExitStack() as cleanup:
        worlds.gymnasium_side("async", "HalfCheetah-v5", np.zeros((1, 1, 6), np.float32), cleanup)
        cleanup.pop_all()
    stop_timers()
    assert durations[0] > 0


def test_peer_world_pays_what_ours_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sb3_contrib")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    peer = importlib.import_module("recurrent_ppo")
    tasks = make_tasks("halfcheetah-vel").train[:1]
    ours = cast("MujocoBatch", make_tasks("halfcheetah-vel").make_env(tasks))
    ours.reset(seed=0)
    theirs = peer.make_world(tasks[0]["velocity"], control_cost=0.05, horizon=3)
    theirs.reset(seed=0)
    theirs.unwrapped.set_state(ours.qpos[0], ours.qvel[0])
    generator = np.random.default_rng(0)
    for step in range(3):
        action = generator.uniform(-1, 1, 6).astype(np.float32)
        observation, reward, terminated, truncated, _ = theirs.step(action)
        our_observation, our_reward, *_ = ours.step(action[None])
        np.testing.assert_allclose(observation, our_observation[0], rtol=1e-5, atol=1e-6)
        assert reward == pytest.approx(our_reward[0], rel=1e-5)
        assert (terminated, truncated) == (False, step == 2)


@pytest.mark.skipif(find_spec("metaworld") is None, reason="needs metaworld")
def test_meta_world(tmp_path: Path) -> None:
    flags = ("--tasks", "metaworld-ml1-reach", "--rows", "2", "--steps", "3", "--repeats", "1")
    (row,) = run_benchmark("metaworld.py", tmp_path, *flags)["rows"]
    sides = ("official, workers", "official, one process", "limit")
    assert all(row[side] > 0 for side in sides)
    assert [row[f"ours / {side}"] for side in sides] == pytest.approx([row["ours"] / row[side] for side in sides])


def test_clock_counts_time_once_and_for_the_innermost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    clock = importlib.import_module("clock")
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)

    class Loop:
        def outer(self) -> None:
            wait(1)
            self.inner()
            wait(2)

        def inner(self) -> None:
            wait(5)

        def run(self) -> None:
            wait(10)
            self.outer()
            self.inner()

    def wait(seconds: float) -> None:
        nonlocal now
        now += seconds

    loop, watch = Loop(), clock.PhaseClock()
    watch.watch(loop, "outer", "act")
    watch.watch(loop, "inner", "learn")
    for _ in range(2):
        assert watch.split(loop.run) == {"act": 3, "learn": 10, "rest": 10}


def test_point_goal(tmp_path: Path) -> None:
    rows = run_benchmark("point_goal.py", tmp_path, "--quick")["rows"]
    assert [row["algo"] for row in rows] == [algo for algo in ALGOS if "reward_model" not in find_algorithm(algo).knows]
    for row in rows:
        assert {"shot 0", "shot 1", "shot 3", "improves", "success"} <= set(row)
        assert row["improves"] in {"yes", "no"}
        assert 0 <= row["success"] <= 1
