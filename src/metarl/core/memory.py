"""Memories: what a policy remembers of its trial. Five methods behind one interface.

The state of every memory is one tensor [B, ...] with the rows first; zeros are an empty memory, so forgetting a row is
multiplying it by zero, and carrying, shipping or masking rows is indexing.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from metarl.core.differentiable import PlainRecurrence
from metarl.core.errors import UsageError, unknown_name
from metarl.core.ssm import Coefficients, StateSpaceModel


@dataclass(frozen=True)
class MemoryConfig:
    """The network that carries the policy."""

    method: str = "ssm"
    """Memory of the policy: ssm, gru, lstm, transformer, or mlp (none)."""
    width: int = 64
    """Size of every layer, and of the vector between them."""
    depth: int = 1
    """Number of stacked memory layers."""
    state_dim: int = 128
    """ssm: real dimensions of a layer's state (a complex pair is two)."""
    heads: int = 4
    """transformer: attention heads."""
    context: int = 128
    """transformer: past steps that a step attends to, beside itself."""


class Memory(nn.Module, ABC):
    """A sequence model [T, B, d] -> [T, B, d] that can also be stepped; both ways give the same result."""

    state_shape: tuple[int, ...]
    """Shape of what one row remembers."""

    traceable: bool = True
    """Whether a sequence is the same operations whatever is in it, and few of them: then it can be compiled."""

    def init_state(self, num_rows: int) -> Tensor:
        """An empty memory for every row: zeros [B, *state_shape]. To be overridden where there are no parameters."""
        reference = next(self.parameters())
        return reference.new_zeros(num_rows, *self.state_shape)

    @abstractmethod
    def forward(self, x: Tensor, state: Tensor | None = None, starts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Outputs [T, B, d] for x [T, B, d] and the state after the last step.

        Args:
            state: [B, *state_shape]; None: empty.
            starts: [T, B]; where set, the row forgets everything before that step. None: nowhere.
        """

    def step(self, x: Tensor, state: Tensor, prepared: Sequence[Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Output [B, d] for x [B, d], and the next state. `prepared`: what `prepare` returned, to save its work."""
        y, state = self.forward(x[None], state)
        return y[0], state

    def prepare(self) -> tuple[Tensor, ...]:
        """What `step` can reuse for as long as the parameters stand still."""
        return ()


class SSMBlock(nn.Module):
    """x + GLU(GELU(SSM(norm(x)))), the SSM diagonal (Orvieto et al. 2023, figure 1)."""

    def __init__(self, width: int, state_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.core = StateSpaceModel(state_dim, width, width)
        self.gate = nn.Linear(width, 2 * width)

    def forward(self, x: Tensor, state: Tensor, starts: Tensor | None) -> tuple[Tensor, Tensor]:
        y, state = self.core(self.norm(x), state, starts)
        return self._mix(x, y), state

    def step(self, x: Tensor, state: Tensor, coefficients: Coefficients) -> tuple[Tensor, Tensor]:
        y, state = self.core.step(self.norm(x), state, coefficients)
        return self._mix(x, y), state

    def _mix(self, x: Tensor, y: Tensor) -> Tensor:
        return x + functional.glu(self.gate(functional.gelu(y)), dim=-1)


class SSMMemory(Memory):
    """A stack of residual blocks around diagonal state space models."""

    def __init__(self, config: MemoryConfig) -> None:
        super().__init__()
        self.state_shape = (config.depth, config.state_dim)
        blocks = nn.ModuleList(SSMBlock(config.width, config.state_dim) for _ in range(config.depth))
        self.blocks = cast("Sequence[SSMBlock]", blocks)

    def forward(self, x: Tensor, state: Tensor | None = None, starts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        state = self.init_state(x.shape[1]) if state is None else state
        states = []
        for layer, block in enumerate(self.blocks):
            x, last = block(x, state[:, layer], starts)
            states.append(last)
        return x, torch.stack(states, 1)

    def step(self, x: Tensor, state: Tensor, prepared: Sequence[Tensor] | None = None) -> tuple[Tensor, Tensor]:
        states = []
        prepared = self.prepare() if prepared is None else prepared
        for layer, block in enumerate(self.blocks):
            x, last = block.step(x, state[:, layer], (prepared[2 * layer], prepared[2 * layer + 1]))
            states.append(last)
        return x, torch.stack(states, 1)

    def prepare(self) -> tuple[Tensor, ...]:
        return tuple(chain.from_iterable(block.core.coefficients() for block in self.blocks))


class RecurrentMemory(Memory):
    """x + cell(x), the cell torch's own GRU or LSTM; what needs no memory passes by it, as in the other methods.

    A sequence with resets runs in one piece from each time at which any row starts; in a differentiable twin, whose
    cell is a `PlainRecurrence`, step by step.
    """

    traceable = False

    def __init__(self, config: MemoryConfig, cell: type[nn.GRU] | type[nn.LSTM]) -> None:
        super().__init__()
        self.cell = cell(config.width, config.width, config.depth)
        self.parts = 2 if cell is nn.LSTM else 1
        self.state_shape = (self.parts, config.depth, config.width)

    def forward(self, x: Tensor, state: Tensor | None = None, starts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        state = self.init_state(x.shape[1]) if state is None else state
        if isinstance(self.cell, PlainRecurrence):  # it forgets row by row as it goes
            return self._run(x, state, starts)
        bounds = [0, x.shape[0]] if starts is None else _segment_bounds(starts)
        outputs = []
        for begin, end in pairwise(bounds):
            if starts is not None:
                state = state * (1 - starts[begin].to(x.dtype)).view(-1, 1, 1, 1)
            y, state = self._run(x[begin:end], state)
            outputs.append(y)
        return torch.cat(outputs), state

    def step(self, x: Tensor, state: Tensor, prepared: Sequence[Tensor] | None = None) -> tuple[Tensor, Tensor]:
        y, state = self._run(x[None], state)
        return y[0], state

    def _run(self, x: Tensor, state: Tensor, *starts: Tensor | None) -> tuple[Tensor, Tensor]:
        parts = state.permute(1, 2, 0, 3).contiguous()  # [parts, depth, B, width]
        y, last = self.cell(x, parts[0] if self.parts == 1 else (parts[0], parts[1]), *starts)
        stacked = last[None] if self.parts == 1 else torch.stack(last)
        return x + y, stacked.permute(2, 0, 1, 3)


def _segment_bounds(starts: Tensor) -> list[int]:
    """0, every later time at which some row starts, and T."""
    times = torch.nonzero(starts[1:].any(dim=1)).flatten() + 1
    return [0, *times.tolist(), starts.shape[0]]


class TransformerMemory(Memory):
    """Causal attention over the last `context` steps, pre-norm; positions enter as a penalty on distance.

    The penalty is ALiBi's (Press et al. 2022, arXiv 2108.12409), so nothing depends on how old a trial is. The state
    holds keys, values and a flag that the slot is filled: [B, depth, context, 2 d + 1].
    """

    def __init__(self, config: MemoryConfig) -> None:
        super().__init__()
        width, self.heads, self.context = config.width, config.heads, config.context
        if width % self.heads:
            raise UsageError(
                f"transformer needs a width that its heads divide, got width {width} and {self.heads} heads"
            )
        self.state_shape = (config.depth, self.context, 2 * width + 1)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(config.depth))
        self.projections = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(config.depth))
        self.merges = nn.ModuleList(nn.Linear(width, width) for _ in range(config.depth))
        self.feed_forwards = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
            for _ in range(config.depth)
        )
        self.slopes: Tensor
        slopes = torch.exp2(-8.0 * torch.arange(1, self.heads + 1) / self.heads)
        self.register_buffer("slopes", slopes, persistent=False)

    def forward(self, x: Tensor, state: Tensor | None = None, starts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        steps, rows, width = x.shape
        state = self.init_state(rows) if state is None else state
        # Counted in float32: to bfloat16 257 is 256, and a start would be none.
        segments = x.new_zeros(steps, rows, dtype=torch.float32) if starts is None else starts.float().cumsum(0)
        bias = self._bias(state[:, 0, :, -1], segments)
        alive = (segments == segments[-1]).to(x.dtype).T[..., None]  # [B, T, 1]: not forgotten by the end
        cache_alive = (segments[-1] == 0).to(x.dtype)[:, None, None]
        x = x.transpose(0, 1)
        states = []
        for layer, (norm, project, merge, feed_forward) in enumerate(self._layers()):
            query, key_value = project(norm(x)).split((width, 2 * width), dim=-1)
            new = torch.cat([key_value, torch.ones_like(key_value[..., :1])], -1) * alive
            states.append(torch.cat([state[:, layer] * cache_alive, new], 1)[:, -self.context :])
            past = torch.cat([state[:, layer, :, :-1], key_value], 1)
            x = x + merge(self._attend(query, past, bias))
            x = x + feed_forward(x)
        return x.transpose(0, 1), torch.stack(states, 1)

    def _layers(self) -> Any:
        return zip(self.norms, self.projections, self.merges, self.feed_forwards, strict=True)

    def _bias(self, filled: Tensor, segments: Tensor) -> Tensor:
        """Added to attention scores, [B, heads, T, context + T]: −slope · distance, −∞ where a step may not look."""
        steps = segments.shape[0]
        key_segment = torch.cat([torch.where(filled > 0, 0.0, -1.0), segments.T], 1)  # [B, context + T]
        query_time = torch.arange(self.context, self.context + steps, device=segments.device)
        distance = query_time[:, None] - torch.arange(self.context + steps, device=segments.device)  # [T, context + T]
        near = (distance >= 0) & (distance <= self.context)
        allowed = near & (key_segment[:, None, :] == segments.T[:, :, None])
        penalty = -self.slopes[:, None, None] * distance
        return torch.where(allowed[:, None], penalty, -math.inf)

    def _attend(self, query: Tensor, past: Tensor, bias: Tensor) -> Tensor:
        key, value = past.chunk(2, dim=-1)
        query, key, value = (tensor.unflatten(-1, (self.heads, -1)).transpose(1, 2) for tensor in (query, key, value))
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=bias).transpose(1, 2).flatten(-2)


class NoMemory(Memory):
    """A feed-forward network: the baseline that cannot remember. Its state is empty."""

    state_shape = (0,)

    def __init__(self, config: MemoryConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(config.width, config.width) for _ in range(config.depth))

    def forward(self, x: Tensor, state: Tensor | None = None, starts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        for layer in self.layers:
            x = functional.silu(layer(x))
        return x, self.init_state(x.shape[1]) if state is None else state


_METHODS: dict[str, Callable[[MemoryConfig], Memory]] = {
    "ssm": SSMMemory,
    "gru": lambda config: RecurrentMemory(config, nn.GRU),
    "lstm": lambda config: RecurrentMemory(config, nn.LSTM),
    "transformer": TransformerMemory,
    "mlp": NoMemory,
}
METHODS = tuple(_METHODS)
"""Those of the package."""


def register_memory(name: str, make: Callable[[MemoryConfig], Memory]) -> None:
    """Make `MemoryConfig(name)`, and so `--method name`, stand for `make(config)`, in this process.

    Raises:
        UsageError: a name that is taken.
    """
    if name in _METHODS:
        raise UsageError(f"method '{name}' is registered already; choose another name")
    _METHODS[name] = make


def make_memory(config: MemoryConfig) -> Memory:
    """The memory that `config.method` names.

    Raises:
        UsageError: an unknown method, or a size that is not at least 1 or does not suit the method.
    """
    if config.method not in _METHODS:
        raise unknown_name("method", config.method, _METHODS)
    if min(config.width, config.depth, config.context, config.heads) < 1:
        sizes = f"{config.width}, {config.depth}, {config.context}, {config.heads}"
        raise UsageError(f"width, depth, context and heads are at least 1, got {sizes}")
    return _METHODS[config.method](config)
