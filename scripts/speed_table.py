"""The speed table of the README, from the recorded benchmarks: of each what is asked for first.

    python scripts/speed_table.py

A test compares the README with what this prints.
"""

from __future__ import annotations

from typing import Any

from doc_tables import benchmark_rows, markdown

WORLDS = {
    "halfcheetah-vel": "half-cheetah worlds, a target speed each",
    "halfcheetah-gravity": "half-cheetah worlds, another gravity in every row",
    "ant-vel": "ant worlds, a target speed each",
    "walker2d-vel": "walker worlds, a target speed each",
}
"""Rows of `worlds.json` that are shown, and what they are called."""


def speed_table() -> str:
    """The table, in markdown."""
    world = {row["worlds"]: row for row in benchmark_rows("worlds")}
    layer = {row["side"]: row for row in benchmark_rows("memory") if row["T"] == 400}
    (mix,) = benchmark_rows("metaworld")
    training = {(row["side"], row["rows"]): row for row in benchmark_rows("end_to_end")}
    rl2, ppo = training["metarl RL2", 64], training["RecurrentPPO", 64]
    policy = {(row["model"], row["side"]): row for row in benchmark_rows("maml") if row["model"] in ("ssm", "lstm")}
    lstm = policy["lstm", "autograd loop"]
    rows = [_worlds_line(what, world[name]) for name, what in WORLDS.items()]
    rows += [
        _line(
            "Meta-World ML10, 20 rows",
            f"{_thousands(mix['ours'])} steps/s",
            f"{_thousands(mix['limit'])} ({mix['ours / limit']:.2f})",
            f"official, one process {_faster(mix, 'official, one process')}, two {_faster(mix, 'official, workers')}",
        ),
        _line(
            "state space layer, forward and backward, T 400, 64 rows, width 64, resets",
            _milliseconds(layer["StateSpaceModel"]),
            f"{_milliseconds(layer['layer matmuls'])} (its matrix products alone)",
            ", ".join(
                f"{peer} {_milliseconds(layer[peer])} ({layer['StateSpaceModel'][f'{peer} / this']:.2f} ×)"
                for peer in ("nn.LSTM", "nn.GRU")
            ),
        ),
        _line(
            "ssm memory (the layer in its gated residual block)",
            _milliseconds(layer["ssm"]),
            "",
            ", ".join(f"{peer} {layer['ssm'][f'{peer} / this']:.2f} ×" for peer in ("nn.LSTM", "nn.GRU")),
        ),
        *(_gradient_line(*size) for size in (("40", "20"), ("20", "2000"))),
        _line(
            "meta-gradient of an ssm policy, T 100, 20 tasks × 4 rows",
            _milliseconds(policy["ssm", "MetaMAML"]),
            "",
            f"lstm policy, autograd loop {_milliseconds(lstm)} ({lstm['this / first']:.1f} ×)",
        ),
        _line(
            "RL² on halfcheetah-vel, 64 rows",
            f"{_thousands(rl2['env-steps/s'])} steps/s",
            f"{_thousands(training['physics limit', 64]['env-steps/s'])} (physics alone; {rl2['this / limit']:.2f})",
            f"RecurrentPPO {_thousands(ppo['env-steps/s'])} ({ppo['ours / this']:.2f} ×)",
        ),
    ]
    return markdown(rows)


def _line(work: str, ours: str, limit: str, beside: str) -> dict[str, str]:
    return {"work": work, "ours": ours, "limit": limit, "beside": beside}


def _worlds_line(what: str, row: dict[str, Any]) -> dict[str, str]:
    peers = f"EnvPool {_faster(row, 'EnvPool')}, Gymnasium sync {_thousands(row['Gymnasium sync'])}"
    return _line(
        f"{what}, {row['rows']} rows",
        f"{_thousands(row['ours'])} steps/s",
        f"{_thousands(row['limit'])} ({row['ours / limit']:.2f})",
        f"{peers}, async {_thousands(row['Gymnasium async'])}",
    )


def _gradient_line(tasks: str, samples: str) -> dict[str, str]:
    side: dict[str, dict[str, Any]] = {}
    for row in benchmark_rows("maml"):
        # What stands further down is of other turns, about memory.
        if (str(row["tasks"]), str(row["samples"]), row["inner steps"], row["order"]) == (tasks, samples, 1, "second"):
            side.setdefault(row["side"], row)
    compiled = side["MetaMAML, compile"]
    peers = ", ".join(
        f"{peer} {_milliseconds(side[peer])} ({side[peer]['ms'] / compiled['ms']:.1f} ×)"
        for peer in ("torchopt", "autograd loop", "higher")
    )
    return _line(
        f"exact meta-gradient, {tasks} tasks × {int(samples):,} samples, MLP 64-64; with `compile=True`",
        f"{_milliseconds(side['MetaMAML'])}; {_milliseconds(compiled)}",
        f"{_milliseconds(side['matrix products alone'])} (its matrix products alone)",
        peers,
    )


def _faster(row: dict[str, Any], peer: str) -> str:
    return f"{_thousands(row[peer])} ({row[f'ours / {peer}']:.2f} ×)"


def _thousands(value: float) -> str:
    return f"{value / 1000:.1f}k"


def _milliseconds(row: dict[str, Any]) -> str:
    return f"{row['ms']:,.0f} ms" if row["ms"] >= 100 else f"{row['ms']:.1f} ms"


if __name__ == "__main__":
    print(speed_table())
