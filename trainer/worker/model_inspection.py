"""Facts about a spec that need torch: which layers are converted, and what the audit finds.

`python -m syncnorm.trainer.worker.model_inspection` reads a job spec (JSON) from standard input and prints an
Inspection (JSON). Nothing is trained. The service runs it as a separate process for a dry run; an attempt audits its
own network the same way.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Sequence, Sized
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import nn

from syncnorm import norm
from syncnorm.trainer.contract.norm_choice import chosen_norm
from syncnorm.trainer.contract.plan import Inspection
from syncnorm.trainer.contract.spec import JobSpec
from syncnorm.trainer.contract.spec_findings import (
    LAST_BATCH_FIX,
    Finding,
    alike,
    last_batch_of_one,
    reaches_last_batch,
)
from syncnorm.trainer.contract.spec_reader import read_spec
from syncnorm.trainer.contract.text import counted, name_some
from syncnorm.trainer.data import Data, build_data
from syncnorm.trainer.models import build_model
from syncnorm.trainer.training.conversion import convert
from syncnorm.trainer.training.optim import build_optimizer
from syncnorm.trainer.user_code import package as user_code
from syncnorm.trainer.worker.fit import total_steps
from syncnorm.trainer.worker.smoke_forward import SAMPLES, check_forward


def inspect(spec: JobSpec) -> Inspection:
    """Build, convert and audit the network of `spec`; an error on the way is a finding, too."""
    try:
        return _inspect(spec)
    except Exception as error:
        message = f"The network can't be built as the spec says: {type(error).__name__}: {error}"
        fix = "Change the part of the spec that the message names."
        finding = Finding(code="cannot_build", path=_field(error), message=message, fix=fix, severity="error")
        return Inspection(conversion=[], findings=[finding])


def _field(error: Exception) -> str:
    """The field of the spec that begins one of our own messages."""
    found = re.match(r"(model|data|norm|optimizer|train)(\.\w+)+", str(error))
    return found.group() if found else ""


def _inspect(spec: JobSpec) -> Inspection:
    torch.manual_seed(spec.seed)
    data = build_data(spec.data, spec.seed)
    network, conversion = convert(build_model(spec.model, chosen_norm(spec), data.info), spec, None)
    check_forward(network, data.info)
    return Inspection(conversion=conversion, findings=audit(network, data, spec, spec.resources.workers))


def audit(network: nn.Module, data: Data, spec: JobSpec, workers: int) -> list[Finding]:
    """The findings of norm.audit about a converted network, as findings of a plan, for an attempt of `workers`."""
    assert isinstance(data.train, Sized)
    samples, full = len(data.train), spec.data.batch_size * spec.resources.workers
    batches = max(1, samples // full)
    is_cut = spec.data.last_batch == "drop" or not reaches_last_batch(spec.train, math.ceil(samples / full))
    found = norm.audit(
        network,
        torch.zeros(SAMPLES, *data.info.shape, dtype=_dtype_of(network)),
        batch_size=math.ceil(full / workers),
        workers=workers,
        accumulate=spec.train.accumulate,
        dataset_size=samples,
        drop_last=is_cut,
        steps=total_steps(spec.train, batches),
        optimizer=build_optimizer(network, spec.optimizer),
        group=spec.norm.group if isinstance(spec.norm.group, int) else None,
    )
    rest = 0 if is_cut else samples % full
    exchanging = [_uneven_shares(rest, workers)] if isinstance(network, LightningModule) and rest % workers else []
    return [*(_in_words_of_the_spec(item, rest, full) for item in found), *exchanging]


def _dtype_of(network: nn.Module) -> torch.dtype:
    """Of its first floating parameter: an attempt in 64-true has made its network double by then."""
    return next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)


def require_no_error(findings: Sequence[Finding]) -> None:
    """Raises: ValueError for errors of a plan, in its words: the job would fail, or train in vain."""
    errors = alike([finding for finding in findings if finding.severity == "error"])
    if errors:
        texts = [f"{name_some(paths) or 'spec'}: {one.message} {one.fix}" for one, paths in errors]
        raise ValueError(f"The plan of this job has {counted(len(texts), 'error')}. {' '.join(texts)}")


def _in_words_of_the_spec(item: norm.Finding, rest: int, full: int) -> Finding:
    if item.code == "uneven_last_batch":
        if item.severity == "error":
            return last_batch_of_one(rest, full, item.path)
        fix = LAST_BATCH_FIX
    else:
        fix = item.fix
    return Finding(code=item.code, path=item.path, message=item.message, fix=fix, severity=item.severity)


def _uneven_shares(rest: int, workers: int) -> Finding:
    return Finding(
        code="uneven_shares",
        path="data.last_batch",
        message=f"The last batch of an epoch has {counted(rest, 'sample')} for {workers} workers. A training_step that "
        "gathers tensors over workers, as SimCLR's and CLIP's do, can't take that and is refused at the first step.",
        fix=LAST_BATCH_FIX,
        severity="warning",
    )


def main(*packages: str) -> None:
    user_code.hide_checkout()
    for package in packages:
        user_code.put_on_path(Path(package))
    document: Any = json.load(sys.stdin)
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as answer:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a user's code prints is no part of the answer
        print(inspect(read_spec(document)).model_dump_json(), file=answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
