"""The tables of the docs, each from what it is about: recorded results, benchmarks, registries and configurations.

A page asks for one by a comment, `<!-- table: measured rl2 -->`. Nothing is copied by hand, so nothing goes stale.
"""

from __future__ import annotations

import ast
import inspect
import io
import json
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
PLACEHOLDER = re.compile(r"<!-- table: (\w+)(?: ([\w-]+))? -->")
ON_CPUS = ("worlds", "metaworld", "memory", "maml", "end_to_end", "coordinator")
ON_A_GPU = ("memory_cuda", "maml_cuda", "end_to_end_cuda")
SPEED = (*ON_CPUS, *ON_A_GPU)
"""Benchmarks of speed, in the order of reading."""
SCRIPTS = {
    "memory_cuda": "memory.py --device cuda",
    "maml_cuda": "maml.py --device cuda --sizes 40x20 20x2000",
    "end_to_end_cuda": "end_to_end.py --device cuda --rows 64 1024",
}
"""What writes a file of results that is not named after its script."""
NOTHING_YET = "No run of it is recorded yet."
DRIFT_MEASURES = {
    "return": "return",
    "before": "reward a step, before",
    "after": "and after",
    "steps_to_recover": "steps to recover",
    "error": "model error, %",
    "error_before": "model error before, %",
    "error_after": "and after, %",
}
"""What `--drift` measures of an episode in which something breaks or changes, as the tables call it."""
DIGITS = {"before": 2, "after": 2}
"""Decimals where one is too few: a reward a step is near 1."""

Rows = Sequence[dict[str, Any]]


def expand(page: str) -> str:
    """The page with every placeholder replaced by its table.

    Raises:
        KeyError: a placeholder names no table.
    """

    def table(match: re.Match[str]) -> str:
        name, argument = match.groups()
        return TABLES[name](*([argument] if argument else []))

    return PLACEHOLDER.sub(table, page)


# --- results of runs --------------------------------------------------------------------------------------------------


def recorded_runs() -> list[dict[str, Any]]:
    """All runs under results/: what results.json holds, with "name" (the folder), "trained_by" (the command) and the
    "settings" of algorithm and memory."""
    runs = []
    for path in sorted(RESULTS.rglob("results.json")):
        folder = path.parent
        config = folder / "config.json"
        run = json.loads(path.read_text())
        made = json.loads(config.read_text()) if config.exists() else {"command": run["command"]}
        settings = made.get("algorithm", {}) | made.get("memory", {})
        name = folder.relative_to(RESULTS).as_posix()
        runs.append({**run, "name": name, "trained_by": made["command"], "settings": settings})
    return runs


def measured(algo: str) -> str:
    """Everything that is recorded of an algorithm: returns by shot, one table a family, and the commands."""
    runs = [run for run in recorded_runs() if run["algo"] == algo and "drift" not in run]
    parts = []
    for family in sorted({run["task_dist"] for run in runs}):
        mine = [run for run in runs if run["task_dist"] == family]
        parts += [f"On `{family}`, mean return on {_tasks(mine)} with 95 % intervals:", _by_shot(mine), _commands(mine)]
    small = [row for row in benchmark_rows("point_goal") if row["algo"] == algo]
    if small:
        parts += [
            "On `point-goal`, three epochs (`python benchmarks/point_goal.py`):",
            markdown([{key: value for key, value in row.items() if key.startswith("shot")} for row in small]),
        ]
    return "\n\n".join(parts) or NOTHING_YET


def overview() -> str:
    """One line a recorded run: shot 0, shot 1 and the last shot."""
    rows = []
    for run in recorded_runs():
        if "drift" in run:  # a run that stands here already, measured again
            continue
        last = max(run["shots"], key=int)
        rows.append(
            {
                "family": f"`{run['task_dist']}`",
                "algo": f"`{run['algo']}`",
                "method": f"`{run['method']}`",
                "steps": _millions(run["env_steps"]),
                **{f"shot {shot}": _score(run, shot) for shot in ("0", "1")},
                "last shot": f"{_score(run, last)} (shot {last})",
                "recorded in": f"`results/{run['name']}`",
            }
        )
    return markdown(rows)


def methods(name: str) -> str:
    """The runs in one folder, which differ in the memory alone, side by side."""
    runs = [run for run in recorded_runs() if run["name"].startswith(f"{name}/")]
    title = f"`{runs[0]['task_dist']}`, `{runs[0]['algo']}`, {_millions(runs[0]['env_steps'])} steps each"
    return "\n\n".join([f"{title} (`results/{name}`):", _by_shot(runs), _commands(runs)])


def seeds(name: str) -> str:
    """By shot, what the runs in one folder give, which differ in the seed alone; intervals are over training seeds."""
    from metarl.experiments.report import load_entries

    (entry,) = load_entries(sorted((RESULTS / name).iterdir()))
    rows = []
    for shot, of_shot in entry.results["shots"].items():
        by_seed = ", ".join(signed(f"{mean:.1f}") for mean in entry.scores(int(shot)).mean(1))
        rows.append({"shot": shot, "mean [95 % CI over seeds]": quoted(of_shot["return"]), "by seed": by_seed})
    return f"Seeds {', '.join(map(str, entry.seeds))}:\n\n{markdown(rows)}"


def printed(name: str) -> str:
    """The table that a recorded run printed at its end."""
    from rich.console import Console

    from metarl.experiments.plots import adaptation_table

    (run,) = (run for run in recorded_runs() if run["name"] == name)
    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(adaptation_table([run]))
    return f"```text\n{console.export_text().rstrip()}\n```"


def drift() -> str:
    """What a change costs, and what adapting makes up for: a table for every run that was measured so."""
    parts = []
    runs = {run["name"]: run for run in recorded_runs()}
    for run in runs.values():
        if "drift" not in run:
            continue
        trained = runs[run["name"].rpartition("/")[0]]  # it is measured again, in a folder of its own
        change, unchanged = (run["drift"]["conditions"][name] for name in ("change", "unchanged"))
        rows = [
            {"agent": agent}
            | {
                name: quoted(found[key]["summary"], DIGITS.get(key, 1))
                for key, name in DRIFT_MEASURES.items()
                if key in found
            }
            | {"return, nothing changes": quoted(unchanged[agent]["return"]["summary"])}
            for agent, found in change.items()
        ]
        command = _commands([trained]).removesuffix("```") + f"{run['command']}\n```"
        parts += [f"`{run['task_dist']}`, {_tasks([run])}:", markdown(rows), command]
    return "\n\n".join(parts) or NOTHING_YET


def success(name: str) -> str:
    """The share of episodes of a recorded run in which any step succeeded, by environment, and the command."""
    (run,) = (run for run in recorded_runs() if run["name"] == name)
    rows = [
        {"environment": f"`{row['environment']}`", "split": row["split"], "goals": row["tasks"]}
        | {f"shot {shot}": f"{100 * scores['success']:.0f} %" for shot, scores in row["shots"].items()}
        for row in run["environments"]
    ]
    return f"{markdown(rows)}\n\n{_commands([run])}"


def _by_shot(runs: Rows) -> str:
    shots = sorted({int(shot) for run in runs for shot in run["shots"]})
    return markdown(
        [
            {
                "run": f"`{run['name']}`",
                "method": f"`{run['method']}`",
                "seeds": " ".join(map(str, run["seeds"])),
                **{f"shot {shot}": _score(run, str(shot)) for shot in shots},
                "steps": _millions(run["env_steps"]),
            }
            for run in runs
        ]
    )


def _commands(runs: Rows) -> str:
    """The commands that trained, as they would today, each once."""
    lines: dict[str, None] = {}
    for run in runs:
        lines[trains_alike(run)] = None
        if run["command"] != run["trained_by"]:
            lines[run["command"]] = None
    return "```bash\n" + "\n".join(lines) + "\n```"


def trains_alike(run: dict[str, Any]) -> str:
    """The command that a recorded run was trained by, with what it left to defaults that are others now."""
    from metarl.meta_rl.registry import find_algorithm

    command, then, longer = run["trained_by"].replace("metarl run ", "python main.py ").partition("; ")
    if not command.startswith("python main.py "):
        return str(run["trained_by"])
    algorithm = find_algorithm(run["algo"])
    usual = asdict(algorithm.config(run["task_dist"])) | asdict(algorithm.memory)
    left = {"algo": run["algo"]} | {name: value for name, value in run["settings"].items() if name in usual}
    for name, value in left.items():
        flag, default = f"--{name.replace('_', '-')}", usual.get(name)
        if value == default or flag in (given := command.replace("_", "-").split()) or f"--no-{flag[2:]}" in given:
            continue
        switch = {(True, False): flag, (False, True): f"--no-{flag[2:]}"}.get((value, default))
        command += f" {switch or f'{flag} {value}'}"
    return command + then + longer


def _score(run: dict[str, Any], shot: str) -> str:
    return quoted(run["shots"][shot]["return"]) if shot in run["shots"] else ""


def quoted(summary: dict[str, Any], digits: int = 1) -> str:
    """A mean and its interval, as the pages quote them."""
    low, high = summary["ci95"]
    return signed(f"{summary['mean']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]")


def _tasks(runs: Rows) -> str:
    counts = sorted({len(run["tasks"]) for run in runs})
    return f"{' or '.join(map(str, counts))} tasks"


def _millions(steps: int) -> str:
    return f"{steps / 1e6:.3g}M"


# --- benchmarks -------------------------------------------------------------------------------------------------------


def speed() -> str:
    """Every benchmark of speed that is recorded, as a section: command, hardware, table, what the sides are."""
    return "\n\n".join(benchmark(name) for name in SPEED if (RESULTS / f"{name}.json").exists())


def benchmark(name: str) -> str:
    """One benchmark, as a section."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return NOTHING_YET
    report = json.loads(path.read_text())
    hardware = ", ".join(
        f"{value} {key}" if key == "cores" else str(value) for key, value in report["hardware"].items()
    )
    rows, fixed = _without_constants([row for row in report["rows"] if row.get("order", "second") == "second"])
    same = f" In all rows: {', '.join(f'{key} {_cell(value)}' for key, value in fixed.items())}." if fixed else ""
    command = f"```bash\npython benchmarks/{SCRIPTS.get(name, f'{name}.py')} --out results/{name}.json\n```"
    notes = "\n".join(f"- {note}" for note in report["notes"])
    return f"## {report['name']}\n\n{command}\n\n{hardware}.{same}\n\n{markdown(rows)}\n\n{notes}"


def benchmark_rows(name: str) -> Rows:
    path = RESULTS / f"{name}.json"
    rows: Rows = json.loads(path.read_text())["rows"] if path.exists() else []
    return rows


def _without_constants(rows: Rows) -> tuple[Rows, dict[str, Any]]:
    """The rows without the columns in which they all agree, and those."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    fixed = {
        key: rows[0].get(key) for key in columns if len(rows) > 1 and len({str(row.get(key)) for row in rows}) == 1
    }
    kept = [{key: row.get(key) for key in columns if key not in fixed} for row in rows]
    return kept, {key: value for key, value in fixed.items() if value is not None}


# --- registries -------------------------------------------------------------------------------------------------------


def families() -> str:
    """What `metarl list` prints."""
    from metarl.tasks import describe_tasks

    return markdown(
        [
            {"family": f"`{name}`", "what differs between tasks": f"{_escaped(summary)}"}
            for name, summary in describe_tasks().items()
        ]
    )


def settings(algo: str) -> str:
    """The flags of an algorithm: name, default and docstring of every field of its configuration."""
    from metarl.core.memory import MemoryConfig
    from metarl.meta_rl.registry import find_algorithm

    algorithm = find_algorithm(algo)
    usual = asdict(MemoryConfig())
    others = {
        "of the network": {name: value for name, value in asdict(algorithm.memory).items() if value != usual[name]},
        "with `--env-name`": algorithm.single,
        "in Meta-World": algorithm.metaworld,
    }
    said = "".join(
        f" Other defaults {where}: {', '.join(f'`{_flag(name)} {value}`' for name, value in values.items())}."
        for where, values in others.items()
        if values
    )
    return f"Rows (`--num-envs`): {algorithm.num_envs}.{said}\n\n{_flags(algorithm.config())}"


def memory_settings() -> str:
    """The flags of the network, whatever the algorithm."""
    from metarl.core.memory import MemoryConfig

    return _flags(MemoryConfig())


def _flags(config: Any) -> str:
    return markdown(
        [
            {"flag": f"`{_flag(name)}`", "default": f"`{getattr(config, name)}`", "what it is": doc}
            for name, doc in field_docs(type(config)).items()
        ]
    )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def adapter_settings() -> str:
    """The fields of `AdaptationConfig`."""
    from metarl.adaptation.config import AdaptationConfig

    config = AdaptationConfig()
    return markdown(
        [
            {"field": f"`{name}`", "default": f"`{getattr(config, name)}`", "what it is": doc}
            for name, doc in field_docs(AdaptationConfig).items()
        ]
    )


def field_docs(config: type[Any]) -> dict[str, str]:
    """The docstring under each field of a dataclass, which Python itself does not keep."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(config))).body
    assert isinstance(body, ast.ClassDef)
    docs = {}
    for field, after in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            docs[field.target.id] = _escaped(" ".join(str(after.value.value).split()))
    return docs


# --- markdown ---------------------------------------------------------------------------------------------------------


def markdown(rows: Rows) -> str:
    """Rows as a markdown table; its columns are all keys that occur, in the order of their occurrence."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, ["---"] * len(columns), *([_cell(row.get(key)) for key in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return signed(f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}")
    return signed(str(value)) if not str(value).startswith("`") else str(value)


def signed(text: str) -> str:
    """Minus signs where hyphens stand before numbers."""
    return re.sub(r"(?<![\w\]-])-(?=\d)", "−", text)


def _escaped(text: str) -> str:
    """Text for a cell: bars would end it; outside of code, asterisks and underscores would be read as emphasis."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(re.sub(r"([|])" if part.startswith("`") else r"([|*_])", r"\\\1", part) for part in parts)


TABLES: dict[str, Callable[..., str]] = {
    "measured": measured,
    "overview": overview,
    "methods": methods,
    "drift": drift,
    "success": success,
    "seeds": seeds,
    "printed": printed,
    "speed": speed,
    "benchmark": benchmark,
    "families": families,
    "settings": settings,
    "memory_settings": memory_settings,
    "adapter_settings": adapter_settings,
}
