from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from syncnorm.trainer.errors import NoExportError
from syncnorm.trainer.export.formats import export
from syncnorm.trainer.export.forward_inputs import ForwardInputs


class Constant(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(len(x), 4)


def test_a_network_that_fixes_its_batch_size_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(NoExportError, match=r"(?s)exportable for any number of samples.*x.shape\[0\]"):
        export(Constant(), ForwardInputs((torch.randn(2, 2, 2),)), ["pt2"], tmp_path)
