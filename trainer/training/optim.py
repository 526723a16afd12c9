"""Optimizers, schedules of the learning rate, and adaptive clipping of gradients."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from syncnorm.trainer.contract.spec import JobSpec, OptimizerSpec, ScheduleSpec
from syncnorm.trainer.training.parameters.groups import WEIGHTED, parameter_groups


def optimizer_of_spec(model: nn.Module, spec: JobSpec, total_steps: int) -> OptimizerLRScheduler:
    """Optimizer and schedule of the spec, as configure_optimizers gives them."""
    optimizer = build_optimizer(model, spec.optimizer or OptimizerSpec())
    schedule = build_schedule(optimizer, spec.schedule or ScheduleSpec(), total_steps)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def build_optimizer(model: nn.Module, spec: OptimizerSpec) -> Optimizer:
    """The optimizer over every parameter that needs a gradient.

    Unless decay_norm, weight decay is for the weights of convolutions, linear layers and the like only; it leaves out
    biases and the parameters of normalization layers. The scalars of Fixup learn at a tenth of lr (Zhang et al. 2019).

    Raises: ValueError if a glob of optimizer.groups names nothing in `model`.
    """
    if spec.name == "lbfgs":  # knows a single group only
        return torch.optim.LBFGS([param for param in model.parameters() if param.requires_grad], lr=spec.lr)
    return _OPTIMIZERS[spec.name](parameter_groups(model, spec), spec)


_OPTIMIZERS: dict[str, Callable[[Any, OptimizerSpec], Optimizer]] = {
    "sgd": lambda groups, spec: torch.optim.SGD(groups, lr=spec.lr, momentum=spec.momentum, nesterov=spec.nesterov),
    "adagrad": lambda groups, spec: torch.optim.Adagrad(groups, lr=spec.lr),
    "rmsprop": lambda groups, spec: torch.optim.RMSprop(groups, lr=spec.lr, momentum=spec.momentum),
    "adam": lambda groups, spec: torch.optim.Adam(groups, lr=spec.lr, betas=(spec.betas[0], spec.betas[1])),
    "adamw": lambda groups, spec: torch.optim.AdamW(groups, lr=spec.lr, betas=(spec.betas[0], spec.betas[1])),
}


def build_schedule(optimizer: Optimizer, spec: ScheduleSpec, total_steps: int) -> LambdaLR:
    """Moves the learning rate with every optimizer step; see `rate_factor`."""
    rate_factor(spec, total_steps, 0)  # so that a mistake shows before the first step
    return LambdaLR(optimizer, functools.partial(rate_factor, spec, total_steps))


def rate_factor(spec: ScheduleSpec, total_steps: int, step: int) -> float:
    """The learning rate of optimizer step `step` (from 0) as a multiple of lr.

    Warmup of w steps: (step + 1) / (w + 1), so that no step is lost to a rate of 0 and step w has lr.
    constant: 1. linear: from 1 down to end_factor at step τ, constant afterwards (Goodfellow et al. 2016, eq. 8.14).
    cosine: (1 + cos(π p)) / 2 with p from 0 to 1 at the end (Loshchilov & Hutter 2016, arXiv:1608.03983, eq. 5, one
    cycle). step: gamma^⌊step / step_size⌋.

    Raises: ValueError if warmup leaves no step before τ.
    """
    warmup = spec.warmup_steps
    if spec.name == "linear" and (spec.tau_steps or max(total_steps, warmup + 1)) <= warmup:
        raise ValueError(
            f"schedule.tau_steps must be above warmup_steps, got {spec.tau_steps} and {warmup}. Make warmup shorter."
        )
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return _SHAPES[spec.name](spec, total_steps, step)


def _linear(spec: ScheduleSpec, total_steps: int, step: int) -> float:
    tau = spec.tau_steps or total_steps
    progress = _progress(step, spec.warmup_steps, tau)
    return 1 - progress * (1 - spec.end_factor)


def _cosine(spec: ScheduleSpec, total_steps: int, step: int) -> float:
    return (1 + math.cos(math.pi * _progress(step, spec.warmup_steps, total_steps))) / 2


def _step(spec: ScheduleSpec, total_steps: int, step: int) -> float:
    size = spec.step_size or max(1, math.ceil(total_steps / 3))
    return float(spec.gamma ** (step // size))


def _progress(step: int, start: int, end: int) -> float:
    return min(1.0, (step - start) / max(1, end - start))


_SHAPES: dict[str, Callable[[ScheduleSpec, int, int], float]] = {
    "constant": lambda _spec, _total_steps, _step: 1.0,
    "linear": _linear,
    "cosine": _cosine,
    "step": _step,
}


@torch.no_grad()
def clip_adaptive(model: nn.Module, factor: float, *, eps: float = 1e-3) -> None:
    """Adaptive gradient clipping: shorten each unit's gradient G to factor * max(‖W‖, eps) where it is longer.

    A unit is one output of a convolution or linear layer (norm over fan-in); a vector or scalar parameter is one unit.
    The output layer, the last convolution or linear layer of the model, is left out.
    See: Brock et al. 2021, arXiv:2102.06171, sec. 4. Call it with the gradients that the optimizer will see.
    """
    for param in _clipped_parameters(model):
        if param.grad is not None:
            limit = factor * _unit_norm(param).clamp_min(eps)
            length = _unit_norm(param.grad)
            shorter = limit / length.clamp_min(torch.finfo(length.dtype).tiny)
            param.grad.mul_(torch.where(length > limit, shorter, 1.0).to(param.grad.dtype))


def _clipped_parameters(model: nn.Module) -> Iterable[nn.Parameter]:
    weighted = [module for module in model.modules() if isinstance(module, WEIGHTED)]
    skipped = set(weighted[-1].parameters()) if weighted else set()
    return [param for param in model.parameters() if param not in skipped]


def _unit_norm(tensor: Tensor) -> Tensor:
    dim = tuple(range(1, tensor.ndim)) if tensor.ndim > 1 else None
    norm: Tensor = torch.linalg.vector_norm(tensor, dim=dim, keepdim=True)
    return norm
