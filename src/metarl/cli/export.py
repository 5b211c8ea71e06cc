"""`metarl export RUN`: the policy as one file that runs without metarl."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from metarl.experiments.console import console
from metarl.experiments.export import STEPS, TOLERANCE, check_format, export_policy
from metarl.experiments.flags import Checkpoint, RunFolder, parse
from metarl.experiments.run import Run


@dataclass(frozen=True)
class ExportConfig:
    """Write the policy of a run, with the step of its memory, as one file that runs without metarl."""

    run: RunFolder
    """Folder of the run."""
    out: Path | None = None
    """An .onnx, for onnxruntime, or a .pt2, for torch.export.load; none: policy.onnx in the folder of the run."""
    checkpoint: Checkpoint = "last"
    """The last one, or the best by return on train tasks."""


def main(arguments: list[str]) -> int:
    parsed = parse(ExportConfig, arguments, "export")
    out = parsed.run / "policy.onnx" if parsed.out is None else parsed.out
    check_format(out)
    run = replace(Run.load(parsed.run, device="cpu", reference=None, beside=()), checkpoint=parsed.checkpoint)
    with console.status("exporting, then comparing with the agent"):
        exported = export_policy(run, out)
    console.print(f"adapts {exported.metadata['adapts']}")
    console.print(
        f"largest difference from the agent over {STEPS:,} steps of {exported.rows} rows: "
        f"{exported.difference:.1e} (tolerance {TOLERANCE:.0e})"
    )
    console.print(f"wrote {out}")
    return 0
