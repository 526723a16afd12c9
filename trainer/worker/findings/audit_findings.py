"""What norm.audit finds in the network of a job, as findings of its plan."""

from __future__ import annotations

import math
from collections.abc import Sequence, Sized
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import nn

from syncnorm import norm
from syncnorm.trainer.contract.spec import JobSpec, OptimizerSpec
from syncnorm.trainer.contract.spec_findings import (
    ACCUMULATION_FIX,
    LAST_BATCH_FIX,
    Finding,
    alike,
    last_batch_of_one,
    reaches_last_batch,
)
from syncnorm.trainer.contract.text import counted, name_some
from syncnorm.trainer.data import Data
from syncnorm.trainer.export.forward_inputs import ForwardInputs, Unclear, defines_forward
from syncnorm.trainer.training.optim import build_optimizer
from syncnorm.trainer.worker.module_and_data import total_steps
from syncnorm.trainer.worker.smoke_forward import SAMPLES


def audit_own(
    module: LightningModule, inputs: ForwardInputs | Unclear, loader: Any, size: int | None, spec: JobSpec, workers: int
) -> list[Finding]:
    """As far as forward shows the layers; what only a guess says is not an error."""
    order = getattr(loader, "order", None)
    uneven = [_uneven_shares(shares)] if order is not None and (shares := order.uneven_shares()) else []
    if isinstance(inputs, Unclear) or inputs.kwargs or size is None:
        why = inputs.reason if isinstance(inputs, Unclear) else "forward is given its inputs by name"
        return [_not_audited(why, has_forward=defines_forward(module), part=spec.export.module), *uneven]
    samples = order.samples() if order is not None else None
    is_cut = order is not None and (order.how.drop_last or order.how.last_batch == "drop")
    found = norm.audit(
        module,
        inputs.args,
        batch_size=size,
        workers=workers,
        accumulate=spec.train.batches_per_step,
        dataset_size=samples,
        drop_last=is_cut,
        group=spec.norm.group if isinstance(spec.norm.group, int) else None,
    )
    rest = 0 if samples is None or is_cut else samples % (size * workers)
    findings = _in_words_of_the_spec(found, rest, size * workers)
    return [*(_as_a_guess(one) for one in findings), *uneven]


def _as_a_guess(finding: Finding) -> Finding:
    """What a user's code does besides forward may show a layer, and give it another shape."""
    if finding.code == "layer_not_reached":
        update = {
            "message": "forward does not reach the layer. A training_step may, as that of a teacher or a projector.",
            "fix": "Nothing, if each worker reaches it in each step: workers that wait for it would hang.",
            "severity": "info",
        }
        return finding.model_copy(update=update)
    is_guess = finding.code in ("unknown_layer", "forward_fails")
    return finding.model_copy(update={"severity": "warning"}) if is_guess else finding


def _not_audited(why: str, *, has_forward: bool, part: str | None) -> Finding:
    if has_forward:
        fix = "Set example_input_array in your module."
    elif part:
        fix = f"Nothing: training does without, and {part} is exported."
    else:
        fix = "Nothing, if you don't need an export. Otherwise define forward, or name a network in your module as "
        fix += "export.module."
    return Finding(
        code="not_audited",
        path="model",
        message=f"Normalization is converted, but its layers can't be looked at beforehand: {why}.",
        fix=fix,
        severity="info",
    )


def _uneven_shares(shares: Sequence[int]) -> Finding:
    return Finding(
        code="uneven_shares",
        path="data.last_batch",
        message=f"The last batch of an epoch has {counted(sum(shares), 'sample')} for {len(shares)} workers. A "
        "training_step that gathers tensors over workers, as SimCLR's and CLIP's do, can't take that and is refused at "
        "the first step.",
        fix="Leave data.last_batch out, or choose a data.batch_size that divides the training data.",
        severity="warning",
    )


def audit(network: nn.Module, data: Data, spec: JobSpec, workers: int) -> list[Finding]:
    """The findings of norm.audit about a converted network, as findings of a plan, for an attempt of `workers`."""
    assert isinstance(data.train, Sized)
    samples, per_worker = len(data.train), data.samples_per_worker(spec.data.batch_size)
    full = per_worker * spec.train.joined_micro_batches * spec.resources.workers
    batches = max(1, samples // full)
    is_cut = spec.data.last_batch == "drop" or not reaches_last_batch(spec.train, math.ceil(samples / full))
    found = norm.audit(
        network,
        torch.zeros(SAMPLES, *data.info.shape, dtype=_dtype_of(network), device=_device_of(network)),
        batch_size=math.ceil(full / workers),
        workers=workers,
        accumulate=spec.train.batches_per_step,
        dataset_size=samples,
        drop_last=is_cut,
        steps=total_steps(spec.train, batches),
        optimizer=build_optimizer(network, spec.optimizer or OptimizerSpec()),
        group=spec.norm.group if isinstance(spec.norm.group, int) else None,
    )
    rest = 0 if is_cut else samples % full
    return _in_words_of_the_spec(found, rest, full)


def _device_of(network: nn.Module) -> torch.device:
    return next((p.device for p in network.parameters()), torch.device("cpu"))


def _dtype_of(network: nn.Module) -> torch.dtype:
    """Of its first floating parameter: an attempt in 64-true has made its network double by then."""
    return next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)


def require_no_error(findings: Sequence[Finding]) -> None:
    """Raises: ValueError for errors of a plan, in its words: the job would fail, or train in vain."""
    errors = alike([finding for finding in findings if finding.severity == "error"])
    if errors:
        texts = [f"{name_some(paths) or 'spec'}: {one.message} {one.fix}" for one, paths in errors]
        raise ValueError(f"The plan of this job has {counted(len(texts), 'error')}. {' '.join(texts)}")


def _in_words_of_the_spec(found: Sequence[norm.Finding], rest: int, full: int) -> list[Finding]:
    """Findings of the whole job, which norm.audit has for each layer, come once."""
    return list(dict.fromkeys(_one_in_words_of_the_spec(item, rest, full) for item in found))


def _one_in_words_of_the_spec(item: norm.Finding, rest: int, full: int) -> Finding:
    if item.code == "uneven_last_batch":
        if item.severity == "error":
            return last_batch_of_one(rest, full, item.path)
        fix = LAST_BATCH_FIX
    elif item.code == "accumulation_splits_statistics":
        return Finding(
            code=item.code,
            path="train.accumulate",
            message=item.message,
            fix=ACCUMULATION_FIX,
            severity=item.severity,
        )
    else:
        fix = item.fix
    return Finding(code=item.code, path=item.path, message=item.message, fix=fix, severity=item.severity)
