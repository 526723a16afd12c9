"""Which normalization a job runs with, and why. Pure, pydantic only."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from syncnorm.norm.kind import KINDS
from syncnorm.trainer.contract.spatial_maps import smallest_map, uses_windows
from syncnorm.trainer.contract.spec import JobSpec, NormSpec
from syncnorm.trainer.contract.text import counted

STEADY_SAMPLES = 16
"""From this many samples on, batch statistics cost nothing in accuracy (Wu & He 2018, fig. 1, and our own study)."""
STEADY_VALUES = 32
"""From this many values per channel on, the error of a variance estimate, sqrt(2 / (n - 1)), is below a quarter."""
SMALL_BATCH_STUDY = "examples/studies/small-batch.yaml"
LSTM_STUDY = "examples/studies/lstm.yaml"
WINDOWS = "docs/explanation/windows.md"
_DEFAULT = "the default, which computes what one device would compute with the whole batch"


class Alternative(BaseModel):
    """Another kind worth a try."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    kind: str
    """Its name."""
    why: str
    """What speaks for it."""


class NormChoice(BaseModel):
    """Which normalization a job gets, and why."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    kind: str
    """Its name."""
    why: str
    """The reason, in a sentence."""
    evidence: list[str] = []
    """The numbers behind the reason; empty if the spec names a kind."""
    alternative: Alternative | None = None
    """What else to try; null if the spec names a kind."""


def choose_norm(spec: JobSpec) -> NormChoice:
    """The kind the job runs with: the one named, or for `auto` one picked from model, batch, workers, map sizes and
    whether windows are used."""
    if spec.norm.kind != "auto":
        is_named = "kind" in spec.norm.model_fields_set
        return NormChoice(kind=spec.norm.kind, why="named in the spec" if is_named else _DEFAULT)
    if spec.model.name == "lstm":
        return _for_sequences()
    choice = _by_samples(spec)
    return choice if uses_windows(spec) is None else _by_windows(spec, choice)


def _by_samples(spec: JobSpec) -> NormChoice:
    """From the number of samples behind a statistic."""
    per_worker, group = _samples_per_worker(spec), norm_group_size(spec)
    evidence = _numbers(spec)
    if per_worker >= STEADY_SAMPLES:
        why = f"{counted(per_worker, 'sample')} per worker are enough for stable batch statistics"
        return NormChoice(kind="batch", why=why, evidence=evidence, alternative=_alternative_to_batch(spec))
    if per_worker * group >= STEADY_SAMPLES:
        few = counted(per_worker, "sample")
        why = f"batch statistics are noisy with {few} per worker, and stable with the {per_worker * group} of the group"
        other = Alternative(kind=_per_sample(spec), why="exchanges nothing between workers")
        return NormChoice(kind="sync_batch", why=why, evidence=[*evidence, _small_batches()], alternative=other)
    together = f"even the {group} workers of a group together have" if group > 1 else "a step has"
    why = (
        f"{together} only {counted(per_worker * group, 'sample')}; {_per_sample(spec)} normalizes each sample by itself"
    )
    return NormChoice(
        kind=_per_sample(spec), why=why, evidence=[*evidence, _small_batches()], alternative=_with_few_samples(group)
    )


def _by_windows(spec: JobSpec, choice: NormChoice) -> NormChoice:
    """Batch statistics of few samples, too, if these have many positions: running statistics are the same for every
    window."""
    by, other, group = uses_windows(spec), _per_sample(spec), norm_group_size(spec)
    samples = _samples_per_worker(spec) * group
    evidence = [*choice.evidence, f"{by} runs windows: {WINDOWS}"]
    if choice.kind != other:
        kind, why = (
            choice.kind,
            f"{choice.why}; its running statistics do not depend on windows, which the network sees",
        )
    elif samples > 1 and samples * (smallest_map(spec) or STEADY_VALUES) >= STEADY_VALUES:
        kind = "sync_batch" if group > 1 else "batch"
        why = (
            f"the network sees windows, on whose place the answers of {other} depend; running statistics do not, and "
            f"{samples} samples of many positions each are enough for them"
        )
    else:
        why = f"{choice.why}. Its answers depend on the windows that the network sees: the job measures by how much"
        return choice.model_copy(update={"why": why, "evidence": evidence})
    alternative = Alternative(kind=other, why="does not depend on the batch, but on the windows")
    return NormChoice(kind=kind, why=why, evidence=evidence, alternative=alternative)


def chosen_norm(spec: JobSpec) -> NormSpec:
    """The spec's `norm` with the kind that the job runs with."""
    return spec.norm.model_copy(update={"kind": choose_norm(spec).kind})


def norm_group_size(spec: JobSpec) -> int:
    """Workers that share statistics. `node` counts as all here, because hosts are known only once workers are
    placed."""
    group: Literal["world", "node"] | int = spec.norm.group
    return min(group, spec.resources.workers) if isinstance(group, int) else spec.resources.workers


def statistics_group(spec: JobSpec, kind: str) -> int:
    """Workers whose samples go into one statistic of a kind."""
    return norm_group_size(spec) if KINDS[kind].synchronizes else 1


def _for_sequences() -> NormChoice:
    return NormChoice(
        kind="layer",
        why="recurrent networks have different statistics at every time step, which one running average can't hold",
        evidence=[
            f"the digits read by rows: error 0.05 with layer, 0.10 with batch: {LSTM_STUDY}",
            "Ba et al. 2016, arXiv:1607.06450, sec. 5",
        ],
        alternative=Alternative(kind="batch", why="with one running statistic for all time steps together"),
    )


def _per_sample(spec: JobSpec) -> str:
    return "layer" if smallest_map(spec) == 1 and spec.model.name == "mlp" else "group"


def _alternative_to_batch(spec: JobSpec) -> Alternative:
    if norm_group_size(spec) > 1:
        return Alternative(
            kind="sync_batch",
            why="computes what one device would with the whole batch, at the cost of an exchange between workers",
        )
    return Alternative(
        kind=_per_sample(spec), why="does the same in training and at inference, and does not depend on the batch"
    )


def _with_few_samples(group: int) -> Alternative:
    if group > 1:
        return Alternative(kind="sync_batch", why="uses the samples of all workers, and folds for inference")
    return Alternative(kind="batch_renorm", why="corrects a small batch by running statistics, and folds for inference")


def _numbers(spec: JobSpec) -> list[str]:
    samples, group = _samples_per_worker(spec), norm_group_size(spec)
    shared = f", {samples * group} on the {group} that share them" if group > 1 else ""
    found = [f"samples per statistic: {samples} on one worker{shared}"]
    positions = smallest_map(spec)
    if positions is not None:
        least = counted(samples * positions, "value")
        found.append(f"smallest map: {counted(positions, 'position')}, so at least {least} on one worker")
    if spec.train.joined_micro_batches > 1:
        found.append(f"the {spec.train.accumulate} micro-batches of a step are normalized together")
    elif spec.train.accumulate > 1:
        found.append(f"each of the {spec.train.accumulate} micro-batches of a step is normalized by itself")
    return found


def _samples_per_worker(spec: JobSpec) -> int:
    """Of those that are normalized together."""
    assert spec.data.batch_size is not None  # JobSpec wants it for `auto`
    return spec.data.batch_size * spec.train.joined_micro_batches


def _small_batches() -> str:
    return (
        f"digits with 1 sample per worker: error 0.70 with batch, 0.04 with sync_batch and group: {SMALL_BATCH_STUDY}"
    )
