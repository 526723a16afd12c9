"""What a job records and exports."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from syncnorm.trainer.contract.spec.values import Every, ModulePath, Name, Part, Steps


class StatisticsSpec(Part):
    """How often running statistics are recorded, and how population statistics are estimated before the export."""

    every: Every = Every(epochs=1)
    """How often the running statistics of every layer go to MLflow: `norm/drift/max` and others over all layers, and
    `z_norm_layers/LAYER/…` of each. Default: every epoch."""
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
    runs, or, where a LightningModule has no forward, what fits its own. The weights that are always written are those
    of the whole network. Default: null, the whole network."""
    required: bool = False
    """Whether an export that fails, or is not possible, fails the job. Default: false: the job succeeds once its
    weights are published, and its `export` says how the export went."""


Diagnostic = Literal["gradient_histograms", "landscape", "covariate_shift", "activation_statistics", "equivalence"]
