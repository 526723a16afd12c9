"""The job spec: what a user submits. pydantic only; unknown fields are refused and every error names its path."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, StringConstraints, field_validator, model_validator

from syncnorm.trainer.contract.spec.capacity import LimitsSpec, ResourcesSpec
from syncnorm.trainer.contract.spec.model_and_data import DataSpec, ModelSpec
from syncnorm.trainer.contract.spec.normalization import NormSpec
from syncnorm.trainer.contract.spec.optimization import OptimizerSpec, ScheduleSpec
from syncnorm.trainer.contract.spec.results import Diagnostic, ExportSpec, StatisticsSpec
from syncnorm.trainer.contract.spec.training import TrainSpec
from syncnorm.trainer.contract.spec.values import EnvName, Label, Name, Part

Requirements = Annotated[
    list[Annotated[str, StringConstraints(min_length=1, max_length=512)]], Field(min_length=1, max_length=200)
]
RequirementsFile = Annotated[
    str, StringConstraints(max_length=256, pattern=r"^([\w.-]+/)*([\w.-]+\.txt|pyproject\.toml)$")
]


class CodeSpec(Part):
    """Uploaded user code, put on the path of every worker."""

    package: Annotated[str, StringConstraints(max_length=71, pattern=r"^sha256:[0-9a-f]{64}$")]
    """Digest that `syncnorm package put` printed: `sha256:` and 64 hex digits. In a job file also a folder, seen from
    the file, which `syncnorm submit` and `syncnorm plan` upload. No default. Unpacked when an attempt starts."""
    requirements: Requirements | RequirementsFile | None = None
    """What your code needs besides what the workers have: a list such as `[einops, "kornia>=0.8"]`, or the path of a
    requirements.txt or pyproject.toml in the package. Installed with pip, once on each host, from the index that the
    operator has set; versions that workers have stay as they are. Default: null, nothing. Installed when an attempt
    starts."""


class SourceSpec(Part):
    """Where a job came from. `syncnorm submit` fills it in, from the git checkout that the job file lies in."""

    name: Annotated[str, StringConstraints(max_length=512)] | None = None
    """File or script that the job was submitted from. Default: null."""
    repository: Annotated[str, StringConstraints(max_length=512)] | None = None
    """URL of the git repository, without user and password. Default: null."""
    commit: Annotated[str, StringConstraints(max_length=64, pattern=r"^[0-9a-f]{7,64}$")] | None = None
    """Commit that was checked out. Default: null."""
    branch: Annotated[str, StringConstraints(max_length=255)] | None = None
    """Branch that was checked out. Default: null, none or detached."""
    dirty: bool = False
    """Whether tracked files differed from the commit. Default: false."""


class SecretRef(Part):
    """A variable whose value is one of your secrets. Each worker fetches it when an attempt starts."""

    secret: EnvName
    """Name of a secret of yours, stored with `syncnorm secret put NAME`. No default."""


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
    source: SourceSpec | None = None
    """File, git repository and commit that the job came from, for the tags of its run. Default: null; `syncnorm submit`
    fills it in."""
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

    @model_validator(mode="after")
    def _test_of_a_module(self) -> JobSpec:
        if self.train.test and self.model.class_path is None:
            raise ValueError("train.test must be left out for a built-in model: it runs the test_step of your module")
        return self

    @model_validator(mode="after")
    def _graph_on_gpus(self) -> JobSpec:
        if self.train.graph and not self.resources.gpus_per_worker:
            raise ValueError(
                "train.graph needs a GPU for each worker, but resources.gpus_per_worker is 0; set it to 1, or leave "
                "train.graph out"
            )
        return self

    @field_validator("diagnostics")
    @classmethod
    def _once_each(cls, value: list[str]) -> list[str]:
        if len(set(value)) != len(value):
            raise ValueError(f"each diagnostic may be named once, got {value}")
        return value
