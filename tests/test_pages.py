"""Every snippet, command and equation that README and docs show, and every figure that the README quotes."""

from __future__ import annotations

import csv
import importlib
import json
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import pytest

import metarl
from metarl import cli
from metarl.core import memory
from metarl.experiments import flags
from metarl.experiments.protocol import Protocol
from metarl.experiments.run import Run
from metarl.experiments.run_config import RunConfig
from metarl.experiments.run_flags import plan_run
from metarl.experiments.suite import DECIDED, load_suite
from metarl.meta_rl.registry import find_algorithm
from metarl.tasks.metaworld import EPISODES

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "results/README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SAVED_AS = re.compile(
    r"Save this as `(\w+\.py)`[^\n]*\n(?:[^\n`]+\n)*\n```python\n(.*?)^```$", re.DOTALL | re.MULTILINE
)
INLINE = re.compile(r"(?<!`)`((?:metarl|python|make|pytest) [^`\n]+)`(?!`)")
QUOTED = re.compile(r"−?[\d.,]+ \[−?[\d.,]+, −?[\d.,]+\]")
KINDS = ("", "bash", "console", "python", "math", "text", "toml")
"""Of blocks; a block of text is a picture in letters, all others are tried."""
ELSEWHERE = {"docs/export.md"}
"""Pages whose snippets need a file: tests/experiments/test_export.py runs them."""
NIGHTLY = {"docs/metaworld.md"}
"""Pages whose snippets take long: they make hundreds of worlds."""
RUN_WHOLE = ("list", "doctor", "watch", "evaluate")
"""Commands that are cheap on a small run; the others end once their flags are parsed, `run` once it is planned."""


class Parsed(Exception):
    """Everything that can be wrong about a command has been checked."""


class Shown(NamedTuple):
    """A command, and the first page that shows it."""

    command: str
    page: str


def blocks(page: Path, *kinds: str) -> list[str]:
    return [body for kind, body in FENCE.findall(page.read_text()) if kind in kinds]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def commands_of(page: Path) -> list[str]:
    """All lines of shell blocks; in a console block those behind a prompt, the rest being what is printed."""
    lines = []
    for kind, body in FENCE.findall(page.read_text()):
        if kind in ("", "bash"):
            lines += body.replace("\\\n", " ").splitlines()
        elif kind == "console":
            lines += [line[2:] for line in body.splitlines() if line.startswith("$ ")]
    return [
        " ".join(words) for line in lines if (words := [shlex.quote(word) for word in shlex.split(line, comments=True)])
    ]


def shown(commands: Callable[[Path], Sequence[str]]) -> list[Shown]:
    """What the pages show, each once."""
    first: dict[str, str] = {}
    for page in PAGES:
        for command in commands(page):
            first.setdefault(command, name_of(page))
    return [Shown(command, page) for command, page in first.items()]


COMMANDS = shown(commands_of)
MENTIONED = shown(lambda page: INLINE.findall(FENCE.sub("", page.read_text())))


def test_pages_show_nothing_that_no_test_knows() -> None:
    kinds = {(name_of(page), kind) for page in PAGES for kind, _ in FENCE.findall(page.read_text())}
    assert {(page, kind) for page, kind in kinds if kind not in KINDS} == set()
    assert sum(page.read_text().count("```") for page in PAGES) == 2 * sum(
        len(FENCE.findall(p.read_text())) for p in PAGES
    )
    assert len(COMMANDS) > 30


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=name_of(page), marks=[pytest.mark.nightly] if name_of(page) in NIGHTLY else [])
        for page in PAGES
        if blocks(page, "python") and name_of(page) not in ELSEWHERE
    ],
)
def test_snippets_of_a_page_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(memory, "_METHODS", dict(memory._METHODS))  # what a page registers is no other test's
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for number, body in enumerate(blocks(page, "python")):
        exec(compile(body, f"{page.name}, snippet {number}", "exec"), namespace)
    assert "FAIL" not in capsys.readouterr().out  # what check_tasks prints of a check that does not hold


def test_suites_of_the_pages_can_be_planned(tmp_path: Path) -> None:
    (suite,) = (body for page in PAGES for body in blocks(page, "toml"))
    (tmp_path / "suite.toml").write_text(suite)
    runs = load_suite(tmp_path / "suite.toml", tmp_path / "out").runs
    assert {run.agent for run in runs} == {"rl2 ssm", "rl2 gru", "rl2 gru curious"}


def test_public_names_come_from_the_package_itself() -> None:
    deeper = re.compile(r"^ *from (metarl\.\S+) import (.+)$", re.MULTILINE)
    for page in PAGES:
        for module, names in deeper.findall("\n".join(blocks(page, "python"))):
            public = set(names.split(", ")) & set(metarl.__all__)
            assert not public, f"{name_of(page)}: {module} has {public}, which metarl itself has"


def test_equations_are_latex() -> None:
    convert = pytest.importorskip("latex2mathml.converter").convert
    equations = [body for page in PAGES for body in blocks(page, "math")]
    assert len(equations) > 10
    for body in equations:
        assert "merror" not in convert(body, display="block"), body
        assert body.count("{") == body.count("}"), body


def test_every_page_is_in_the_navigation() -> None:
    site, docs = (ROOT / "zensical.toml").read_text(), ROOT / "docs"
    assert [page for path in docs.rglob("*.md") if f'"{(page := path.relative_to(docs).as_posix())}"' not in site] == []


def test_words_of_tables_pictures_and_flags_are_explained() -> None:
    first = re.findall(r"^\| ([^|]+) \|", (ROOT / "docs/meta-rl.md").read_text(), re.MULTILINE)
    explained = {word for cell in first for word in cell.split(", ")}
    flags_and_columns = {"trial", "round", "shot", "row", "query", "epoch", "head", "window", "continuation", "trace"}
    assert flags_and_columns | {"repeat", "IQM", "CVaR 5 %", "strata", "guard", "drift", "frozen"} <= explained


# --- commands ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with checkpoints, on two tasks."""
    folder = tmp_path_factory.mktemp("pages")
    line = (
        "--task-dist point-goal --algo rl2 --num-envs 4 --update-steps 50 --num-minibatches 2 --update-epochs 1 "
        f"--method gru --width 8 --epochs 1 --repeats 2 --test-tasks 100 101 103 --output-dir {folder}"
    )
    assert cli.main(line.split()) == 0
    (run,) = folder.iterdir()
    return run


@pytest.fixture
def stopping(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Makes commands end once everything has been checked that can be wrong about them."""

    def parse(config: type[Any], arguments: Sequence[str], command: str) -> Any:
        parsed = flags_parse(config, arguments, command)
        if command != "run" or parsed.run.reference:
            raise Parsed
        return parsed

    def prepared(run: Run) -> Run:
        raise Parsed

    flags_parse = flags.parse

    def stop(whole: bool) -> None:
        if not whole:
            for command in cli.COMMANDS:
                module = importlib.import_module(f"metarl.cli.{command}")
                if hasattr(module, "parse"):
                    monkeypatch.setattr(module, "parse", parse)
            monkeypatch.setattr(flags, "parse", parse)
        monkeypatch.setattr(Run, "prepare_folder", prepared)

    return stop


@pytest.mark.parametrize("command", COMMANDS, ids=lambda shown: f"{shown.page}: {shown.command}")
def test_a_command_is_right(
    command: Shown,
    small_run: Path,
    stopping: Callable[[bool], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program, *arguments = shlex.split(command.command)
    if program == "metarl" or (program, *arguments[:1]) == ("python", "main.py"):
        monkeypatch.chdir(tmp_path)
        for page in PAGES:
            for name, body in SAVED_AS.findall(page.read_text()):
                (tmp_path / name).write_text(body)
        stands_for = {"RUN": str(small_run), "METHOD": "ssm"}
        arguments = [stands_for.get(word, word) for word in arguments if word != "main.py"]
        if "--reference" in arguments:  # a run of the same family, which RUN here is not
            del arguments[(at := arguments.index("--reference")) : at + 2]
        whole = arguments[0] in RUN_WHOLE and "--drift" not in arguments  # not every family has a drift
        stopping(whole)
        try:
            assert cli.main(arguments) == 0
        except Parsed:
            assert not whole
        else:
            assert whole, "a command began to work that should only have been parsed"
    else:
        assert CHECKS[program](arguments)


@pytest.mark.parametrize("command", MENTIONED, ids=lambda shown: f"{shown.page}: {shown.command}")
def test_a_command_in_the_text_exists_with_its_flags(
    command: Shown, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program, *arguments = shlex.split(command.command)
    if program == "metarl" or arguments[0] == "main.py":
        name, algo = arguments[0] if program == "metarl" else "run", flags.value_of(arguments, "algo")
        monkeypatch.setenv("COLUMNS", "400")  # or a flag may be broken in two
        with pytest.raises(SystemExit):
            cli.main([name, *(["--algo", algo] if algo else []), "--help"])
        known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
        assert {word.partition("=")[0] for word in arguments if word.startswith("--")} <= known
    else:
        assert CHECKS[program](arguments)


def script_exists(arguments: Sequence[str]) -> bool:
    """A script of the repository that knows every flag it is given."""
    script = ROOT / arguments[0]
    given = [word.lstrip("-").partition("=")[0] for word in arguments[1:] if word.startswith("--")]
    source = script.read_text()
    return all(re.search(rf"\b{flag.replace('-', '[-_]')}\b", source) for flag in given)


def target_exists(arguments: Sequence[str]) -> bool:
    makefile = (ROOT / "Makefile").read_text()
    return all("=" in word or re.search(rf"^{word}:", makefile, re.MULTILINE) for word in arguments)


def can_be_installed(arguments: Sequence[str]) -> bool:
    declared = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    extras = [extra for word in arguments for names in re.findall(r"\[([\w,]+)\]", word) for extra in names.split(",")]
    return set(extras) <= set(declared) and all((ROOT / word).exists() for word in arguments if word.endswith(".txt"))


def can_be_collected(arguments: Sequence[str]) -> bool:
    paths = [word for word in arguments if word.startswith("tests")]
    return all((ROOT / path.partition("::")[0]).exists() for path in paths)


def container_is_described(arguments: Sequence[str]) -> bool:
    return (ROOT / "Dockerfile").exists()


CHECKS: dict[str, Callable[[Sequence[str]], Any]] = {
    "python": script_exists,
    "make": target_exists,
    "pip": can_be_installed,
    "pytest": can_be_collected,
    "docker": container_is_described,
    ".ci/run": lambda arguments: (ROOT / ".ci/run").exists(),
}
"""Whether a command of another program is right; a program that is not here fails the test."""


# --- figures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_quoted_returns_are_recorded(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    tables = importlib.import_module("doc_tables")
    runs = tables.recorded_runs()
    recorded = {tables.quoted(shot["return"]) for run in runs for shot in run["shots"].values()}
    recorded |= {
        tables.quoted(found["return"]["summary"])
        for run in runs
        for variants in run.get("drift", {"conditions": {}})["conditions"].values()
        for found in variants.values()
    }
    recorded |= {
        quoted for folder in (ROOT / "results").glob("*-seeds") for quoted in QUOTED.findall(tables.seeds(folder.name))
    }
    recorded |= {
        tables.signed(value)
        for path in (ROOT / "results").glob("*.json")
        for row in json.loads(path.read_text())["rows"]
        for value in row.values()
        if isinstance(value, str)
    }
    stale = [quoted for quoted in QUOTED.findall(page.read_text()) if quoted not in recorded]
    assert not stale, "no results.json holds these; quote what is recorded now"


def test_the_trainings_behind_an_interval_over_seeds_are_counted() -> None:
    words = {3: "three", 4: "four", 5: "five"}
    count = words[len([*(ROOT / "results/halfcheetah-vel-ssm-seeds").iterdir()])]
    assert f"These are {count} trainings" in (ROOT / "docs/algorithms/rl2.md").read_text()


def test_what_is_said_of_the_time_of_the_main_job_is_recorded() -> None:
    epochs = list(csv.DictReader((ROOT / "results/halfcheetah-vel-ssm/metrics.csv").read_text().splitlines()))
    usual = median(float(row["steps_per_second"]) for row in epochs)
    said = f"took {float(epochs[0]['wall_seconds']):.0f} seconds; median of the epochs {usual / 1000:.1f}k steps/s"
    assert said in " ".join((ROOT / "results/README.md").read_text().split())


def test_every_measure_of_a_change_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    columns = importlib.import_module("doc_tables").DRIFT_MEASURES.values()
    page = (ROOT / "docs/adapting.md").read_text().lower()
    for measure in ("before", "after", "steps to recover", "model error"):
        assert any(measure in column for column in columns)
        assert f'"{measure}"' in page


def test_the_rewards_a_step_that_a_page_compares_are_told_apart_in_its_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    table = importlib.import_module("doc_tables").drift()
    assert "0.95 a step against 0.89" in (ROOT / "docs/adapting.md").read_text()
    assert [earned for earned in ("0.95 [0.93, 0.98]", "0.89 [0.87, 0.91]") if f"| {earned} |" not in table] == []


def test_what_looking_back_is_said_to_be_worth_is_recorded() -> None:
    def worth(folder: str, measure: str) -> float:
        found = json.loads((ROOT / "results" / folder / "control/results.json").read_text())["drift"]["conditions"]
        looking_back, one = (found["change"][name][measure]["summary"]["mean"] for name in ("frozen", control))
        return float(looking_back - one)

    control = "grbal ssm, past 1, future 10, batch_windows 186"
    page = " ".join((ROOT / "docs/algorithms/grbal.md").read_text().split())
    first, second = (worth(f"halfcheetah-drift-grbal-ssm{seed}", "after") for seed in ("", "-seed-1"))
    assert f"worth {worth('halfcheetah-cripple-grbal-ssm', 'return'):.0f} with a dead joint" in page
    assert f"{first:.2f} a step after that, {second:.2f} with another seed" in page


def test_the_flags_that_are_no_settings_of_a_suite_are_named() -> None:
    page = " ".join((ROOT / "docs/evaluation.md").read_text().split())
    (said,) = re.findall(r"what grids list, every flag of `metarl run` but (.*?) is a setting", page)
    listed = {"task_dist", "algo", "method", "seed"}
    assert set(re.findall(r"`--([\w-]+)`", said)) == {name.replace("_", "-") for name in DECIDED.keys() - listed}


def test_a_recorded_command_asks_for_the_repeats_that_are_recorded() -> None:
    for path in (ROOT / "results").rglob("results.json"):
        run = json.loads(path.read_text())
        found = {len(shot["return"]) for task in run["tasks"] for shot in task["shots"].values()}
        for asked in re.findall(r"--repeats (\d+)", run["command"]):
            assert found == {int(asked)}, path


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_model_errors_beside_returns_are_recorded(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    tables = importlib.import_module("doc_tables")
    errors: dict[str, set[str]] = {}  # by the return with the change
    for run in tables.recorded_runs():
        conditions = run.get("drift", {"conditions": {}})["conditions"]
        for variant, found in conditions.get("change", {}).items():
            known = errors.setdefault(tables.quoted(found["return"]["summary"]), set())
            for measured in (found, conditions["unchanged"][variant]):
                known |= {f"{each['summary']['mean']:.1f} %" for name, each in measured.items() if "error" in name}
    for line in page.read_text().splitlines():
        if line.startswith("|") and (returns := QUOTED.findall(line)) and returns[0] in errors:
            assert set(re.findall(r"[\d.]+ %", line)) <= errors[returns[0]], line


def test_what_is_said_of_memory_beside_gradient_steps_is_recorded() -> None:
    memory_run, *by_gradients = (
        json.loads((ROOT / f"results/halfcheetah-vel-{name}/results.json").read_text())
        for name in ("ssm", "maml-mlp", "promp-mlp")
    )
    for run in by_gradients:
        assert run["env_steps"] == pytest.approx(2 * memory_run["env_steps"], rel=0.1)  # "half as many steps"
        for shot in ("1", "5", "10"):  # "a tenth of the episodes"
            assert run["shots"][shot]["episodes"] == 10 * memory_run["shots"][shot]["episodes"]
    for page in ("README.md", "results/README.md", "docs/algorithms/index.md"):
        words = " ".join((ROOT / page).read_text().split())
        assert "half as many steps" in words
        assert "a tenth of the episodes in a new task" in words
        assert "trained on" in words  # both tasks of halfcheetah-dir are


def test_what_is_said_of_the_episodes_of_gradient_agents_is_so() -> None:
    maml, words = find_algorithm("maml"), {5: "five", 10: "ten"}
    usual, rows = (maml.config(family).trial_rows for family in ("halfcheetah-vel", "metaworld-ml10"))
    before, measured = Protocol(adaptation_episodes=EPISODES[0], evaluation_episodes=EPISODES[1]).episodes_by_row(rows)
    in_metaworld = f"(in Meta-World {words[rows]}, and {words[before * rows]} in its standard protocol)"
    for page, said in (
        ("README.md", "one gradient step on"),
        ("docs/evaluation.md", "so a shot is"),
        ("docs/algorithms/index.md", "one gradient step on"),
    ):
        text = " ".join((ROOT / page).read_text().split())
        assert f"{said} {words[usual]} episodes" in text
        assert in_metaworld in text
    assert measured == 1
    assert f"in {rows} episodes, one a row" in " ".join((ROOT / "docs/metaworld.md").read_text().split())


def test_the_runs_whose_hardware_is_not_recorded_are_named() -> None:
    page = " ".join((ROOT / "results/README.md").read_text().split())
    runs = [json.loads(path.read_text()) for path in (ROOT / "results").rglob("results.json")]
    unknown = {run["task_dist"] for run in runs if "hardware" not in run}
    assert set(re.findall(r"`hardware` in their files, but for `([\w-]+)`", page)) == unknown


def test_commands_of_tables_train_as_the_recorded_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a default is another one since."""

    def plan(config: RunConfig, algorithm: Any, memory: Any, command: str) -> dict[str, Any]:
        rows = config.num_envs or find_algorithm(config.algo).rows(config.task_dist)
        return asdict(algorithm) | asdict(memory) | {"num_envs": rows}

    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    tables = importlib.import_module("doc_tables")
    monkeypatch.setattr(Run, "plan", plan)
    for run in tables.recorded_runs():
        command, _, _ = tables.trains_alike(run).partition("; ")
        if command.startswith("python main.py "):
            settings = plan_run(shlex.split(command.replace(" --device cuda", ""))[2:])
            config = json.loads((ROOT / "results" / run["name"] / "config.json").read_text())["run"]
            trained = run["settings"] | {"num_envs": config["num_envs"]}
            shared = settings.keys() & trained.keys()
            assert {key: settings[key] for key in shared} == {key: trained[key] for key in shared}, command


def test_the_runs_that_took_the_curvature_on_every_task_are_named() -> None:
    page = (ROOT / "results/README.md").read_text()
    (said,) = re.findall(r"^Of the runs with `--algo maml`, (.+) took the curvature", page, re.MULTILINE)
    configs = {path.parent.name: json.loads(path.read_text()) for path in (ROOT / "results").glob("*/config.json")}
    maml = {name: made["algorithm"] for name, made in configs.items() if made["run"]["algo"] == "maml"}
    assert set(re.findall(r"`([^`]+)`", said)) == {name for name, made in maml.items() if "curvature_share" in made}


def test_what_is_said_of_training_on_ml45_is_recorded() -> None:
    trained, first = (
        list(csv.DictReader((ROOT / f"results/metaworld-ml45-maml-ssm/{name}.csv").read_text().splitlines()))
        for name in ("metrics", "first_attempt")
    )
    page = " ".join((ROOT / "results/README.md").read_text().split())
    best = max(trained, key=lambda row: float(row["test_success_shot1"]))
    watched = [f"{100 * float(row['test_success_shot1']):.0f} %" for row in (best, trained[-1])]
    steps = f"{float(best['env_steps']) / 1e6:.1f}M steps"
    assert f"success at shot 1 was highest at {steps} ({watched[0]}) and {watched[1]} at the end" in page
    again = next(row["epoch"] for row, before in zip(trained, first, strict=False) if row != before)
    assert f"From epoch {again} on this is a second attempt" in page


def test_code_in_a_table_of_settings_is_shown_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    tables = importlib.import_module("doc_tables")
    assert "needs `update_steps` above" in tables.settings("rl2")
    assert r"what is frozen (requires\_grad False)" in tables.adapter_settings()


def test_the_speed_table_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    table = importlib.import_module("speed_table").speed_table()
    assert table in (ROOT / "README.md").read_text(), "paste what  python scripts/speed_table.py  prints"


def test_every_setting_of_the_network_and_every_other_default_is_on_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    tables = importlib.import_module("doc_tables")
    page = tables.expand((ROOT / "docs/algorithms/memory.md").read_text())
    flags_of_it = [f"`--{name.replace('_', '-')}`" for name in asdict(memory.MemoryConfig())]
    assert [flag for flag in flags_of_it if f"| {flag} |" not in page] == []
    assert "with `--env-name`: `--update-steps 128`." in tables.settings("rl2")
    assert "of the network: `--method mlp`, `--width 128`." in tables.settings("grbal")
    assert "in Meta-World: `--num-envs 40`, `--trial-rows 5`." in tables.settings("maml")


def test_the_meta_gradient_table_is_recorded() -> None:
    recorded: dict[tuple[str, str], dict[str, float]] = {}
    for row in json.loads((ROOT / "results/maml.json").read_text())["rows"]:
        if row["model"] == "mlp" and (row["inner steps"], row["order"]) == (1, "second"):
            recorded.setdefault((str(row["tasks"]), str(row["samples"])), {}).setdefault(row["side"], row["ms"])
    sides = ("MetaMAML", "MetaMAML, compile", "torchopt", "higher", "autograd loop", "matrix products alone")
    lines = re.findall(
        r"^\| (\d+)(?: tasks)? × ([\d,]+)(?: samples)?, MLP [\d-]+ \|(.+)\|$",
        (ROOT / "results/README.md").read_text(),
        re.MULTILINE,
    )
    assert len(lines) == len(recorded)
    for tasks, samples, cells in lines:
        shown = [float(cell.split()[0]) for cell in cells.split("|")]
        assert shown == pytest.approx([recorded[tasks, samples.replace(",", "")][side] for side in sides], rel=0.05)


def test_what_is_said_of_a_planner_with_a_memory_is_recorded() -> None:
    folder = ROOT / "results/halfcheetah-cripple-grbal-ssm"
    trained, further = (json.loads((folder / name / "results.json").read_text()) for name in (".", "horizon-20"))
    (flags,) = re.findall(r"20 steps instead of 10 \(`metarl evaluate ([^`]+)`\)", (ROOT / "README.md").read_text())
    assert re.findall(r"--(?:horizon|candidates) \d+", further["command"]) == re.findall(r"--\S+ \d+", flags)
    for page in ("docs/speed.md", "results/README.md"):
        assert f"{trained['wall_seconds'] / 60:.1f} minutes" in (ROOT / page).read_text()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the generator of the site needs Python 3.11")
def test_the_site_is_built_without_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("zensical", reason="the site needs  pip install 'metarl-agent-framework[docs]'")
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    site = importlib.import_module("build_docs")
    assert site.build() == 0
    pages = {path.relative_to(site.SITE).as_posix() for path in site.SITE.rglob("*.html")} - {"404.html"}
    sources = {
        path.relative_to(ROOT / "docs").with_suffix(".html").as_posix() for path in (ROOT / "docs").rglob("*.md")
    }
    assert sources < pages
    assert "<math" in (site.SITE / "algorithms" / "rl2.html").read_text()
    assert "halfcheetah-gravity" in (site.SITE / "tasks.html").read_text()
    for page in pages:
        text = (site.SITE / page).read_text()
        assert "<!-- table:" not in text
        assert not re.search(r'(?:src|href)="https?://[^"]+\.(?:js|css|woff2?)"', text), f"{page} loads from elsewhere"


def test_the_picture_of_a_trial_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    picture = importlib.import_module("draw_trial")
    picture.draw(tmp_path / "trial.svg")
    for svg in (tmp_path / "trial.svg", ROOT / "docs/images/trial.svg"):
        text = svg.read_text()
        assert all(verb in text for verb in ("begin_trial", "act(", "observe(", "adapt", "update"))
