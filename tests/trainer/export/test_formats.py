from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from syncnorm.trainer.export.formats import export


class Constant(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(len(x), 4)


def test_a_network_that_fixes_its_batch_size_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"(?s)exportable for any number of samples.*x.shape\[0\]"):
        export(Constant(), torch.randn(2, 2, 2), ["pt2"], tmp_path)
