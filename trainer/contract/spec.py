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
ScoreName = Annotated[str, StringConstraints(max_length=120, pattern=r"^[A-Za-z]\w*$")]
KindName = Annotated[str, StringConstraints(max_length=64)]
ModulePath = Annotated[str, StringConstraints(max_length=256, pattern=r"^\w+(\.\w+)*$")]


class Part(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
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


class ModelSpec(Part):
    """The network: a built-in one by name, `timm/NAME` where timm is installed, or any class of yours by path."""

    name: Name | None = None
    """A built-in model (`GET /v1/models` lists them) or a timm model such as `timm/resnet18`. Default: none. Give
    exactly one of name and class_path."""
    class_path: ClassPath | None = None
    """Import path of your class or function, such as `my_package.MyModel`. A LightningModule brings its own loss, and
    its optimizers if it has any. Default: none. Where uploaded code is off, only `torchvision.models.` is allowed."""
    init_args: dict[str, Any] = {}
    """Arguments of the model, checked when you submit (built-in) or when an attempt starts (yours). Default: none, so
    that the model's own defaults hold."""
    loss: ClassSpec | None = None
    """The loss of a plain network, called with (output, target): a mean over samples, or one value for each (reduction:
    none). Default: null, the loss of the task, see docs/reference/tasks.md. A LightningModule brings its own."""
    metrics: Annotated[dict[ScoreName, ClassSpec], Field(max_length=16)] = {}
    """Further scores of a plain network by name, as classes of torchmetrics: `{f1: {class_path: …}}` is logged as
    `val/f1` at each validation, over the samples of all workers. Default: none."""
    inferer: ClassSpec | None = None
    """How a plain network is run in validation: called with (samples, network), such as
    monai.inferers.SlidingWindowInferer. Default: null, the network itself. Has no effect on training and export."""
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


class NormOverride(Part):
    """Another kind for some layers only, such as `{match: head.*, kind: layer}`. The first override that matches a
    layer wins."""

    match: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    """Glob over module paths, such as `layer4.*`. No default."""
    kind: KindName
    """The kind these layers get: a name from `norm.kinds()`. No default."""
    options: dict[str, Any] = {}
    """Options of this kind, such as `{num_groups: 8}`. Default: none, so that the kind's own defaults hold."""


class NormSpec(Part):
    """Which normalization the network gets, and which workers share its statistics."""

    kind: KindName = "sync_batch"
    """A name from `norm.kinds()`, or `auto`, which picks one and says why. Default: sync_batch, because it computes
    what one device would compute with the whole batch."""
    group: Literal["world", "node"] | Workers = "world"
    """Workers that share statistics: `world` (all), `node` (those of one host), or a number of neighbouring ranks.
    Default: world. Has an effect on kinds that synchronize only."""
    eps: Annotated[float, Field(ge=1e-20, le=1e3)] = 1e-5
    """Added to the variance, inside the root. Default: 1e-5, as in torch."""
    momentum: Annotated[float, Field(ge=0, le=1)] | None = 0.1
    """Weight of the *new* batch in the running statistics, as in torch. null: the average over all batches. Default:
    0.1, as in torch."""
    affine: bool = True
    """Whether the layers learn a scale and a shift per channel. Default: true, as in torch."""
    placement: Literal["before", "after"] = "before"
    """Normalization before or after the activation, in built-in models. Default: before, as in Ioffe & Szegedy 2015. A
    network of yours stays as you wrote it."""
    options: dict[str, Any] = {}
    """Options that this kind alone has, such as `{num_groups: 8}` for group; `GET /v1/norms` lists them. Default: none,
    so that the kind's own defaults hold."""
    overrides: Annotated[list[NormOverride], Field(max_length=64)] = []
    """Other kinds for some layers. Default: none. Applied together with `kind`, when an attempt builds the network."""


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

    @model_validator(mode="after")
    def _consistent(self) -> OptimizerSpec:
        if self.momentum and self.name not in ("sgd", "rmsprop"):
            raise ValueError(f"momentum is for sgd and rmsprop, got it with {self.name}; leave it out")
        if self.nesterov and not (self.name == "sgd" and self.momentum > 0):
            raise ValueError("nesterov needs name: sgd and a momentum above 0")
        if self.name == "lbfgs" and self.weight_decay:
            raise ValueError("lbfgs takes no weight_decay; set it to 0")
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


class Every(Part):
    """A period, in epochs or in optimizer steps. Give exactly one of them."""

    epochs: Epochs | None = None
    """Every so many epochs, at their end. Default: none."""
    steps: Steps | None = None
    """Every so many optimizer steps, counted from the start of training. Default: none."""

    @model_validator(mode="after")
    def _one_unit(self) -> Every:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("exactly one of epochs and steps must be given")
        return self


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
    """Micro-batches per optimizer step. Statistics are those of each micro-batch, so this does not equal one large
    batch. Default: 1."""
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
    ddp: DdpSpec = DdpSpec()
    """Settings of DistributedDataParallel. The defaults suit networks that use all of their parameters."""
    compile: bool = False
    """Whether the network runs through torch.compile, from the first step of each attempt. Default: false, because
    short jobs lose more to compiling than they gain."""

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
    """What an attempt takes from the cluster. All of it is reserved at once, or the job waits."""

    workers: Workers = 1
    """Training processes, each with its share of the global batch. Default: 1."""
    gpus_per_worker: Annotated[int, Field(ge=0, le=16)] = 0
    """GPUs of each worker. Default: 0, training on CPUs."""
    cpus_per_worker: Annotated[int, Field(ge=1, le=1024)] = 1
    """CPU cores of each worker, loading data included. Default: 1."""
    min_workers: Workers | None = None
    """Makes the job elastic: an attempt starts with as few workers as this if there is no capacity for all. The global
    batch stays data.batch_size * workers, so each worker's share grows, and with it the samples behind the statistics
    of kinds that do not synchronize. The number is chosen when an attempt starts. An attempt with fewer workers stops
    and continues with more once enough capacity has been free for a while. Default: null, always `workers`."""

    wait_for_hosts: bool = False
    """Queue the job although the whole cluster, as it is now, is too small for it; it waits until hosts are added.
    Default: false, such a job is refused when you submit it."""

    @model_validator(mode="after")
    def _ordered(self) -> ResourcesSpec:
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers must not exceed workers, got {self.min_workers} > {self.workers}")
        return self


class LimitsSpec(Part):
    """When the service gives up. You can change these while the job is queued, paused or failed."""

    max_failures: Annotated[int, Field(ge=0, le=1000)] = 3
    """Failed attempts after which the job fails; the next attempt continues from the last checkpoint. A restart of the
    whole cluster does not count. Default: 3, enough for lost hosts, few enough for a bug."""
    deadline_s: Annotated[float, Field(ge=1, le=LONGEST_S)] | None = None
    """Seconds from the first start of training until the job is stopped with a checkpoint and fails. Waiting in the
    queue before that is free. Default: null, no deadline."""
    grace_s: Annotated[float, Field(ge=1, le=3600)] = 60
    """Seconds for the last checkpoint when the job is asked to stop; after that its processes are ended. Default:
    60."""
    collective_timeout_s: Annotated[float, Field(ge=10, le=1800)] = 180
    """Seconds that ranks wait for each other in a collective before the attempt ends and names the silent rank.
    Default: 180. At the start they have five minutes to meet, because imports can take one host long."""


class StatisticsSpec(Part):
    """How often running statistics are recorded, and how population statistics are estimated before the export."""

    every: Every = Every(epochs=1)
    """How often the running statistics of every layer go to MLflow, as `norm/LAYER/…`. Default: every epoch."""
    population: Literal["pooled", "paper", "none"] = "pooled"
    """How the statistics of the whole training set replace the running ones before the export. `pooled`: every value
    counts once. `paper`: the mean over batches (Ioffe & Szegedy 2015, Alg. 2). `none`: the running ones are exported.
    Default: pooled, which does not depend on the batch size."""


class ExportSpec(Part):
    """What comes out of a job after its last step."""

    formats: Annotated[list[Literal["pt2", "onnx"]], Field(max_length=2)] = ["pt2", "onnx"]
    """Files besides the weights, which are always written: `pt2` (torch.export) and `onnx`. Default: both."""
    fold: bool = True
    """Whether normalization layers are folded into their neighbours where that is exact. Default: true, because
    inference is faster and the answers are certified to be the same."""
    register_as: Name | None = None
    """Name in MLflow's model registry; each export becomes a new version of it. Default: null, the model is logged with
    the run and not registered."""
    checkpoint: Literal["last", "best"] | Steps = "last"
    """Whose weights are exported: `last`, those at the end of training, or `best`, those of the checkpoint that
    train.keep_best keeps. A later export may name a step that has a checkpoint. Default: last."""
    statistics: Literal["auto", "population", "running"] = "auto"
    """Which statistics the batch normalizations are exported with. `auto` validates with both, takes the better and
    says by how much. Without validation of ours, as for a LightningModule of yours, it takes the running ones.
    Default: auto."""
    module: ModulePath | None = None
    """Path of the submodule to export alone, such as `net.backbone`; it gets what it is given while the whole network
    runs. The weights that are always written are those of the whole network. Default: null, the whole network."""
    required: bool = False
    """Whether an export that fails, or is not possible, fails the job. Default: false: the job succeeds once its
    weights are published, and its `export` says how the export went."""


class CodeSpec(Part):
    """Uploaded user code, put on the path of every worker."""

    package: Annotated[str, StringConstraints(max_length=71, pattern=r"^sha256:[0-9a-f]{64}$")]
    """Digest that `syncnorm package put` printed: `sha256:` and 64 hex digits. No default. Unpacked when an attempt
    starts."""


class SecretRef(Part):
    """A variable whose value is one of your secrets. Each worker fetches it when an attempt starts."""

    secret: EnvName
    """Name of a secret of yours, stored with `syncnorm secret put NAME`. No default."""


Diagnostic = Literal["gradient_histograms", "landscape", "covariate_shift", "activation_statistics", "equivalence"]


LabelName = Annotated[str, StringConstraints(max_length=63, pattern=r"^[A-Za-z0-9._-]{1,63}$")]
EnvValue = Annotated[str, StringConstraints(max_length=4096)]


class JobSpec(Part):
    """A training job: what you submit. name, model and mostly data are required; the rest has defaults."""

    name: Name
    """What you call the job; it need not be unique, and becomes the name of the MLflow run. No default."""
    project: Name = "syncnorm"
    """Groups jobs: the MLflow experiment in which the run is made. Default: syncnorm."""
    labels: Annotated[dict[LabelName, Label], Field(max_length=32)] = {}
    """Your own key: value pairs for filters, up to 32. Default: none. You can change them later."""
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    """Place in the queue: higher goes first, and may preempt lower ones. Waiting also raises a job, so that nothing
    waits for ever. Default: 0. You can change it later; it counts from the next scheduling on."""
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    """Seed of initial weights, order of samples, augmentation and dropout. Default: 0. Applied at the start of the job;
    a resumed attempt continues with the random state of its checkpoint."""
    model: ModelSpec
    """The network to train. Required."""
    data: DataSpec = DataSpec()
    """The samples to train and validate on. Default: the loaders of your LightningModule, if it has any; everything
    else needs data."""
    norm: NormSpec = NormSpec()
    """Which normalization the network gets. Default: sync_batch over all workers. Applied when an attempt builds the
    network."""
    optimizer: OptimizerSpec | None = None
    """The optimizer. Default: that of your LightningModule's configure_optimizers, else sgd with lr 0.1."""
    schedule: ScheduleSpec | None = None
    """How the learning rate changes. Default: as your LightningModule's configure_optimizers says, else constant."""
    train: TrainSpec = TrainSpec(epochs=10)
    """How long the job trains and how often it saves. Default: 10 epochs in fp32, with a checkpoint after each."""
    resources: ResourcesSpec = ResourcesSpec()
    """Workers with their CPUs and GPUs. Default: 1 worker on 1 CPU. Reserved when an attempt starts."""
    limits: LimitsSpec = LimitsSpec()
    """Failures, deadline and timeouts. The defaults suit jobs of minutes to days."""
    statistics: StatisticsSpec = StatisticsSpec()
    """Recording of running statistics, and population statistics for the export. Default: each epoch, pooled."""
    diagnostics: Annotated[list[Diagnostic], Field(max_length=5)] = []
    """Measurements of gradients, loss landscape and statistics, at 12 steps spread over training; each costs further
    passes at these steps. Default: none."""
    export: ExportSpec = ExportSpec()
    """Formats, folding and registration of the trained model. Default: pt2 and onnx, folded, not registered. Starts
    after the last step."""
    code: CodeSpec | None = None
    """A package of yours that class paths name. Default: null, no code of yours."""
    env: Annotated[dict[EnvName, EnvValue | SecretRef], Field(max_length=64)] = {}
    """Environment variables of the workers: a text, or `{secret: NAME}` for a secret of yours. Names that begin with
    RAY_ or SYNCNORM_ are refused. Default: none. Set before your code is imported."""

    @property
    def has_own_code(self) -> bool:
        """Whether it runs code of its user."""
        return any((self.model.class_path, self.data.class_path, self.data.count))

    @model_validator(mode="before")
    @classmethod
    def _optimizer_of_named_models(cls, value: Any) -> Any:
        """Only a class of the user can bring an optimizer of its own."""
        model = value.get("model") if isinstance(value, dict) else None
        if not isinstance(model, dict) or model.get("class_path") is not None:
            return value
        return value | {name: {} for name in ("optimizer", "schedule") if value.get(name) is None}

    @model_validator(mode="after")
    def _some_data(self) -> JobSpec:
        if self.model.class_path is None and self.data.name is None and self.data.class_path is None:
            raise ValueError("data must be given: name (built in) or class_path (yours)")
        return self

    @model_validator(mode="after")
    def _batch_size_to_choose_by(self) -> JobSpec:
        if self.norm.kind == "auto" and self.data.batch_size is None:
            raise ValueError("norm.kind: auto picks by the batch size; give data.batch_size, or name a kind")
        return self

    @field_validator("diagnostics")
    @classmethod
    def _once_each(cls, value: list[str]) -> list[str]:
        if len(set(value)) != len(value):
            raise ValueError(f"each diagnostic may be named once, got {value}")
        return value
