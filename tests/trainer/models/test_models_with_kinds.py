"""Every built-in model with every kind of normalization: it learns, or is refused with a sentence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from syncnorm import norm
from syncnorm.trainer.contract.spec import ModelSpec, NormSpec, OptimizerSpec
from syncnorm.trainer.data import DataInfo
from syncnorm.trainer.models import build_model
from syncnorm.trainer.training.optim import build_optimizer
from syncnorm.trainer.training.tasks.loss import task_loss

MODELS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "resnet": ({"depth": 8, "width": 8}, (1, 8, 8)),
    "resnet-18": ({"depth": 18, "width": 8}, (3, 64, 64)),
    "vgg": ({"width": 8}, (1, 8, 8)),
    "mlp": ({"hidden": [16, 16]}, (1, 8, 8)),
    "cnn": ({"channels": [8, 16]}, (1, 8, 8)),
    "lstm": ({"hidden": 8}, (1, 8, 8)),
    "unet": ({"width": 8, "depth": 2}, (1, 16, 16)),
    "unet-3d": ({"width": 8, "depth": 1, "dims": 3}, (1, 8, 8, 8)),
}
NOT_RESIDUAL = "fixup needs residual blocks"
NO_POSITIONS = "Instance normalization needs more than one position per channel"
REFUSED = {
    **{(name, "fixup"): NOT_RESIDUAL for name in MODELS if not name.startswith("resnet")},
    ("mlp", "instance"): NO_POSITIONS,
    ("lstm", "instance"): NO_POSITIONS,
    ("lstm", "selu"): "selu needs every activation to be a module",
}
# Box-Cox starts as a square: in a network this deep, without another normalization, values overflow.
OPTIONS: dict[str, dict[str, Any]] = {"box_cox": {"lambda_init": 1.0}}


def _losses(name: str, kind: str, steps: int) -> list[float]:
    init_args, shape = MODELS[name]
    is_unet = name.startswith("unet")
    info = DataInfo("segmentation" if is_unet else "classification", 3, shape)
    built = build_model(ModelSpec(name=name.split("-", maxsplit=1)[0], init_args=init_args), NormSpec(), info)
    model, _ = norm.convert(built, kind, **OPTIONS.get(kind, {}))
    optimizer = build_optimizer(model, OptimizerSpec(name="adam", lr=0.003, weight_decay=1e-4))
    x, y = torch.randn(6, *shape), torch.randint(3, (6, *shape[1:]) if is_unet else (6,))
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = task_loss(info, model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    _assert_answers_alone(model.eval(), x)
    return losses


def _assert_answers_alone(model: nn.Module, x: torch.Tensor) -> None:
    """In eval, a sample's answer does not depend on the batch it comes in."""
    torch.testing.assert_close(model(x[:1]), model(x)[:1], rtol=1e-4, atol=1e-4)  # fp32, other kernels


@pytest.mark.parametrize("kind", norm.kinds())
@pytest.mark.parametrize("name", MODELS)
def test_model_learns_with_every_kind_or_is_refused(name: str, kind: str) -> None:
    torch.manual_seed(0)
    if sentence := REFUSED.get((name, kind)):
        with pytest.raises(ValueError, match=sentence):
            _losses(name, kind, steps=1)
        return

    losses = _losses(name, kind, steps=6)

    assert min(losses[1:]) < losses[0]
