"""The matrix products of a meta-gradient and nothing else: what no way to compute it does without."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from metarl.core.threads import side_by_side

PRODUCTS = {
    torch.ops.aten.mm.default: torch.mm,
    torch.ops.aten.bmm.default: torch.bmm,
    torch.ops.aten.addmm.default: torch.addmm,
}


def products_of(gradient: Callable[[], object], device: str) -> Callable[[], None]:
    """Repeats the products that `gradient`, of a `MetaMAML` with compile=True, runs: groups of tasks side by side on a
    CPU, if it has several.

    They write into memory that is there already, and all groups that a thread works on share it.

    Raises:
        RuntimeError: it ran none, so that nothing would be measured.
    """
    run: list[GraphModule] = []

    def keep(graph: GraphModule, tensors: Sequence[Tensor], **options: Any) -> Callable[..., Any]:
        def recorded(*arguments: Any) -> Any:
            run.append(graph)
            return graph(*arguments)

        return recorded

    with mock.patch("torch._inductor.compile", keep):
        gradient()
    threads = min(torch.get_num_threads(), len(run)) if device == "cpu" and run else 1
    shares = [_products(run[first::threads]) for first in range(threads)]
    if not all(shares):
        raise RuntimeError("no matrix products were recorded: are programs still made by torch._inductor.compile?")

    def repeat(share: Sequence[tuple[Callable[..., Tensor], list[Tensor], Tensor]]) -> None:
        for product, factors, result in share:
            product(*factors, out=result)

    def repeat_all() -> None:
        if threads > 1:
            side_by_side(repeat, shares)
        else:
            repeat(shares[0])

    return repeat_all


def _products(run: Sequence[GraphModule]) -> list[tuple[Callable[..., Tensor], list[Tensor], Tensor]]:
    prepared = {graph: [_prepared(graph, node) for node in graph.graph.nodes if _is_product(node)] for graph in run}
    return [each for graph in run for each in prepared[graph]]


def _is_product(node: Node) -> bool:
    return node.target in PRODUCTS


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
