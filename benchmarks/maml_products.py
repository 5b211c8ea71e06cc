"""The matrix products of a meta-gradient and nothing else: what no way to compute it does without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

PRODUCTS = {
    torch.ops.aten.mm.default: torch.mm,
    torch.ops.aten.bmm.default: torch.bmm,
    torch.ops.aten.addmm.default: torch.addmm,
}


def products_of(gradient: Callable[[], object]) -> Callable[[], None]:
    """Repeats the products that `gradient`, of a `MetaMAML` with compile=True, runs, group by group of tasks.

    They write into memory that is there already, and all groups share it.
    """
    run: list[GraphModule] = []

    def keep(graph: GraphModule, **options: Any) -> Callable[..., Any]:
        def recorded(*arguments: Any) -> Any:
            run.append(graph)
            return graph(*arguments)

        return recorded

    with mock.patch("torch.compile", keep):
        gradient()
    prepared = {
        graph: [_prepared(graph, node) for node in graph.graph.nodes if node.target in PRODUCTS] for graph in run
    }
    work = [each for graph in run for each in prepared[graph]]

    def repeat() -> None:
        for product, factors, result in work:
            product(*factors, out=result)

    return repeat


def _prepared(graph: GraphModule, node: Node) -> tuple[Callable[..., Tensor], list[Tensor], Tensor]:
    factors = [_like(_value(graph, argument)) for argument in node.args]
    product = _value(graph, node)
    return PRODUCTS[node.target], factors, torch.empty(product.shape, device=product.device)


def _value(graph: GraphModule, node: Any) -> Tensor:
    value: Tensor = getattr(graph, node.target) if node.op == "get_attr" else node.meta["val"]
    return value


def _like(value: Tensor) -> Tensor:
    """Numbers in the same layout."""
    return torch.empty_strided(value.shape, value.stride(), device=value.device).normal_()
