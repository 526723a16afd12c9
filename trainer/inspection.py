"""What only a process that knows torch can say of a spec: which layers are converted, and what the audit finds.

`python -m trainer.inspection` reads a job spec (JSON) from standard input and prints an Inspection (JSON). Nothing is
trained. The service runs it as a process of its own for a dry run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sized
from typing import Any

import torch
from torch import nn

import norm
from trainer.conversion import convert
from trainer.data import Data, build_data
from trainer.fit import total_steps
from trainer.models import build_model
from trainer.norm_choice import chosen_norm
from trainer.optim import build_optimizer
from trainer.plan import Finding, Inspection
from trainer.spec import JobSpec
from trainer.spec_reader import read_spec


def inspect(spec: JobSpec) -> Inspection:
    """Build, convert and audit the network of `spec`; what goes wrong on the way is a finding, too."""
    try:
        return _inspect(spec)
    except Exception as error:
        message = f"The network can't be built as the spec says: {type(error).__name__}: {error}"
        fix = "Change the part of the spec that the message names."
        finding = Finding(code="cannot_build", path="", message=message, fix=fix, severity="error")
        return Inspection(conversion=[], findings=[finding])


def _inspect(spec: JobSpec) -> Inspection:
    torch.manual_seed(spec.seed)
    data = build_data(spec.data, spec.seed)
    network, conversion = convert(build_model(spec.model, chosen_norm(spec), data.info), spec, None)
    return Inspection(conversion=conversion, findings=audit(network, data, spec))


def audit(network: nn.Module, data: Data, spec: JobSpec) -> list[Finding]:
    """What norm.audit finds about a converted network, as findings of a plan."""
    assert isinstance(data.train, Sized)
    samples, workers = len(data.train), spec.resources.workers
    batches = max(1, samples // (spec.data.batch_size * workers))
    found = norm.audit(
        network,
        torch.zeros(1, *data.info.shape),
        batch_size=spec.data.batch_size,
        workers=workers,
        accumulate=spec.train.accumulate,
        dataset_size=samples,
        drop_last=spec.data.last_batch == "drop",
        steps=total_steps(spec.train, batches),
        optimizer=build_optimizer(network, spec.optimizer),
    )
    return [
        Finding(code=item.code, path=item.path, message=item.message, fix=item.fix, severity=item.severity)
        for item in found
    ]


def main() -> None:
    document: Any = json.load(sys.stdin)
    print(inspect(read_spec(document)).model_dump_json())


if __name__ == "__main__":
    main()
