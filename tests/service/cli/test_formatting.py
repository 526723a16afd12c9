"""Single values as people read them."""

from __future__ import annotations

import pytest

from syncnorm.service.cli.formatting import finding_text


@pytest.mark.parametrize(
    ("places", "message", "text"),
    [
        ("norm.kind", "sync_batch has no other worker.", "norm.kind: sync_batch has no other worker. Do."),
        ("", "The model has no layers.", "The model has no layers. Do."),
        ("model.init_args", "model.init_args must fit Net().", "model.init_args must fit Net(). Do."),
        ("model", "model.init_args.width must be 3.", "model.init_args.width must be 3. Do."),
        ("model", "models of timm have no such layer.", "model: models of timm have no such layer. Do."),
    ],
)
def test_finding_names_its_field_once(places: str, message: str, text: str) -> None:
    assert finding_text(places, message, "Do.") == text
