"""The doctor's findings agree with the machine, and nothing that is missing stops it."""

from __future__ import annotations

import os
import subprocess
import sys
from email.message import Message
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import mujoco
import numpy as np
import pytest
import torch

from metarl.core.threads import torch_threads
from metarl.experiments import doctor, graphics


def quick_probe(monkeypatch: pytest.MonkeyPatch, **scripts: str) -> None:
    """Let one backend a keyword be probed, by a script in place of a frame."""
    monkeypatch.setattr(graphics, "RENDERING_BACKENDS", {sys.platform: tuple(scripts)})
    monkeypatch.setattr(graphics, "RENDERING_NAMES", {name: name for name in scripts})
    choose = "\n".join(f"if os.environ['MUJOCO_GL'] == {name!r}:\n    {script}" for name, script in scripts.items())
    monkeypatch.setattr(graphics, "PROBE", f"import os, time\n{choose}")


@pytest.mark.skipif(sys.platform != "linux", reason="counts processors by Linux's means")
def test_report_agrees_with_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_probe(monkeypatch, fine="pass")
    rows = dict(doctor.report())
    assert rows["python"].startswith(".".join(map(str, sys.version_info[:3])))
    assert rows["numpy"] == np.__version__
    assert rows["torch"] == metadata.version("torch")
    assert rows["mujoco"] == metadata.version("mujoco")
    assert rows["cores"].split()[0] == str(len(os.sched_getaffinity(0)))
    assert rows["threads"].startswith(f"torch {torch.get_num_threads()}, numba ")
    assert float(rows["memory"].removesuffix(" GiB")) > 0.5
    assert "extra dev" in rows


def test_the_threads_are_only_looked_at() -> None:
    """Starting numba's, where they are OpenMP's, would set torch's number as well."""
    script = "import torch; from metarl.experiments.doctor import hardware; hardware(); print(torch.get_num_threads())"
    limited = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "2"}
    ran = subprocess.run([sys.executable, "-c", script], env=limited, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "1"


def test_the_probe_draws_a_frame_of_a_valid_model(monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = MagicMock(spec=mujoco.Renderer)
    monkeypatch.setattr(mujoco, "Renderer", lambda model, height, width: renderer)
    exec(graphics.PROBE, {})
    drawn = renderer.__enter__.return_value
    (data,) = drawn.update_scene.call_args.args
    assert isinstance(data, mujoco.MjData)
    drawn.render.assert_called_once_with()


def test_a_backend_that_mujoco_does_not_know_is_no_rendering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphics, "RENDERING_BACKENDS", {sys.platform: ("no-such-backend",)})
    monkeypatch.setattr(graphics, "PROBE_SECONDS", 60.0)
    assert dict(doctor.report())["rendering"].startswith("none, so no videos; ")


def test_working_backends_are_named_beside_one_that_aborts_and_one_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphics, "PROBE_SECONDS", 1.0)
    quick_probe(monkeypatch, aborts="os.abort()", hangs="time.sleep(60)", draws="pass")
    assert dict(doctor.report())["rendering"] == "draws (MUJOCO_GL=draws)"


def test_probes_end_with_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_probe(monkeypatch, hangs="time.sleep(60)")
    with graphics.rendering_probes() as probes:
        assert probes["hangs"].poll() is None
    assert probes["hangs"].returncode is not None


def test_gpus_are_listed_with_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = [SimpleNamespace(name="Small", total_memory=8 * 2**30), SimpleNamespace(name="Big", total_memory=80 * 2**30)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: gpus[index])
    assert doctor._gpu() == "Small with 8.0 GiB, Big with 80.0 GiB"


def test_a_build_without_gpu_support_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert doctor._gpu() == "none that torch can use (it is a CPU build)"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert doctor._gpu() == "none that torch can use (it is a build for CUDA 13.0)"


def test_a_missing_extra_comes_with_its_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = Message()
    for field, value in (
        ("Requires-Dist", "gymnasium[classic-control]>=1.1"),
        ("Requires-Dist", "tomli; python_version < '3'"),
        ("Provides-Extra", "videos"),
        ("Requires-Dist", "no-such-package; extra == 'videos'"),
        ("Requires-Dist", "not-for-this-python; python_version < '3' and extra == 'videos'"),
        ("Provides-Extra", "dev"),
        ("Requires-Dist", 'pytest>=8; extra == "dev"'),
    ):
        declared[field] = value
    monkeypatch.setattr(metadata, "metadata", lambda _: declared)
    required, extras = doctor._requirements()
    assert required == ["gymnasium"]
    assert extras == {"videos": ["no-such-package"], "dev": ["pytest"]}
    assert doctor._extra("dev", extras["dev"]) == "installed"
    line = "without no-such-package; to have all:  pip install 'metarl-agent-framework[videos]'"
    assert doctor._extra("videos", extras["videos"]) == line


def test_a_package_that_is_not_installed_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "DISTRIBUTION", "no-such-distribution")
    quick_probe(monkeypatch, fine="pass")
    rows = dict(doctor.report())
    assert rows["metarl"] == "no-such-distribution is not installed here: run  pip install -e ."
    assert "torch" not in rows


def test_busy_cores_are_told_where_threads_would_wait_for_each_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr(doctor, "CORE_TIMES", tmp_path / "stat")
    with torch_threads(2):
        assert doctor.crowding() is None

    def told(idle: int, waiting: int, busy: int) -> str | None:
        """What is said where so many ticks pass in a moment."""
        (tmp_path / "stat").write_text("cpu  50 0 50 800 100 0 0 0 0 0\ncpu0 1 2 3\n")
        later = f"cpu  {50 + busy} 0 50 {800 + idle} {100 + waiting} 0 0 0 9 9\n"
        monkeypatch.setattr("time.sleep", lambda seconds: (tmp_path / "stat").write_text(later))
        return doctor.crowding()

    with torch_threads(2):
        assert told(60, 20, 120) == (
            "others keep 4.8 of 8 cores busy, and beside them a run is several times slower than it needs to be: start "
            "each with OMP_NUM_THREADS=1"
        )
        assert told(80, 20, 100) is None
    with torch_threads(1):
        assert told(0, 0, 200) is None
