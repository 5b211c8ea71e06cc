"""What an install brings: the wheel claims one name, the editable install also the names in compat/."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from email.message import Message
from email.parser import Parser
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from metarl import _HOMES as HOMES

ROOT = Path(__file__).parents[1]

PUBLIC_NAMES = (
    "core.agent",
    "core.coordinator",
    "core.ssm",
    "meta_rl.meta_maml",
    "meta_rl.maml_agent",
    "adaptation.test_time_adaptation",
    "adaptation.adaptation_agent",
    "env_runner.environment",
)
"""Module names promised outside the package, each from the day that its module exists."""


def run_python(python: Path | str, *arguments: str, cwd: Path, path: Sequence[Path] = (), timeout: float = 120) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    done = subprocess.run(
        [str(python), *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    options = ("--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", str(folder))
    run_python(sys.executable, "-m", "pip", "wheel", *options, str(ROOT), cwd=folder)
    (built,) = folder.glob("*.whl")
    return zipfile.ZipFile(built)


@pytest.fixture(scope="module")
def editable_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a fresh environment with an editable install; all else it borrows from the running one."""
    folder = tmp_path_factory.mktemp("editable")
    builder = venv.EnvBuilder(symlinks=os.name != "nt")
    python = Path(builder.ensure_directories(folder).env_exe)
    builder.create(folder)
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site_packages = Path(run_python(python, "-c", where, cwd=folder).strip())
    # A .pth file inside a folder named by another .pth file is not read: the borrowed packages are visible, the
    # editable install of the environment that runs the tests is not.
    borrowed = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    (site_packages / "borrowed.pth").write_text("\n".join(borrowed))
    options = ("--no-build-isolation", "--no-deps", "--no-index", "--ignore-installed")
    run_python(python, "-m", "pip", "install", *options, "--editable", str(ROOT), cwd=folder)
    return python


def fields(wheel: zipfile.ZipFile) -> Message:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return Parser().parsestr(wheel.read(name).decode())


def requirements(wheel: zipfile.ZipFile) -> list[Requirement]:
    return [Requirement(line) for line in fields(wheel).get_all("Requires-Dist")]


def test_wheel_holds_only_metarl(wheel: zipfile.ZipFile) -> None:
    top_level = {name.split("/")[0] for name in wheel.namelist()}
    assert {name for name in top_level if not name.endswith(".dist-info")} == {"metarl"}


def test_wheel_ships_types_license_and_command(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    assert "metarl/py.typed" in names
    assert {f"metarl/experiments/templates/report.{kind}" for kind in ("html", "css", "js")} <= set(names)
    assert any(name.endswith("/LICENSE") for name in names)
    (entry_points,) = (name for name in names if name.endswith("entry_points.txt"))
    assert "metarl = metarl.cli:main" in wheel.read(entry_points).decode()


def test_public_names_have_their_types_from_where_they_live() -> None:
    tree = ast.parse((ROOT / "src/metarl/__init__.py").read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    typed = {alias.asname: node.module for node in imports for alias in node.names if alias.asname}
    assert typed == HOMES


USER = """
import gymnasium
import numpy as np

import metarl


class Own(metarl.MetaMAMLAgent):
    pass


agent: metarl.Agent = metarl.load_agent("runs/FOLDER")
world = gymnasium.make("HalfCheetah-v5")
observation, _ = world.reset(seed=0)
after, reward, terminated, truncated, _ = world.step(agent.act(observation))
agent.observe(observation, 0.5, reward, terminated, truncated, after, active=True)
metarl.Choice(np.linspace(0.0, 1.0, 5))
metarl.AgentCoordinator().run_step_all([observation]).shape  # type: ignore[attr-defined]
metarl.Trianer  # type: ignore[attr-defined]
"""


@pytest.mark.nightly
def test_a_type_checker_knows_the_public_names(tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(USER)
    run_python(sys.executable, "-m", "mypy", "--strict", "--config-file=", "user.py", cwd=tmp_path, timeout=600)


def test_the_systems_are_those_of_the_simulator_and_are_told_first(wheel: zipfile.ZipFile) -> None:
    declared, of_simulator = (
        {each for each in classifiers if each.startswith("Operating System")}
        for classifiers in (fields(wheel).get_all("Classifier"), metadata.metadata("mjbatch").get_all("Classifier"))
    )
    assert declared == of_simulator
    for page in ("README.md", "docs/quickstart.md"):
        assert "Linux, or macOS on Apple silicon" in (ROOT / page).read_text()


def test_wheel_ships_every_trained_agent(wheel: zipfile.ZipFile) -> None:
    here = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src/metarl/pretrained").glob("*/*")}
    assert {path.rpartition("/")[2] for path in here} == {"card.json", "config.json", "weights.safetensors"}
    assert {name for name in wheel.namelist() if name.startswith("metarl/pretrained/")} == here


def test_the_source_archive_holds_all_that_git_tracks(tmp_path: Path) -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    run_python(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path), cwd=ROOT)
    (built,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(built) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert {name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()} <= held


def test_compat_holds_every_public_name_that_exists() -> None:
    compat = ROOT / "compat"
    re_exported = {
        ".".join(path.relative_to(compat).with_suffix("").parts)
        for path in compat.rglob("*.py")
        if path.name != "__init__.py"
    }
    built = {name for name in PUBLIC_NAMES if (ROOT / "src/metarl" / (name.replace(".", "/") + ".py")).is_file()}
    assert re_exported == built


def test_editable_install_gives_the_same_objects_under_both_names(editable_python: Path, tmp_path: Path) -> None:
    names = [name for name in PUBLIC_NAMES if (ROOT / "compat" / (name.replace(".", "/") + ".py")).is_file()]
    script = """
import importlib, sys
for name in sys.argv[1:]:
    short, full = importlib.import_module(name), importlib.import_module("metarl." + name)
    own = [key for key, value in vars(full).items() if getattr(value, "__module__", None) == full.__name__]
    public = [key for key in own if not key.startswith("_")]
    assert public, f"{name} defines nothing public"
    for key in public:
        assert getattr(short, key) is getattr(full, key), (name, key)
    print(name, short.__file__)
"""
    output = run_python(editable_python, "-c", script, *names, cwd=tmp_path)
    assert output.splitlines() == [f"{name} {ROOT / 'compat' / name.replace('.', '/')}.py" for name in names]


FACE = """
from core.coordinator import AgentCoordinator
from meta_rl.maml_agent import MetaMAMLAgent
from adaptation.adaptation_agent import AdaptationAgent
agent_maml = MetaMAMLAgent(maml_algo)
agent_adapt = AdaptationAgent(adapter)
coordinator = AgentCoordinator()
coordinator.register_agent(agent_maml, "MAML")
coordinator.register_agent(agent_adapt, "Adapt")
observations = env.reset()
actions = coordinator.run_step_all(observations)
"""


def test_the_public_face_runs_from_an_editable_install(editable_python: Path, tmp_path: Path) -> None:
    before = """
from metarl import Actor, Adapter, Environment, MetaMAML
env = Environment("Pendulum-v1", batch_size=2, seed=0)
maml_algo = MetaMAML(Actor(env.observation_space, env.action_space))
adapter = Adapter(Actor(env.observation_space, env.action_space))
"""
    after = """
print(actions.shape, *((agent.act(observations[row : row + 1]) == actions[row]).all()
                       for row, agent in enumerate((agent_maml, agent_adapt))))
"""
    output = run_python(editable_python, "-c", before + FACE + after, cwd=tmp_path)
    assert output.split() == ["(2,", "1)", "True", "True"]


def test_foreign_packages_of_the_same_names_disturb_nothing(tmp_path: Path) -> None:
    for name in ("core", "env_runner", "meta_rl", "adaptation", "tasks", "experiments"):
        package = tmp_path / name / "__init__.py"
        package.parent.mkdir()
        package.write_text("raise ImportError('a foreign package was imported')")
    assert "--task-dist" in run_python(sys.executable, "main.py", "--help", cwd=ROOT, path=[tmp_path])


@pytest.mark.parametrize("python_version", ["3.10", "3.11", "3.12", "3.13"])
def test_every_declared_requirement_has_one_pin(wheel: zipfile.ZipFile, python_version: str) -> None:
    pinned = pins(python_version)
    for requirement in requirements(wheel):
        if requirement.name == "pip":
            continue
        (pin,) = pinned.get(canonicalize_name(requirement.name), [None])
        assert pin is not None, f"{requirement.name} is not in constraints.txt"
        assert pin in requirement.specifier, f"{requirement.name}: {pin} is outside {requirement.specifier}"


def test_tyro_has_the_flags_without_their_opposites(wheel: zipfile.ZipFile) -> None:
    (tyro,) = (requirement for requirement in requirements(wheel) if requirement.name == "tyro")
    assert "0.9.13" not in tyro.specifier  # conf.FlagCreatePairsOff: github.com/brentyi/tyro/pull/250
    assert "0.9.14" in tyro.specifier


def test_torch_has_the_options_that_compiled_programs_set(wheel: zipfile.ZipFile) -> None:
    (torch,) = (requirement for requirement in requirements(wheel) if requirement.name == "torch")
    assert "2.7.1" not in torch.specifier  # cpp.use_decompose_tanh: github.com/pytorch/pytorch/pull/152542
    assert "2.8.0" in torch.specifier


MACHINES = {
    "this": {},
    "a Mac": {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64"},
}
"""What the markers of requirements ask for, where it is not this machine that they are evaluated for."""


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_everything_that_comes_with_an_install_is_pinned(wheel: zipfile.ZipFile, machine: dict[str, str]) -> None:
    pinned = pins(".".join(map(str, sys.version_info[:2])), **machine)
    # A Linux GPU build of torch brings CUDA libraries, in versions that torch itself pins.
    free = re.compile(r"nvidia-|cuda-|triton|pip$")
    needed = installed_closure(requirements(wheel), machine)
    missing = {name for name in needed if name not in pinned and not free.match(name)}
    assert not missing


def test_every_package_that_is_imported_is_declared(wheel: zipfile.ZipFile) -> None:
    declared = {canonicalize_name(each.name) for each in requirements(wheel)}
    imported: set[str] = set()
    for path in (ROOT / "src/metarl").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").partition(".")[0])
    homes = metadata.packages_distributions()
    ours = {"metarl", "triton"}  # Triton comes with CUDA builds of torch
    foreign = {name for name in imported - ours - sys.stdlib_module_names if name in homes}
    assert {name for name in foreign if not {canonicalize_name(home) for home in homes[name]} & declared} == set()


def pins(python_version: str, **machine: str) -> dict[str, list[str]]:
    """The versions in constraints.txt that hold under a Python version, by name."""
    found: dict[str, list[str]] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"python_version": python_version, **machine}):
            (pin,) = requirement.specifier
            assert pin.operator == "==", line
            found.setdefault(canonicalize_name(requirement.name), []).append(pin.version)
    return found


def installed_closure(declared: list[Requirement], machine: dict[str, str]) -> set[str]:
    """Names of all distributions that metarl with its extra `dev` needs, found by following what they require."""
    visited: set[tuple[str, frozenset[str]]] = set()
    waiting = [(requirement, frozenset({"", "dev"})) for requirement in declared]
    while waiting:
        requirement, asked_by = waiting.pop()
        marker = requirement.marker
        if marker and not any(marker.evaluate({"extra": extra, **machine}) for extra in asked_by):
            continue
        name, extras = canonicalize_name(requirement.name), frozenset({"", *requirement.extras})
        if (name, extras) not in visited:
            visited.add((name, extras))
            with suppress(metadata.PackageNotFoundError):  # another machine installs it
                waiting += [(Requirement(line), extras) for line in metadata.requires(name) or ()]
    return {name for name, _ in visited}
