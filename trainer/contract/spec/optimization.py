"""Optimizer and schedule."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from syncnorm.trainer.contract.bounds import MOST_STEPS
from syncnorm.trainer.contract.spec.values import Glob, NonNegative, Part, PositiveFloat, Steps


class GroupRule(Part):
    """Parameters that are optimized in another way, such as `{match: backbone.*, lr_factor: 0.1}`."""

    match: Glob
    """Glob over the paths of modules and parameters, such as `backbone.*`; it covers all that is in a module. No
    default."""
    lr_factor: PositiveFloat = 1.0
    """Their learning rate as a multiple of optimizer.lr. The schedule scales both alike. Default: 1, the same rate."""
    weight_decay: NonNegative | None = None
    """Their weight decay; biases and normalization have none unless decay_norm is set. Default: null, that of the
    optimizer."""


class OptimizerSpec(Part):
    """The optimizer, with torch's meaning of every field. If your LightningModule defines configure_optimizers, leave
    it out, or say with `override: true` that this one is used instead."""

    override: bool = False
    """Whether optimizer and schedule of the spec replace those of your LightningModule's configure_optimizers.
    Default: false, so that giving both is an error."""

    name: Literal["sgd", "adagrad", "rmsprop", "adam", "adamw", "lbfgs"] = "sgd"
    """Which optimizer of torch. Default: sgd."""
    lr: PositiveFloat = 0.1
    """Learning rate at the start, before warmup and schedule scale it. Default: 0.1, which suits sgd; adam and adamw
    usually want 1e-3."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Momentum of sgd and rmsprop; other optimizers refuse it. Default: 0, as in torch."""
    nesterov: bool = False
    """Nesterov momentum; needs sgd and a momentum above 0. Default: false, as in torch."""
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)] = [0.9, 0.999]
    """Decay rates of the two moments, for adam and adamw; without effect on the others. Default: [0.9, 0.999], as in
    torch."""
    weight_decay: NonNegative = 0.0
    """Weight decay as torch defines it for this optimizer: an L2 penalty, or decoupled with adamw. lbfgs refuses it.
    Default: 0."""
    decay_norm: bool = False
    """Whether weight decay also acts on biases and on the weights of normalization layers. Default: false, because the
    scale of a normalized layer is not what decay should shrink."""
    groups: Annotated[list[GroupRule], Field(max_length=64)] = []
    """Parameters that are optimized in another way; the first that covers a parameter counts. lbfgs takes none.
    Default: none, all are optimized alike."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor of the learning rate from each layer to the one before it, so that the last layer has lr, and one k layers
    before it lr * layer_decay^k (BEiT, arXiv:2106.08254); fine-tuning of transformers uses 0.65 to 0.9. It multiplies
    with lr_factor of groups. lbfgs takes 1 only. Default: 1, all layers have the same rate."""

    @model_validator(mode="after")
    def _consistent(self) -> OptimizerSpec:
        if self.momentum and self.name not in ("sgd", "rmsprop"):
            raise ValueError(f"momentum is for sgd and rmsprop, got it with {self.name}; leave it out")
        if self.nesterov and not (self.name == "sgd" and self.momentum > 0):
            raise ValueError("nesterov needs name: sgd and a momentum above 0")
        if self.name == "lbfgs" and self.weight_decay:
            raise ValueError("lbfgs takes no weight_decay; set it to 0")
        if self.name == "lbfgs" and (self.groups or self.layer_decay != 1):
            raise ValueError("lbfgs has one group of parameters; leave out groups and layer_decay")
        return self


class ScheduleSpec(Part):
    """How the learning rate changes, per optimizer step."""

    name: Literal["constant", "linear", "cosine", "step"] = "constant"
    """Shape after warmup: `constant`, `linear` down to end_factor, `cosine` down to 0 at the last step, or `step` with
    drops. Default: constant."""
    warmup_steps: Annotated[int, Field(ge=0, le=MOST_STEPS)] = 0
    """Optimizer steps over which the rate rises linearly from near 0 to lr. Default: 0, no warmup."""
    tau_steps: Steps | None = None
    """`linear` only: the optimizer step τ at which the rate has fallen to end_factor * lr. Default: null, the last
    step."""
    end_factor: Annotated[float, Field(ge=0, le=1)] = 0.01
    """`linear` only: η_τ / η_0, the rate from step τ on as a share of lr. Default: 0.01 (Goodfellow et al. 2016, sec.
    8.3.1)."""
    step_size: Steps | None = None
    """`step` only: optimizer steps between two drops. Default: null, a third of the run."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    """`step` only: factor at each drop. Default: 0.1, a tenth, as the residual networks were trained."""
