"""Functions of tensors as CUDA graphs: recorded once for every form of their arguments, then replayed by one launch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from metarl.meta_rl.compiled import Function

WARM_UPS = 2
"""Runs before the recording, in which kernels are compiled and libraries take their memory."""

_RECORDING = threading.Lock()
"""torch records one graph at a time."""


class Recordings:
    """Functions of tensors on a GPU, kept by key and by the form of the tensors.

    A small network is computed in microseconds and sent operation by operation in milliseconds; a graph is sent at
    once. What is computed is the same.

    A function may differentiate. Parameters that it reads from elsewhere stay live, if they are written in place. All
    else that it depends on is frozen as it was recorded, so the key has to name it. It may not wait for the GPU, as a
    function does that takes a number out of a tensor.
    """

    def __init__(self) -> None:
        self._recordings: dict[Hashable, _Recording] = {}

    def __reduce__(self) -> tuple[type[Recordings], tuple[()]]:
        return Recordings, ()  # a copy, which reads other parameters, records anew

    def run(self, key: Hashable, function: Function, *tensors: Tensor) -> Sequence[Tensor]:
        """`function(*tensors)`."""
        form = key, *((tensor.shape, tensor.dtype) for tensor in tensors)
        if form not in self._recordings:
            with torch.cuda.device_of(tensors[0]):  # a graph is of the current one
                self._recordings[form] = _Recording(function, tensors)
        return self._recordings[form].run(tensors)


class _Recording:
    """A graph, with memory of its own for what goes in and what comes out."""

    def __init__(self, function: Function, tensors: Sequence[Tensor]) -> None:
        self._inputs = [tensor.clone(memory_format=torch.contiguous_format) for tensor in tensors]
        self._replay, self._outputs = _record(lambda: function(*self._inputs))

    def run(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        torch._foreach_copy_(self._inputs, list(tensors))
        self._replay()
        results = [torch.empty_like(output) for output in self._outputs]
        torch._foreach_copy_(results, self._outputs)
        return results


def _record(function: Callable[[], Sequence[Tensor]]) -> tuple[Callable[[], None], list[Tensor]]:
    """What runs `function` again, and where that leaves its results."""
    with _RECORDING:
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                function()
        torch.cuda.current_stream().wait_stream(stream)
        # On this stream: torch's own is of the device that it recorded on first. Other threads, with agents of their
        # own, may ask for memory meanwhile.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            outputs = [output.detach() for output in function()]
    return graph.replay, outputs
