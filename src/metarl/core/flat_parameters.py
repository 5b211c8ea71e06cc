"""Parameters of a module as one vector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metarl.core.errors import UsageError


class FlatParameters:
    """Some parameters of a module as one vector that they share their memory with; the others take no gradients.

    One update of the vector is an update of all of them, at the cost of one operation instead of one a parameter.

    A copy, or what comes out of a pickle, shares its memory with the module that was copied or pickled along with it.

    Attributes:
        values: [P]; writing into it writes into the parameters.
        gradients: [P]; where `backward` accumulates. To be zeroed in place: `zero_grad` by its default, which
            `clipped_step` calls, takes them off `values`, and an optimiser then leaves those as they are.
    """

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        module.requires_grad_(False)
        parameters = [module.get_parameter(name) for name in names]
        if len({(parameter.dtype, parameter.device) for parameter in parameters}) != 1:
            raise UsageError("the parameters need one dtype and one device: choose some of them by name")
        self.module = module
        self.shapes = {name: parameter.shape for name, parameter in zip(names, parameters, strict=True)}
        self.values = torch.cat([parameter.detach().flatten() for parameter in parameters])
        self.gradients = torch.zeros_like(self.values)
        self._share()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._share()  # neither a copy nor a pickle of a tensor knows that another one views it

    def _share(self) -> None:
        self.values.grad = self.gradients
        values, gradients = self._pieces(self.values), self._pieces(self.gradients)
        for name in self.shapes:
            parameter = self.module.get_parameter(name)
            parameter.requires_grad_()
            parameter.data = values[name]
            parameter.grad = gradients[name]

    def _pieces(self, vector: Tensor) -> dict[str, Tensor]:
        """Views of a vector [P], each in the shape of its parameter."""
        sizes = [shape.numel() for shape in self.shapes.values()]
        pieces = zip(self.shapes.items(), vector.split(sizes), strict=True)
        return {name: piece.view(shape) for (name, shape), piece in pieces}

    def optimizer_tensors(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """A copy of the state of an optimiser of `values`: what one of the parameters themselves would have,
        '<parameter>.<slot>' -> tensor."""
        found: dict[str, Tensor] = {}
        for slot, value in optimizer.state.get(self.values, {}).items():
            own = self._pieces(value) if value.shape == self.values.shape else dict.fromkeys(self.shapes, value)
            found |= {f"{name}.{slot}": piece.clone() for name, piece in own.items()}
        return found

    def load_optimizer_tensors(self, optimizer: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:
        """Restore what `optimizer_tensors` returned, in place of all that the optimiser holds."""
        optimizer.state.clear()
        for slot in dict.fromkeys(name.rpartition(".")[2] for name in state):
            pieces = [state[f"{name}.{slot}"] for name in self.shapes]
            # A step is one number for all of them, also where each of them is a number itself.
            whole = slot != "step" and [piece.shape for piece in pieces] == list(self.shapes.values())
            value = torch.cat([piece.flatten() for piece in pieces]) if whole else pieces[0]
            optimizer.state[self.values][slot] = value.to(self.values.device, copy=True)


def flat_values(module: nn.Module, names: Sequence[str]) -> Tensor:
    """A copy [P] of the module's parameters, in the order of `names`."""
    return torch.cat([module.get_parameter(name).detach().flatten() for name in names])
