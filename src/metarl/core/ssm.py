"""Linear state space models: dense, or diagonal in complex-conjugate pairs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from metarl.core.errors import UsageError
from metarl.core.scan_derivatives import scan_pairs

Structure: TypeAlias = Literal["dense", "diagonal"]
Coefficients: TypeAlias = tuple[Tensor, Tensor]

# Initial eigenvalues: a ring inside the unit circle, at small phases so that slow modes come first (Orvieto et al.
# 2023, arXiv 2303.06349, section 3.4). |λ| 0.8 forgets in about five steps, 0.999 in a thousand.
MIN_MODULUS, MAX_MODULUS, MAX_PHASE = 0.8, 0.999, 0.3 * math.pi
DENSE_MODULUS = 0.95
SKIP_GAIN = 0.5
SCANNED = {torch.float32, torch.float64}
"""What the kernels of the scan compute in on a CPU."""


class StateSpaceModel(nn.Module):
    """x_{t+1} = A x_t + B u_t,  y_t = C x_t + D u_t, with learnable A, B, C, D; stable at initialisation.

    structure "dense": A is any matrix [n, n], at first 0.95 times a random rotation; the recurrence is a loop over
    time.

    structure "diagonal": A has n/2 complex-conjugate pairs of eigenvalues λ = exp(−exp(ν) + i exp(θ)), inside the unit
    circle for every value of the parameters; the recurrence is one scan (`scan_derivatives`), on a CPU a sequence goes
    by chunks of time (`ssm_chunks`). `state_dim` counts real dimensions, so a pair is two. The read-out sees the state
    after the input has entered it, y_t = C' x_{t+1} + D' u_t, which is the form above with C = C'A and D = C'B + D';
    `matrices()` returns that equivalent. Inputs are scaled by √(1 − |λ|²), which keeps the state's size independent of
    |λ| (Orvieto et al. 2023).

    Args:
        state_dim: n, real dimensions of the state; even for "diagonal".
        input_dim: m, size of u.
        output_dim: p, size of y.
        structure: "dense" or "diagonal".

    Raises:
        UsageError: a dimension below 1, an unknown structure, or an odd `state_dim` for "diagonal".
    """

    def __init__(self, state_dim: int, input_dim: int, output_dim: int, structure: Structure = "diagonal") -> None:
        super().__init__()
        if min(state_dim, input_dim, output_dim) < 1:
            raise UsageError(f"StateSpaceModel needs dimensions >= 1, got {state_dim}, {input_dim}, {output_dim}")
        if structure not in ("dense", "diagonal"):
            raise UsageError(f"unknown structure '{structure}': choose from dense, diagonal")
        if structure == "diagonal" and state_dim % 2:
            raise UsageError(
                f"a diagonal model holds pairs: state_dim must be even, got {state_dim}; use {state_dim + 1}"
            )
        self.state_dim, self.input_dim, self.output_dim, self.structure = state_dim, input_dim, output_dim, structure
        self.B = nn.Parameter(_uniform(state_dim, input_dim))
        self.C = nn.Parameter(_uniform(output_dim, state_dim))
        self.D = nn.Parameter(SKIP_GAIN * torch.eye(output_dim, input_dim))
        if structure == "dense":
            self.A = nn.Parameter(DENSE_MODULUS * nn.init.orthogonal_(torch.empty(state_dim, state_dim)))
        else:
            squared = MIN_MODULUS**2 + torch.rand(state_dim // 2) * (MAX_MODULUS**2 - MIN_MODULUS**2)
            self.log_rate = nn.Parameter(torch.log(-0.5 * torch.log(squared)))
            self.log_phase = nn.Parameter(torch.log(MAX_PHASE * torch.rand(state_dim // 2) + 1e-4))

    def init_hidden(self, batch_size: int) -> Tensor:
        """The zero state [B, n]."""
        return self.B.new_zeros(batch_size, self.state_dim)

    def coefficients(self) -> Coefficients:
        """What `step` uses: (A [n, n], B [n, m]), or for "diagonal" (turn [2, n], scaled B [n, m]).

        turn: what an element of the state, and what the other one of its pair, adds to its successor: Re λ and ∓Im λ.
        """
        if self.structure == "dense":
            return self.A, self.B
        decay, gain = _decay_and_gain(self.log_rate, self.log_phase, self.B)
        re, im = decay.unbind(-1)
        turn = torch.stack([re, re, -im, im]).view(2, 2, -1)
        return turn.transpose(1, 2).flatten(1), gain

    def forward(
        self, inputs: Tensor, state: Tensor | None = None, starts: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Outputs y [T, B, p] for inputs u [T, B, m], and the state [B, n] after the last step.

        Args:
            state: x_0 [B, n]; None: zeros.
            starts: [T, B]; where set, the state is zero before that step.

        Raises:
            UsageError: another shape or another dtype than the model's; a diagonal one computes in float32 or float64
                on a CPU.
        """
        self._check(inputs, 3, state)
        if starts is not None and starts.shape != inputs.shape[:2]:
            raise UsageError(
                f"StateSpaceModel needs starts [T, B] = {tuple(inputs.shape[:2])}, got {tuple(starts.shape)}"
            )
        state = self.init_hidden(inputs.shape[1]) if state is None else state
        if self.structure == "dense":
            return self._dense(inputs, state, starts)
        keep = inputs.new_ones(inputs.shape[:2]) if starts is None else 1 - starts.to(inputs.dtype)
        arguments = inputs, self.log_rate, self.log_phase, self.B, self.C, self.D, keep, state
        if inputs.device.type == "cpu" and not torch._C._are_functorch_transforms_active():
            from metarl.core.ssm_chunks import DiagonalLayer  # here: imports numba, which takes long

            return cast("tuple[Tensor, Tensor]", DiagonalLayer.apply(_diagonal, *arguments))  # type: ignore[no-untyped-call]
        return _diagonal(*arguments)

    def step(self, inputs: Tensor, state: Tensor, coefficients: Coefficients | None = None) -> tuple[Tensor, Tensor]:
        """One step: inputs u [B, m] and state [B, n] to (y [B, p], next state [B, n]).

        `coefficients`: what `coefficients()` returned, to be reused while the parameters stand still.

        Raises:
            UsageError: another shape or another dtype than the model's.
        """
        self._check(inputs, 2, state)
        transition, gain = self.coefficients() if coefficients is None else coefficients
        skip = functional.linear(inputs, self.D)
        driven = functional.linear(inputs, gain)
        if self.structure == "dense":
            return torch.addmm(skip, state, self.C.T), torch.addmm(driven, state, transition.T)
        turned = torch.addcmul(driven, transition[0], state)
        moved = torch.addcmul(turned, transition[1], state.unflatten(-1, (-1, 2)).flip(-1).flatten(-2))
        return torch.addmm(skip, moved, self.C.T), moved

    def _dense(self, inputs: Tensor, state: Tensor, starts: Tensor | None) -> tuple[Tensor, Tensor]:
        driven = functional.linear(inputs, self.B)
        keep = None if starts is None else 1 - starts.to(inputs.dtype)
        states = []
        for step in range(inputs.shape[0]):
            if keep is not None:
                state = state * keep[step][:, None]
            states.append(state)
            state = functional.linear(state, self.A) + driven[step]
        return functional.linear(torch.stack(states), self.C) + functional.linear(inputs, self.D), state

    def _check(self, inputs: Tensor, ndim: int, state: Tensor | None) -> None:
        if not isinstance(inputs, Tensor):
            raise UsageError(
                f"StateSpaceModel takes tensors, got {type(inputs).__name__}: convert it by torch.as_tensor"
            )
        if inputs.ndim != ndim or inputs.shape[-1] != self.input_dim or (ndim == 3 and not len(inputs)):
            form = "[T, B, m] with T >= 1" if ndim == 3 else "[B, m]"
            raise UsageError(f"StateSpaceModel needs inputs {form}, m = {self.input_dim}; got {tuple(inputs.shape)}")
        wanted = (inputs.shape[-2], self.state_dim)
        if state is not None and tuple(state.shape) != wanted:
            raise UsageError(f"StateSpaceModel needs a state [B, n] = {wanted}, got {tuple(state.shape)}")
        own, device = self.B.dtype, inputs.device.type
        if ndim == 3 and self.structure == "diagonal" and device == "cpu" and not {own, inputs.dtype} <= SCANNED:
            raise UsageError(
                f"a diagonal StateSpaceModel takes sequences in float32 or float64 on a CPU, got {inputs.dtype} for a "
                f"model of {own}: convert both, by .float()"
            )
        dtypes = {own, inputs.dtype, own if state is None else state.dtype}
        if len(dtypes) > 1:
            if torch.is_autocast_enabled(device) and torch.float64 not in dtypes:  # it casts no doubles
                return
            given = inputs.dtype if state is None else f"{inputs.dtype} and a state of {state.dtype}"
            raise UsageError(f"a StateSpaceModel of {own} takes inputs and states of that, got {given}: convert them")

    @torch.no_grad()
    def matrices(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The equivalent real A [n, n], B [n, m], C [p, n], D [p, m]."""
        transition, gain = self.coefficients()
        if self.structure == "dense":
            return transition.clone(), gain.clone(), self.C.clone(), self.D.clone()
        re, im = transition[0, ::2], transition[1, 1::2]
        pairs = torch.stack([torch.stack([re, -im], -1), torch.stack([im, re], -1)], -2)
        transition = torch.block_diag(*pairs)
        return transition, gain, self.C @ transition, self.C @ gain + self.D

    def save(self, path: str | Path) -> None:
        """Write parameters and dimensions to one safetensors file."""
        shape = {name: str(getattr(self, name)) for name in ("state_dim", "input_dim", "output_dim", "structure")}
        save_file({name: tensor.contiguous() for name, tensor in self.state_dict().items()}, str(path), metadata=shape)

    @classmethod
    def load(cls, path: str | Path) -> StateSpaceModel:
        """The model that `save` wrote. Runs no code from the file.

        Raises:
            UsageError: the file cannot be read, or holds no such model.
        """
        try:
            with safe_open(str(path), framework="pt") as file:
                shape: dict[str, Any] = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError) as error:
            raise UsageError(f"cannot read a StateSpaceModel from {path}: {error}") from error
        if "structure" not in shape:
            raise UsageError(f"{path} holds no StateSpaceModel: write it with StateSpaceModel.save")
        state_dim, input_dim, output_dim = (int(shape[name]) for name in ("state_dim", "input_dim", "output_dim"))
        model = cls(state_dim, input_dim, output_dim, shape["structure"]).to(tensors["B"].dtype)
        model.load_state_dict(tensors)
        return model


SSM = StateSpaceModel


def _decay_and_gain(log_rate: Tensor, log_phase: Tensor, drive: Tensor) -> tuple[Tensor, Tensor]:
    """λ as pairs of reals [n/2, 2], and √(1 − |λ|²) B [n, m]."""
    rate, phase = log_rate.exp(), log_phase.exp()
    scale = torch.sqrt(-torch.expm1(-2 * rate))
    decay = torch.exp(-rate)[:, None] * torch.stack([phase.cos(), phase.sin()], -1)
    return decay, drive * scale.repeat_interleave(2)[:, None]


def _diagonal(
    inputs: Tensor,
    log_rate: Tensor,
    log_phase: Tensor,
    drive: Tensor,
    read_out: Tensor,
    skip: Tensor,
    keep: Tensor,
    state: Tensor,
) -> tuple[Tensor, Tensor]:
    """Outputs [T, B, p] and the last state [B, n], one operation after the other."""
    decay, gain = _decay_and_gain(log_rate, log_phase, drive)
    (steps, rows, width), pairs = inputs.shape, len(log_rate)
    flat = inputs.reshape(steps * rows, width)
    driven = functional.linear(flat, gain).view(steps, rows, pairs, 2)
    states = scan_pairs(decay, driven, keep, state.view(rows, pairs, 2)).flatten(2)
    outputs = torch.addmm(functional.linear(flat, skip), states.flatten(0, 1), read_out.T)
    return outputs.view(steps, rows, len(read_out)), states[-1]


def _uniform(rows: int, columns: int) -> Tensor:
    """U(±1/√columns), as in nn.Linear: what comes out has a third of the variance of what goes in."""
    bound = 1 / math.sqrt(columns)
    return torch.empty(rows, columns).uniform_(-bound, bound)
