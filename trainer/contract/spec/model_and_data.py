"""The network of a job and the samples it is trained on."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from syncnorm.trainer.contract.spec.starting_weights import InitFrom
from syncnorm.trainer.contract.spec.values import (
    ClassPath,
    Glob,
    MetricName,
    Moment,
    Name,
    NonNegative,
    Part,
    ScoreName,
)


def _require_one(name: str | None, class_path: str | None, what: str) -> None:
    if (name is None) == (class_path is None):
        raise ValueError(f"{what} needs exactly one of name (built in) and class_path (yours)")


class ClassSpec(Part):
    """A class of yours or of a library, such as `{class_path: torch.nn.SmoothL1Loss, init_args: {beta: 0.5}}`."""

    class_path: ClassPath
    """Import path of the class, or of a function that returns what is wanted. No default. Where uploaded code is off,
    only losses of torch.nn and metrics of torchmetrics.classification and torchmetrics.regression are allowed."""
    init_args: dict[str, Any] = {}
    """Its arguments; a list of numbers where it takes a tensor. Default: none, so that its own defaults hold."""


class FreezeRule(Part):
    """Parameters that are not trained, such as `{match: backbone.*, unfreeze_at: {epochs: 1}}`. A glob alone is short
    for one without unfreeze_at."""

    match: Glob
    """Glob over the paths of modules and parameters, such as `backbone.*`; it covers all that is in a module. No
    default."""
    unfreeze_at: Moment | None = None
    """When their training begins: `{epochs: 1}` after the first epoch, or `{steps: 500}` after so many optimizer steps.
    Default: null, they stay frozen."""


def _as_rule(value: Any) -> Any:
    return {"match": value} if isinstance(value, str) else value


class ModelSpec(Part):
    """The network: a built-in one by name, `timm/NAME` or `torchvision/NAME` where these are installed, or any class of
    yours by path."""

    name: Name | None = None
    """A built-in model (`GET /v1/models` lists them), a timm model such as `timm/resnet18`, or one of torchvision such
    as `torchvision/fasterrcnn_resnet50_fpn`. Default: none. Give exactly one of name and class_path."""
    class_path: ClassPath | None = None
    """Import path of your class or function, such as `my_package.MyModel`. A LightningModule brings its own loss, and
    its optimizers if it has any. Default: none. Where uploaded code is off, only `torchvision.models.` is allowed."""
    init_args: dict[str, Any] = {}
    """Arguments of the model, checked when you submit (built-in) or when an attempt starts (yours). Default: none, so
    that the model's own defaults hold."""
    init_from: InitFrom | None = None
    """Trained weights to start from: those of a job, of a registered model or in a file. Default: null, the weights
    that the model is built with. See docs/reference/trained-weights.md."""
    freeze: Annotated[
        list[Annotated[FreezeRule, BeforeValidator(_as_rule, json_schema_input_type=Glob | FreezeRule)]],
        Field(max_length=64),
    ] = []
    """Parameters that are not trained, as globs: `[backbone.*]`, or with a time to unfreeze them. The first that covers
    a parameter counts. Normalization layers there use their running statistics and don't update them. Default: none."""
    loss: ClassSpec | None = None
    """The loss of a plain network, called with (output, target): a mean over samples, or one value for each (reduction:
    none). Default: null, the loss of the task, see docs/reference/tasks.md. A LightningModule brings its own."""
    metrics: Annotated[dict[ScoreName, ClassSpec], Field(max_length=16)] = {}
    """Further scores of a plain network by name, as classes of torchmetrics: `{f1: {class_path: …}}` is logged as
    `val/f1` at each validation, over the samples of all workers. Default: none."""
    inferer: ClassSpec | None = None
    """How a plain network is run in validation: called with (samples, network), such as
    monai.inferers.SlidingWindowInferer. Default: null, the network itself, or for data nifti windows of the size of a
    patch. Has no effect on training and export."""
    aux_weights: Annotated[dict[MetricName, NonNegative], Field(max_length=16)] = {}
    """Weights of the losses of further outputs, such as `{aux: 0.4}` for a network that returns {out: …, aux: …}. They
    are added to the training loss; validation uses the main output. Default: none, the main output alone."""

    @model_validator(mode="after")
    def _one_source(self) -> ModelSpec:
        _require_one(self.name, self.class_path, "model")
        return self

    def named_parts(self) -> dict[str, ClassSpec]:
        """The classes besides the network's, by the path of their field in the job spec."""
        parts = {"model.loss": self.loss, "model.inferer": self.inferer}
        parts |= {f"model.metrics.{name}": metric for name, metric in self.metrics.items()}
        return {path: part for path, part in parts.items() if part is not None}


class DataSpec(Part):
    """Where the samples come from and how many a worker takes at a time."""

    name: Name | None = None
    """A built-in data set; `GET /v1/datasets` lists them. Default: none. Give name or class_path, or neither for a
    LightningModule that has loaders of its own."""
    class_path: ClassPath | None = None
    """Import path of your LightningDataModule, or of a function that returns one. Default: none. Give name or
    class_path, or neither for a LightningModule that has loaders of its own."""
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Samples per worker and batch. Built-in data needs it, because learning rate and batch statistics depend on it.
    Default: null, the batch size of your LightningDataModule's own loader. The global batch is batch_size *
    resources.workers, also while an elastic job runs on fewer workers."""
    last_batch: Literal["weight", "pad", "drop"] | None = None
    """What happens to a smaller last batch of an epoch. `weight` spreads it over the workers and weights their losses
    by their samples, which is exactly the large-batch gradient. `pad` repeats samples until all workers have as many,
    as Lightning does. `drop` leaves it out. Default: null, which is pad for a LightningModule of yours and weight for
    everything else."""
    count: ClassPath | None = None
    """Import path of a function of yours that gets a batch and returns its number of samples, for the throughput and
    the mean of train/loss. Default: null, the `batch_size` that your LightningModule passes to self.log, else the
    length of the first tensor in the batch."""
    init_args: dict[str, Any] = {}
    """Arguments of the data set, such as `root` or `size`. Default: none, so that the data set's own defaults hold."""

    @model_validator(mode="after")
    def _one_source(self) -> DataSpec:
        if self.name is not None and self.class_path is not None:
            raise ValueError("data takes one of name (built in) and class_path (yours), not both")
        if self.name is not None and self.batch_size is None:
            raise ValueError("data.batch_size must be given for built-in data: the samples per worker and batch")
        return self
