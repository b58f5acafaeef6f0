"""AdamW with its schedule, on gradients that lie end to end."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gdmix.config.training import Training
from gdmix.errors import ConfigError

_Schedule = Literal["constant", "linear", "cosine"]


def schedule_factor(step: int, steps: int, warmup: int, schedule: _Schedule) -> float:
    """Return what the learning rates are multiplied by in a step, the first being 0."""
    if step < warmup:
        return (step + 1) / warmup
    left = (steps - step) / (steps - warmup)
    match schedule:
        case "linear":
            return left
        case "cosine":
            return 0.5 * (1.0 - math.cos(math.pi * left))
        case "constant":
            return 1.0


def parameter_groups(network: nn.Module, training: Training) -> list[dict[str, Any]]:
    """Divide what is trained by learning rate, and by whether it decays.

    What ``network.pretrained_parameters()`` gives has the encoder's rate. Vectors (biases, the
    scales of norms) do not decay.
    """
    pretrained = getattr(network, "pretrained_parameters", lambda: ())
    known = {id(parameter) for parameter in pretrained()}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in network.parameters():
        if parameter.requires_grad:
            own = id(parameter) in known
            rate = training.encoder_learning_rate if own else training.learning_rate
            decay = training.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
    return [
        {"params": own, "highest_lr": rate, "decay": decay} for (rate, decay), own in groups.items()
    ]


class Gradients:
    """The gradients of all parameters, and the loss beside them, in one vector per type.

    So that they are cleared, clipped, and added up over processes, as one.

    Parameters
    ----------
    parameters
        On their device; their `grad` become views of the vectors.
    """

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        by_type: dict[torch.dtype, list[nn.Parameter]] = {}
        for parameter in parameters:
            by_type.setdefault(parameter.dtype, []).append(parameter)
        self.vectors: list[Tensor] = []
        for dtype, own in by_type.items():
            size = sum(p.numel() for p in own)
            vector = torch.zeros(size + 1, dtype=dtype, device=own[0].device)
            places = torch.split(vector[:-1], [p.numel() for p in own])
            for parameter, place in zip(own, places, strict=True):
                parameter.grad = place.view_as(parameter)
            self.vectors.append(vector)
        self.loss = self.vectors[0][-1]

    def clear(self) -> None:
        """Set all to 0."""
        for vector in self.vectors:
            vector.zero_()

    def norm(self) -> Tensor:
        """Return the norm of the gradient, a scalar."""
        norms = [torch.linalg.vector_norm(vector[:-1]).float() for vector in self.vectors]
        norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
        return norm

    def clip(self, norm: Tensor, limit: float) -> None:
        """Scale the gradient, whose norm is given, to at most a limit."""
        factor = (limit / (norm + 1e-12)).clamp(max=1.0)
        for vector in self.vectors:
            vector[:-1] *= factor


class Optimizer:
    """What changes the weights in a step.

    Parameters
    ----------
    network
        On its device.
    training
        The settings.
    steps
        How many there will be.

    Attributes
    ----------
    gradients
        To be filled before each step.

    Raises
    ------
    ConfigError
        If there is nothing to change.
    """

    def __init__(self, network: nn.Module, training: Training, steps: int) -> None:
        groups = parameter_groups(network, training)
        parameters = [p for group in groups for p in group["params"]]
        if not parameters:
            raise ConfigError("the network has no parameters that can be trained")
        self.gradients = Gradients(parameters)
        self._training, self._steps = training, steps
        warmup = training.warmup if training.warmup >= 1 else training.warmup * steps
        self._warmup = min(round(warmup), steps)
        self._adamw = torch.optim.AdamW(groups, betas=training.betas, fused=True)
        half = training.precision == "float16" and parameters[0].is_cuda
        # The gradient of a half-precision float underflows unless the loss is scaled up.
        self._scaler = torch.amp.GradScaler(parameters[0].device.type, enabled=half)

    @property
    def skips_overflow(self) -> bool:
        """Whether a gradient that is not finite changes nothing but the scale of the loss."""
        return self._scaler.is_enabled()

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a loss, and the loss itself, to those of the step."""
        torch.autograd.backward(self._scaler.scale(loss))
        self.gradients.loss += loss.detach()

    def step(self, number: int) -> Tensor:
        """Change the weights by a step, the first being 0; return the gradient's norm."""
        settings = self._training
        self._set_rates(number)
        self._scaler.unscale_(self._adamw)
        norm = self.gradients.norm()
        if settings.clip is not None:
            self.gradients.clip(norm, settings.clip)
        self._scaler.step(self._adamw)
        self._scaler.update()
        return norm

    def _set_rates(self, number: int) -> None:
        settings = self._training
        factor = schedule_factor(number, self._steps, self._warmup, settings.schedule)
        # AdamW divides its mean of gradients by 1 - beta1^t, and that of squares by 1 - beta2^t.
        # Other rates undo it.
        first, second = (
            1.0 if settings.bias_correction else 1.0 - beta ** (number + 1)
            for beta in settings.betas
        )
        undone = first / math.sqrt(second)
        for group in self._adamw.param_groups:
            group["lr"] = group["highest_lr"] * factor * undone
            group["weight_decay"] = group["decay"] / undone
            group["eps"] = settings.epsilon / math.sqrt(second)

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` takes."""
        return {"adamw": self._adamw.state_dict(), "scaler": self._scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where `state_dict` was."""
        self._adamw.load_state_dict(state["adamw"])
        self._scaler.load_state_dict(state["scaler"])
