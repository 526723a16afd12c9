"""How long a job trains, in which precision, and when it writes checkpoints."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from syncnorm.trainer.contract.spec.values import Epochs, Every, MetricName, NonNegative, Part, PositiveFloat, Steps


class DdpSpec(Part):
    """Settings of DistributedDataParallel, for networks that don't use all of their parameters in every step."""

    find_unused_parameters: bool | None = None
    """Whether each step looks for parameters that got no gradient, which costs time. Default: null, where the first
    step decides: it goes on only if there are any, or if your module steps its optimizers itself. Set it to true for
    parameters that are used in some steps only, as the heads of several tasks are."""


class EarlyStopping(Part):
    """Stop training when `monitor` has not improved by `min_delta` for `patience` validations."""

    monitor: MetricName = "val/loss"
    """Metric to watch, as it is named in MLflow. Default: val/loss, which every task has."""
    mode: Literal["min", "max"] = "min"
    """Whether lower (`min`) or higher (`max`) is better. Default: min, which fits val/loss."""
    patience: Epochs = 3
    """Validations without an improvement before training stops; there is one at the end of each epoch. Default: 3."""
    min_delta: NonNegative = 0.0
    """Smallest change that counts as an improvement, in the metric's unit. Default: 0, so that any does."""


class KeepBest(Part):
    """Keep the checkpoint with the best `monitor`, in addition to the newest ones (train.keep_checkpoints)."""

    monitor: MetricName = "val/loss"
    """Metric to compare, as it is named in MLflow. Default: val/loss, which every task has."""
    mode: Literal["min", "max"] = "min"
    """Whether lower (`min`) or higher (`max`) is better. Default: min, which fits val/loss."""


class AverageSpec(Part):
    """An average of the weights over training, with statistics of normalization that are recomputed for it."""

    model_config = ConfigDict(serialize_by_alias=True)

    kind: Literal["ema", "swa"]
    """`ema`: exponential moving average, a = decay * a + (1 - decay) * w after each optimizer step. `swa`: the mean of
    the weights after each optimizer step, once `from` of training is over (arXiv:1803.05407). No default."""
    decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """`ema` only: weight of the average so far. It looks back over about 1 / (1 - decay) steps, which should be a small
    part of training. Default: 0.999."""
    start: Annotated[float, Field(ge=0, lt=1)] | None = Field(default=None, alias="from")
    """`swa` only: share of training that is over when averaging begins. Default: 0.75."""

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, value: Any) -> Any:
        for kind, name, default in (("ema", "decay", 0.999), ("swa", "from", 0.75)):
            if isinstance(value, dict) and value.get("kind") == kind and value.get(name) is None:
                return {**value, name: default}
        return value

    @model_validator(mode="after")
    def _of_its_kind(self) -> AverageSpec:
        if self.kind == "ema" and self.start is not None:
            raise ValueError("from is for swa, got it with ema; leave it out")
        if self.kind == "swa" and self.decay is not None:
            raise ValueError("decay is for ema, got it with swa; leave it out")
        return self


class TrainSpec(Part):
    """How long the job trains, in which precision, and when it writes checkpoints."""

    epochs: Epochs | None = None
    """Passes over the training set. Give epochs or steps, not both. Default: 10 if you give neither."""
    steps: Steps | None = None
    """Optimizer steps in all. Give epochs or steps, not both. Default: null, the job runs by epochs."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "64-true"] = "32-true"
    """Precision of training: fp32, mixed with bf16 or fp16, or fp64. Statistics are combined in fp32 or wider in all of
    them. Default: 32-true, which needs no special hardware."""
    accumulate: Annotated[int, Field(ge=1, le=4096)] = 1
    """Micro-batches per optimizer step, each of data.batch_size samples a worker. Default: 1. Whether they equal one
    large batch is up to accumulate_statistics."""
    accumulate_statistics: Literal["micro_batch", "exact"] = "micro_batch"
    """What normalization takes its statistics from where gradients accumulate. `micro_batch`: each micro-batch by
    itself. `exact`: all micro-batches of a step together, so that k of them are one batch, for gradients, running
    statistics and metrics. It takes some more time, and on a GPU activations wait in host memory. Not with compile. A
    LightningModule of yours must have tensors of one length in its batches, and a loader whose batches the trainer can
    cut; otherwise it can call norm.accumulated itself. Default: micro_batch."""
    clip_grad_norm: PositiveFloat | None = None
    """Largest L2 norm of the whole gradient; a longer one is scaled down before each optimizer step. Default: null, no
    clipping."""
    clip_adaptive: PositiveFloat | None = None
    """Adaptive gradient clipping per unit (Brock et al. 2021, arXiv:2102.06171): the largest ratio λ of gradient to
    weight, for example 0.01. Default: null, no clipping."""
    early_stopping: EarlyStopping | None = None
    """When to stop before epochs or steps are reached, judged at the end of each epoch. Default: null, train to the
    end."""
    checkpoint_every: Every = Every(epochs=1)
    """How often a checkpoint is written. One is also written at the end and on every stop. Default: every epoch. An
    attempt that dies repeats at most this much."""
    keep_checkpoints: Annotated[int, Field(ge=2, le=100)] = 3
    """How many of the newest checkpoints stay on storage. Default: 3. The least is 2, because an attempt falls back to
    an older one if the newest does not verify."""
    keep_best: KeepBest | None = None
    """Which further checkpoint to keep, judged at the ends of epochs that write one. Default: null, only the newest."""
    average: AverageSpec | None = None
    """An average of the weights, such as `{kind: ema, decay: 0.999}`. Validation, early stopping, the best checkpoint
    and the export have the average, with statistics recomputed over the training samples at each validation; training
    continues with its own weights. Default: null, no average."""
    test: bool = False
    """Whether your `test_step` runs over your `test_dataloader` once training is over, on all workers and with the
    weights and statistics that are exported. What it logs is in the run and in `progress.metrics`. Default: false."""
    activation_memory: Literal["full", "lean"] = "full"
    """What is kept of activations for the backward pass. `lean`: a normalization and the activation behind it keep one
    tensor instead of two and compute the other again, to the same bits, so that you can train larger batches or images.
    It costs some of the time of a step. Under compile, the compiler decides by itself what to compute again.
    Default: full. Frozen batch normalization keeps nothing in either."""
    memory_format: Literal["contiguous", "channels_last"] = "contiguous"
    """How weights and inputs of four or five dimensions lie in memory. `channels_last`: the channels of a position
    together, which convolutions on GPUs and on CPUs with bf16 like best. Normalizations of large maps cost about the
    same then, and of small ones more. It holds from the first step to the recomputed statistics. The results are those
    of `contiguous` up to rounding, and the export is contiguous. A plan warns you where no weight has such dimensions.
    Default: contiguous, as torch does."""
    ddp: DdpSpec = DdpSpec()
    """Settings of DistributedDataParallel. The defaults suit networks that use all of their parameters."""
    compile: bool = False
    """Whether the network runs through torch.compile, from the first step of each attempt. Default: false, because
    short jobs lose more to compiling than they gain."""
    graph: bool = False
    """Whether steps are replayed from a CUDA graph, which saves the time that Python takes for them: forward, loss,
    backward and the averaging of gradients. Small batches gain most. After 11 steps of one shape, one is captured. A
    batch of another shape, such as a last one, runs as before, and so does a step that is measured or profiled. Your
    `training_step` then runs no Python of its own; what it logs is logged at every step. A module that can't be
    captured trains as without it, and the event `graph_refused` says why. It needs GPUs, and it has not run on a GPU
    yet. Default: false. It takes effect when an attempt starts."""

    @model_validator(mode="before")
    @classmethod
    def _ten_epochs(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("epochs") is None and value.get("steps") is None:
            return {**value, "epochs": 10}
        return value

    @model_validator(mode="after")
    def _one_length(self) -> TrainSpec:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("give epochs or steps, not both")
        return self

    @model_validator(mode="after")
    def _can_stop_at_layers(self) -> TrainSpec:
        if self.joined_micro_batches > 1 and self.compile:
            raise ValueError(
                "accumulate_statistics: exact needs a network that can stop at each normalization, which a compiled "
                "one can't; leave compile out"
            )
        return self

    @model_validator(mode="after")
    def _whole_steps_of_a_graph(self) -> TrainSpec:
        if not self.graph:
            return self
        if self.accumulate > 1:
            raise ValueError("graph replays steps of one batch; leave accumulate out, or leave graph out")
        if self.precision == "16-mixed":
            raise ValueError("graph can't hold the changing loss scale of 16-mixed; use bf16-mixed, or leave graph out")
        if self.ddp.find_unused_parameters:
            raise ValueError(
                "graph can't wait for parameters that got no gradient; leave ddp.find_unused_parameters or graph out"
            )
        return self

    @property
    def joined_micro_batches(self) -> int:
        """Micro-batches that are normalized together."""
        return self.accumulate if self.accumulate_statistics == "exact" else 1

    @property
    def batches_per_step(self) -> int:
        """Batches of the loader for each optimizer step: those that are normalized together come as one."""
        return self.accumulate // self.joined_micro_batches
