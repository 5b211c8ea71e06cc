"""Build the site of docs/ into build/site, with warnings as errors:  python scripts/build_docs.py

The pages are copied to build/docs on the way. There tables are filled in (doc_tables.py), one page of API reference a
part of the package is added, and so are results, changelog and contributing guide, which lie outside docs/ in the
repository: links that climb out of docs/ climb one folder less in the copy.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path

import doc_tables
from doc_tables import RESULTS, ROOT

SOURCE, CONFIG = ROOT / "docs", ROOT / "zensical.toml"
TARGET, SITE = ROOT / "build" / "docs", ROOT / "build" / "site"
NEEDED = ("zensical", "mkdocstrings", "latex2mathml")
BESIDE = ("CHANGELOG.md", "CONTRIBUTING.md")
REFERENCE = {
    "core": "What everything is made of.",
    "env_runner": "Stepping worlds.",
    "tasks": "What there is to adapt to.",
    "meta_rl": "Learning to adapt.",
    "adaptation": "Adapting after deployment.",
    "experiments": "Runs and their measurement.",
}
"""The parts of the package that get a page, in the order of the imports."""
INTERNAL = (
    *("core/scan_*", "core/threads", "env_runner/metaworld_*", "env_runner/gym_row*", "env_runner/gym_worker"),
    *("core/signals", "tasks/metaworld_*", "experiments/report_*", "experiments/offscreen", "experiments/graphics"),
    *("experiments/sketches", "experiments/scenes", "experiments/files", "experiments/display", "experiments/flags"),
)
"""Modules that nobody who uses the package calls."""


def assemble() -> None:
    """Fill build/docs with all that the site is made of."""
    shutil.rmtree(TARGET, ignore_errors=True)
    for path in sorted(SOURCE.rglob("*")):
        if path.is_file():
            _copy(path, TARGET / path.relative_to(SOURCE))
    for name in BESIDE:
        _copy(ROOT / name, TARGET / name.lower())
    _copy(RESULTS / "README.md", TARGET / "results" / "index.md")
    for path in (*RESULTS.rglob("*.png"), *RESULTS.rglob("*.gif")):
        _copy(path, TARGET / "results" / path.relative_to(RESULTS))
    for part, summary in REFERENCE.items():
        page = TARGET / "reference" / f"{part}.md"
        page.parent.mkdir(exist_ok=True)
        entries = "\n\n".join(f"::: metarl.{part}.{module}" for module in public_modules(part))
        page.write_text(f"# metarl.{part}\n\n{summary}\n\n{entries}\n")


def public_modules(part: str) -> list[str]:
    """Modules of a part of the package that its page of reference documents."""
    names = sorted(path.stem for path in (ROOT / "src/metarl" / part).glob("[!_]*.py"))
    return [name for name in names if not any(fnmatch(f"{part}/{name}", pattern) for pattern in INTERNAL)]


def _copy(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".md":
        target.write_text(_within(doc_tables.expand(path.read_text())))
    else:
        shutil.copyfile(path, target)


def _within(page: str) -> str:
    """The page with links to results/ and to what lies beside docs/ led to their copies."""

    def led(link: re.Match[str]) -> str:
        climb, target = link.groups()
        return f"]({climb}{target.replace('results/README.md', 'results/index.md')}"

    page = re.sub(r"\]\(((?:\.\./)*)\.\./(results/[^)#]*)", led, page)
    beside = "|".join(BESIDE)
    return re.sub(rf"\]\(((?:\.\./)*)\.\./({beside})", lambda link: f"]({link[1]}{link[2].lower()}", page)


def build() -> int:
    """Assemble and build; the exit code, which is not 0 after any warning."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        extra = "pip install 'metarl-agent-framework[docs]' (Python 3.11 or newer)"
        print(f"{', '.join(missing)} not installed: run  {extra}", file=sys.stderr)
        return 2
    assemble()
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict", "--config-file", str(CONFIG)]
    path = os.pathsep.join([str(ROOT / "scripts"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    output = done.stdout + done.stderr
    print(output)
    # Strict mode counts warnings of pages, and not those of the parser of docstrings, which are only logged.
    code = done.returncode or int("griffe: " in output)
    print(f"built {SITE.relative_to(ROOT)}/index.html" if code == 0 else "the docs were not built: see above")
    return code


if __name__ == "__main__":
    sys.exit(build())
