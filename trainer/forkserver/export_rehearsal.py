"""The first export of a process, in small. Importing this module does it: the parent of warm processes does so.

torch and MLflow load and keep much of what an export needs once the first one begins, and MLflow reads the lists of all
installed files. Processes that are forked afterwards have it. The network draws no random numbers, so the next ones are
those of a new process, and no thread is left, which would not survive a fork.

mlflow.pytorch is left out: it loads pytorch_lightning, which a job has as lightning.pytorch only from its start on.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import mlflow.onnx
import mlflow.pyfunc  # noqa: F401
import torch
from mlflow.utils.requirements_utils import warn_dependency_requirement_mismatches
from torch import Tensor, nn
from tqdm import tqdm  # type: ignore[import-untyped]


class Network(nn.Module):
    """A convolution with normalization and activation, and a linear layer, of ones."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(2)
        self.kernel, self.weight = nn.Parameter(torch.ones(2, 1, 3, 3)), nn.Parameter(torch.ones(3, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.conv2d(x, self.kernel, padding=1)
        return nn.functional.linear(nn.functional.relu(self.norm(x)).mean((2, 3)), self.weight)


def rehearse() -> None:
    example = (torch.ones(2, 1, 4, 4),)
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    with torch.no_grad(), _quietly(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters warn about their own internals
        program = torch.export.export(Network().eval(), example, dynamic_shapes=shapes)
        file = io.BytesIO()
        torch.export.save(program, file)
        file.seek(0)
        torch.onnx.export(torch.export.load(file), example, dynamo=True, verbose=False)
    warn_dependency_requirement_mismatches(["torch"])


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the exporters' lines, and without the thread that watches their progress bars."""
    interval, disabled = tqdm.monitor_interval, logging.root.manager.disable
    tqdm.monitor_interval = 0
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        tqdm.monitor_interval = interval
        logging.disable(disabled)


rehearse()
