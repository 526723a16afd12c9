"""The job spec: what a user submits. pydantic only; unknown fields are refused and every error names its path."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from syncnorm.trainer.contract.bounds import LONGEST_S, MOST_EPOCHS, MOST_STEPS, MOST_WORKERS

Name = Annotated[str, StringConstraints(min_length=1, max_length=120, pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._/-]*$")]
ClassPath = Annotated[str, StringConstraints(max_length=256, pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$")]
Label = Annotated[str, StringConstraints(max_length=120, pattern=r"^[^\x00-\x1f]*$")]
EnvName = Annotated[str, StringConstraints(max_length=120, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Steps = Annotated[int, Field(ge=1, le=MOST_STEPS)]
Epochs = Annotated[int, Field(ge=1, le=MOST_EPOCHS)]
Workers = Annotated[int, Field(ge=1, le=MOST_WORKERS)]
Large = 1e12
PositiveFloat = Annotated[float, Field(gt=0, le=Large)]
NonNegative = Annotated[float, Field(ge=0, le=Large)]
MetricName = Annotated[str, StringConstraints(min_length=1, max_length=250)]
KindName = Annotated[str, StringConstraints(max_length=64)]


class Part(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def _require_one(name: str | None, class_path: str | None, what: str) -> None:
    if (name is None) == (class_path is None):
        raise ValueError(f"{what} needs exactly one of name (built in) and class_path (yours)")


class ModelSpec(Part):
    """A built-in model by name, `timm/NAME` where timm is installed, or any class by path."""

    name: Name | None = None
    class_path: ClassPath | None = None
    init_args: dict[str, Any] = {}

    @model_validator(mode="after")
    def _one_source(self) -> ModelSpec:
        _require_one(self.name, self.class_path, "model")
        return self


class DataSpec(Part):
    """Where the samples come from and how many a worker takes at a time."""

    name: Name | None = None
    class_path: ClassPath | None = None
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)]
    """Samples per worker and step."""
    last_batch: Literal["weight", "drop"] = "weight"
    """What becomes of a last, smaller batch: `weight` spreads it over the workers and weights their losses by their
    samples, which is exactly the large-batch gradient; `drop` leaves it out."""
    init_args: dict[str, Any] = {}

    @model_validator(mode="after")
    def _one_source(self) -> DataSpec:
        _require_one(self.name, self.class_path, "data")
        return self


class NormOverride(Part):
    """A kind for some layers only; `match` is a glob over module paths and the first match wins."""

    match: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    kind: KindName
    options: dict[str, Any] = {}


class NormSpec(Part):
    """Which normalization, and over whom its statistics reach."""

    kind: KindName = "sync_batch"
    """A name from `norm.kinds()`, or `auto`, which picks one and says why."""
    group: Literal["world", "node"] | Workers = "world"
    """Workers that share statistics: all, those of one host, or this many neighbours."""
    eps: Annotated[float, Field(ge=1e-20, le=1e3)] = 1e-5
    """Added to the variance, inside the root."""
    momentum: Annotated[float, Field(ge=0, le=1)] | None = 0.1
    """Weight of the *new* batch in the running statistics, as in torch; null takes the cumulative average."""
    affine: bool = True
    placement: Literal["before", "after"] = "before"
    """Before or after the activation, in built-in models."""
    options: dict[str, Any] = {}
    overrides: Annotated[list[NormOverride], Field(max_length=64)] = []


class OptimizerSpec(Part):
    """The optimizer, with torch's meaning of every field."""

    name: Literal["sgd", "adagrad", "rmsprop", "adam", "adamw", "lbfgs"] = "sgd"
    lr: PositiveFloat = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    nesterov: bool = False
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)] = [0.9, 0.999]
    weight_decay: NonNegative = 0.0
    decay_norm: bool = False
    """Whether weight decay also pulls on biases and on the weights of normalization layers."""

    @model_validator(mode="after")
    def _consistent(self) -> OptimizerSpec:
        if self.momentum and self.name not in ("sgd", "rmsprop"):
            raise ValueError(f"momentum belongs to sgd and rmsprop, got it with {self.name}; leave it out")
        if self.nesterov and not (self.name == "sgd" and self.momentum > 0):
            raise ValueError("nesterov needs name: sgd and a momentum above 0")
        if self.name == "lbfgs" and self.weight_decay:
            raise ValueError("lbfgs takes no weight_decay; set it to 0")
        return self


class ScheduleSpec(Part):
    """How the learning rate moves, per optimizer step."""

    name: Literal["constant", "linear", "cosine", "step"] = "constant"
    warmup_steps: Annotated[int, Field(ge=0, le=MOST_STEPS)] = 0
    """Steps over which the rate rises linearly from 0."""
    tau_steps: Steps | None = None
    """`linear`: the step τ at which the rate has fallen to end_factor·lr; null: the last step."""
    end_factor: Annotated[float, Field(ge=0, le=1)] = 0.01
    """`linear`: η_τ / η_0, the rate from step τ on as a share of lr."""
    step_size: Steps | None = None
    """`step`: optimizer steps between two drops; null: a third of the run."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    """`step`: factor at each drop."""


class Every(Part):
    """A period: in epochs or in optimizer steps, one of them."""

    epochs: Epochs | None = None
    steps: Steps | None = None

    @model_validator(mode="after")
    def _one_unit(self) -> Every:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("exactly one of epochs and steps must be given")
        return self


class EarlyStopping(Part):
    """Stop when `monitor` has not improved by `min_delta` for `patience` validations."""

    monitor: MetricName = "val/loss"
    mode: Literal["min", "max"] = "min"
    patience: Epochs = 3
    min_delta: NonNegative = 0.0


class KeepBest(Part):
    """The checkpoint with the best `monitor` stays, whatever train.keep_checkpoints says."""

    monitor: MetricName = "val/loss"
    mode: Literal["min", "max"] = "min"


class TrainSpec(Part):
    """How long and how."""

    epochs: Epochs | None = None
    steps: Steps | None = None
    """Optimizer steps; without epochs and steps the job runs 10 epochs."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "64-true"] = "32-true"
    accumulate: Annotated[int, Field(ge=1, le=4096)] = 1
    """Micro-batches per optimizer step. Statistics are per micro-batch, so this is not the large batch."""
    clip_grad_norm: PositiveFloat | None = None
    clip_adaptive: PositiveFloat | None = None
    """Adaptive gradient clipping per unit (Brock et al. 2021, arXiv:2102.06171); λ, e.g. 0.01."""
    early_stopping: EarlyStopping | None = None
    checkpoint_every: Every = Every(epochs=1)
    keep_checkpoints: Annotated[int, Field(ge=2, le=100)] = 3
    keep_best: KeepBest | None = None
    """Judged at the ends of epochs that write a checkpoint."""
    compile: bool = False

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


class ResourcesSpec(Part):
    """What a job takes from the cluster, all of it at once."""

    workers: Workers = 1
    gpus_per_worker: Annotated[int, Field(ge=0, le=16)] = 0
    cpus_per_worker: Annotated[int, Field(ge=1, le=1024)] = 1
    min_workers: Workers | None = None
    """An attempt starts with as few as this many where there is no room for all; null: always `workers`. The global
    batch stays data.batch_size * workers, so a worker's part grows, and with it what kinds that do not synchronize
    take their statistics from. How many are used is chosen when an attempt starts. One with fewer stops and goes on
    with more once there has been room for a while.
    """

    wait_for_hosts: bool = False
    """Queue the job although the whole cluster as it is now is too small for it: it waits until hosts are added. False:
    such a job is refused when it is submitted."""

    @model_validator(mode="after")
    def _ordered(self) -> ResourcesSpec:
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers must not exceed workers, got {self.min_workers} > {self.workers}")
        return self


class LimitsSpec(Part):
    """When to give up."""

    max_failures: Annotated[int, Field(ge=0, le=1000)] = 3
    deadline_s: Annotated[float, Field(ge=1, le=LONGEST_S)] | None = None
    grace_s: Annotated[float, Field(ge=1, le=3600)] = 60
    """Time for the last checkpoint when the job is asked to stop."""
    collective_timeout_s: Annotated[float, Field(ge=10, le=1800)] = 180
    """How long ranks wait for each other once they have met, before the attempt ends and the silent one is named. They
    have five minutes to meet, for imports may take one host long."""


class StatisticsSpec(Part):
    """How often running statistics are recorded, and how population statistics are estimated before export."""

    every: Every = Every(epochs=1)
    population: Literal["pooled", "paper", "none"] = "pooled"


class ExportSpec(Part):
    """What comes out."""

    formats: Annotated[list[Literal["pt2", "onnx"]], Field(max_length=2)] = ["pt2", "onnx"]
    fold: bool = True
    register_as: Name | None = None
    """Name in MLflow's model registry; null: logged, not registered."""


class CodeSpec(Part):
    """Uploaded user code, put on the workers' path."""

    package: Annotated[str, StringConstraints(max_length=71, pattern=r"^sha256:[0-9a-f]{64}$")]


class SecretRef(Part):
    secret: EnvName


Diagnostic = Literal["gradient_histograms", "landscape", "covariate_shift", "activation_statistics", "equivalence"]


LabelName = Annotated[str, StringConstraints(max_length=63, pattern=r"^[A-Za-z0-9._-]{1,63}$")]
EnvValue = Annotated[str, StringConstraints(max_length=4096)]


class JobSpec(Part):
    """A training job. See the README for an example."""

    name: Name
    project: Name = "syncnorm"
    labels: Annotated[dict[LabelName, Label], Field(max_length=32)] = {}
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    model: ModelSpec
    data: DataSpec
    norm: NormSpec = NormSpec()
    optimizer: OptimizerSpec = OptimizerSpec()
    schedule: ScheduleSpec = ScheduleSpec()
    train: TrainSpec = TrainSpec(epochs=10)
    resources: ResourcesSpec = ResourcesSpec()
    limits: LimitsSpec = LimitsSpec()
    statistics: StatisticsSpec = StatisticsSpec()
    diagnostics: Annotated[list[Diagnostic], Field(max_length=5)] = []
    export: ExportSpec = ExportSpec()
    code: CodeSpec | None = None
    env: Annotated[dict[EnvName, EnvValue | SecretRef], Field(max_length=64)] = {}

    @field_validator("diagnostics")
    @classmethod
    def _once_each(cls, value: list[str]) -> list[str]:
        if len(set(value)) != len(value):
            raise ValueError(f"each diagnostic may be named once, got {value}")
        return value
