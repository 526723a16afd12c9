"""The job spec, by part. JobSpec is what a user submits."""

from syncnorm.trainer.contract.spec.capacity import LimitsSpec
from syncnorm.trainer.contract.spec.job_spec import CodeSpec, JobSpec, LabelName, SecretRef, SourceSpec
from syncnorm.trainer.contract.spec.model_and_data import ClassSpec, DataSpec, FreezeRule, ModelSpec
from syncnorm.trainer.contract.spec.normalization import NormSpec
from syncnorm.trainer.contract.spec.optimization import OptimizerSpec, ScheduleSpec
from syncnorm.trainer.contract.spec.results import Diagnostic, ExportSpec
from syncnorm.trainer.contract.spec.starting_weights import InitFrom
from syncnorm.trainer.contract.spec.training import AverageSpec, EarlyStopping, KeepBest, TrainSpec
from syncnorm.trainer.contract.spec.values import Every, Label, Name

__all__ = [
    "AverageSpec",
    "ClassSpec",
    "CodeSpec",
    "DataSpec",
    "Diagnostic",
    "EarlyStopping",
    "Every",
    "ExportSpec",
    "FreezeRule",
    "InitFrom",
    "JobSpec",
    "KeepBest",
    "Label",
    "LabelName",
    "LimitsSpec",
    "ModelSpec",
    "Name",
    "NormSpec",
    "OptimizerSpec",
    "ScheduleSpec",
    "SecretRef",
    "SourceSpec",
    "TrainSpec",
]
