"""A twin of a model that `torch.func` can map over tasks and that has derivatives of every order.

Some fused layers stand in the way of meta-gradients: recurrent kernels (no second derivative on CUDA, no rule for vmap
anywhere), attention (no second derivative), normalisation of weights (a wrong one) and of activations (a wrong one
under vmap; batch normalisation also writes its running statistics in place). The twin has the same parameters and
buffers under the same names and computes the same, by elementary operations.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from metarl.core.errors import UsageError


class PlainRecurrence(nn.RNNBase):
    """An nn.RNN, nn.GRU or nn.LSTM as a loop of elementary operations; takes starts too.

    `forward(x, state, starts)`: x [T, B, d] ([B, T, d] if batch_first), state as the fused module takes it, and
    starts [T, B]: where set, the row forgets before that step (in one direction only).
    """

    def forward(self, x: Tensor, state: Any = None, starts: Tensor | None = None) -> tuple[Tensor, Any]:
        if not isinstance(x, Tensor) or x.ndim != 3:
            raise UsageError(f"meta-gradients through {self.mode} need sequences [T, B, d], padded; got {_form(x)}")
        x = x.transpose(0, 1) if self.batch_first else x
        directions = 2 if self.bidirectional else 1
        if starts is not None and self.bidirectional:
            raise UsageError(f"a bidirectional {self.mode} takes no starts: it reads what comes after one")
        zeros = x.new_zeros(self.num_layers * directions, x.shape[1], self.hidden_size)
        parts = (zeros,) * (2 if self.mode == "LSTM" else 1) if state is None else _as_parts(state)
        keep = None if starts is None else 1 - starts.to(x.dtype)[..., None]
        last = []
        for layer in range(self.num_layers):
            if layer and self.dropout:
                x = functional.dropout(x, self.dropout, self.training)
            sides = []
            for direction in range(directions):
                index = layer * directions + direction
                y, final = self._run(index, x, tuple(part[index] for part in parts), keep)
                sides.append(y)
                last.append(final)
            x = torch.cat(sides, -1)
        ends = tuple(torch.stack([final[part] for final in last]) for part in range(len(parts)))
        return (x.transpose(0, 1) if self.batch_first else x), (ends if len(ends) == 2 else ends[0])

    def _run(
        self, index: int, x: Tensor, state: tuple[Tensor, ...], keep: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Outputs [T, B, hidden] of one layer in one direction, and its last state."""
        names = self._all_weights[index]
        w_in, w_hidden, *biases = (getattr(self, name) for name in names)
        b_in, b_hidden = biases or (None, None)
        backwards = self.bidirectional and index % 2 == 1
        driven = functional.linear(x.flip(0) if backwards else x, w_in, b_in)
        cell = _CELLS[self.mode]
        outputs = []
        for time in range(len(driven)):
            if keep is not None:
                state = tuple(part * keep[time] for part in state)
            state = cell(driven[time], functional.linear(state[0], w_hidden, b_hidden), state)
            outputs.append(state[0])
        y = torch.stack(outputs)
        return (y.flip(0) if backwards else y), state


def _gru_cell(driven: Tensor, recurrent: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """r, z = σ(·), n = tanh(x_n + r h_n), h' = n + z (h − n) (Cho et al. 2014, arXiv 1406.1078, as in torch)."""
    x_reset, x_update, x_new = driven.chunk(3, -1)
    h_reset, h_update, h_new = recurrent.chunk(3, -1)
    new = torch.tanh(x_new + torch.sigmoid(x_reset + h_reset) * h_new)
    return (new + torch.sigmoid(x_update + h_update) * (state[0] - new),)


def _lstm_cell(driven: Tensor, recurrent: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """c' = σ(f) c + σ(i) tanh(g), h' = σ(o) tanh(c') (Hochreiter & Schmidhuber 1997, with forget gate)."""
    input_gate, forget_gate, new, output_gate = (driven + recurrent).chunk(4, -1)
    cell = torch.sigmoid(forget_gate) * state[1] + torch.sigmoid(input_gate) * torch.tanh(new)
    return torch.sigmoid(output_gate) * torch.tanh(cell), cell


_CELLS: dict[str, Callable[[Tensor, Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]] = {
    "GRU": _gru_cell,
    "LSTM": _lstm_cell,
    "RNN_TANH": lambda driven, recurrent, state: (torch.tanh(driven + recurrent),),
    "RNN_RELU": lambda driven, recurrent, state: (torch.relu(driven + recurrent),),
}


def differentiable_twin(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """A copy of `model` for `call_twin`, and which of its layers run by other operations.

    Batch normalisation in the twin uses the statistics of the batch in training, the running ones otherwise, and never
    writes.

    Raises:
        UsageError: a recurrent layer has a form that has no such operations.
    """
    twin = copy.deepcopy(model)
    replaced = []
    for name, module in twin.named_modules():
        if isinstance(module, nn.RNNBase):
            if type(module) not in (nn.RNN, nn.GRU, nn.LSTM):
                raise UsageError(
                    "meta-gradients go through nn.RNN, nn.GRU and nn.LSTM, not through a subclass such as "
                    f"{type(module).__name__} of {name or 'the model'}: let it hold the layer instead"
                )
            if module.proj_size:
                raise UsageError(f"meta-gradients through {name or 'an LSTM'} need proj_size 0, got {module.proj_size}")
            replaced.append(f"{name or 'the model'} ({type(module).__name__})")
            module.__class__ = PlainRecurrence  # the same attributes and parameters, another forward
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.track_running_stats = False
    return twin, replaced


def call_twin(twin: nn.Module, model: nn.Module, parameters: Mapping[str, Tensor], arguments: tuple[Any, ...]) -> Any:
    """What `model` returns for `arguments` by `parameters`, {name: tensor} in place of its own; computed by its twin,
    in the mode that the model is in.

    Raises:
        UsageError: a name that no parameter and no buffer of the model has.
    """
    for theirs, module in zip(twin.modules(), model.modules(), strict=True):
        theirs.training = module.training
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    if unknown := parameters.keys() - own.keys():
        raise UsageError(f"the model has no parameter {', '.join(sorted(unknown))}: give those of named_parameters()")
    names = {id(tensor): name for name, tensor in own.items()}
    given = {**own, **parameters}
    # A tied tensor is at several places, and a module that the model holds twice is one place. Told to find the ties,
    # functional_call would write to such a place twice, and leave the first tensor there when it restores the second.
    places = chain.from_iterable(
        chain(
            module.named_parameters(path, recurse=False, remove_duplicate=False),
            module.named_buffers(path, recurse=False, remove_duplicate=False),
        )
        for path, module in model.named_modules()
    )
    filled = {place: given[names[id(tensor)]] for place, tensor in places}
    with differentiable_kernels():
        return functional_call(twin, filled, arguments, tie_weights=False)


class differentiable_kernels(TorchFunctionMode):
    """Inside, attention, normalisation and recurrent cells run by elementary operations, in torch's own layers too.

    Fused attention has no second derivative. torch's normalisations have wrong second derivatives under vmap where they
    are affine, and wrong third ones everywhere (pytorch issues 175754 and functorch 534), its weight normalisation has
    wrong second ones everywhere, and its recurrent cells fail under vmap. Elementary operations do none of that.

    It holds for the thread that enters it: torch's own switches are the process's, which other threads share. Layers of
    torch that look for a fused path of their own find none, for in a mode every tensor may stand for another.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result: Any = _PLAIN.get(func, func)(*args, **(kwargs or {}))
        return result


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(Q Kᵀ · scale + mask) V, in the operations and the order of torch's reference (SDPBackend.MATH)."""
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    root = math.sqrt(abs(scale))  # half of it in each factor: the product would be large
    scores = (query * math.copysign(root, scale)) @ (key.transpose(-2, -1) * root)
    if is_causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, -math.inf)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    weights = torch._safe_softmax(scores, -1)  # 0 where a query may look at nothing
    return (functional.dropout(weights, dropout_p) if dropout_p else weights) @ value


# The same code, by `_attention`: a mode does not reach into it. Asked for its weights, it computes them by elementary
# operations itself, but gives NaN where a query may look at nothing. Beside another mode, as that of a default device,
# it would go on to torch's own.
_multi_head_attention = FunctionType(
    functional.multi_head_attention_forward.__code__,
    {
        **vars(functional),
        "scaled_dot_product_attention": _attention,
        "has_torch_function": lambda tensors: False,
    },
    argdefs=functional.multi_head_attention_forward.__defaults__,
)


def _standardize(x: Tensor, axes: Iterable[int], eps: float) -> Tensor:
    over = tuple(axes)
    centred = x - x.mean(over, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(over, keepdim=True) + eps)


def _by_channel(x: Tensor, *values: Tensor | None) -> list[Tensor | None]:
    """Values [C], shaped to act on the second axis of x [N, C, ...]."""
    return [None if value is None else value.view(1, -1, *[1] * (x.ndim - 2)) for value in values]


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    return _affine(_standardize(input, range(-len(normalized_shape), 0), eps), weight, bias)


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    mean, variance, scale, shift = _by_channel(input, running_mean, running_var, weight, bias)
    if training or mean is None or variance is None:
        if input.numel() == input.shape[1]:
            raise UsageError(f"batch normalisation needs more than one value a channel, got {tuple(input.shape)}")
        return _affine(_standardize(input, [0, *range(2, input.ndim)], eps), scale, shift)
    return _affine((input - mean) * torch.rsqrt(variance + eps), scale, shift)


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not use_input_stats:
        return _batch_norm(input, running_mean, running_var, weight, bias, eps=eps)
    scale, shift = _by_channel(input, weight, bias)
    return _affine(_standardize(input, range(2, input.ndim), eps), scale, shift)


def _group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    grouped = input.unflatten(1, (num_groups, -1))
    scale, shift = _by_channel(input, weight, bias)
    return _affine(_standardize(grouped, range(2, grouped.ndim), eps).flatten(1, 2), scale, shift)


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """g v / ‖v‖, the norm over every axis but `dim`; -1: over all."""
    over = [axis for axis in range(v.ndim) if dim == -1 or axis != dim % v.ndim]
    norm: Tensor = torch.linalg.vector_norm(v[..., None], dim=(*over, -1), keepdim=True)[..., 0]
    return v * (g / norm)


def _plain_cell(mode: str) -> Callable[..., Any]:
    """One step of nn.RNNCell, nn.GRUCell or nn.LSTMCell."""

    def step(x: Tensor, state: Any, w_in: Tensor, w_hidden: Tensor, *biases: Tensor | None) -> Any:
        b_in, b_hidden = biases or (None, None)
        parts = _as_parts(state)
        driven, recurrent = functional.linear(x, w_in, b_in), functional.linear(parts[0], w_hidden, b_hidden)
        after = _CELLS[mode](driven, recurrent, parts)
        return after if mode == "LSTM" else after[0]

    return step


_PLAIN: dict[Any, Callable[..., Any]] = {
    functional.scaled_dot_product_attention: _attention,
    functional.multi_head_attention_forward: _multi_head_attention,
    functional.layer_norm: _layer_norm,
    functional.batch_norm: _batch_norm,
    functional.instance_norm: _instance_norm,
    functional.group_norm: _group_norm,
    torch._weight_norm: _weight_norm,
    torch.lstm_cell: _plain_cell("LSTM"),
    torch.gru_cell: _plain_cell("GRU"),
    torch.rnn_tanh_cell: _plain_cell("RNN_TANH"),
    torch.rnn_relu_cell: _plain_cell("RNN_RELU"),
}


def _as_parts(state: Any) -> tuple[Tensor, ...]:
    return (state,) if isinstance(state, Tensor) else tuple(state)


def _form(x: Any) -> str:
    return str(tuple(x.shape)) if isinstance(x, Tensor) else type(x).__name__
