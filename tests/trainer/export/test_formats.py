from __future__ import annotations

from pathlib import Path

import onnx
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


class Doubled(nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"pairs": torch.cat([x, x]), "same": x.flatten(1)}


def test_number_of_samples_is_called_batch_in_onnx_and_no_size_changes(tmp_path: Path) -> None:
    export(Doubled(), ForwardInputs((torch.randn(2, 3, 4),)), ["onnx"], tmp_path)

    graph = onnx.load(tmp_path / "model.onnx").graph
    named = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert named == {"input": ["batch", 3, 4], "output_pairs": ["2*batch", 3, 4], "output_same": ["batch", 12]}
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)
