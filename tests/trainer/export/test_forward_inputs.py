"""What a forward takes is found from its signature and a batch, or the sentence says why not."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import Tensor, nn
from torch.testing import assert_close

from syncnorm.trainer.export.forward_inputs import ForwardInputs, Unclear, forward_inputs

X, Y, MASK, WIDE = torch.ones(4, 6), torch.arange(4), torch.zeros(4, 6), torch.ones(4, 32)
IMAGE = torch.zeros(3, 4, 6)


class Net(nn.Module):
    """A forward of one tensor, with layers whose state a call in train mode would change."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3), nn.Dropout())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


class Lit(pl.LightningModule):
    """The same as a LightningModule."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, x: Tensor) -> Any:
        return self.net(x)


class NoForward(pl.LightningModule):
    def training_step(self, batch: Any, batch_idx: int) -> None: ...


class NoForwardAtAll(nn.Module): ...


class OptionalTarget(Net):
    def forward(self, x: Tensor, targets: Tensor | None = None) -> Tensor:
        assert targets is None
        return super().forward(x)


class TwoInputs(Net):
    def forward(self, inputs: Tensor, target: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(inputs) + target[:, None]


class ByName(Net):
    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        assert attention_mask is not None
        assert labels is None
        return super().forward(input_ids)


class WholeBatch(Net):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:  # type: ignore[override]
        return super().forward(batch["a"] + batch["b"])


class UnnamedDict(Net):
    """Takes a dict, and nothing says so but its code."""

    def forward(self, sample_of_mine) -> Tensor:  # type: ignore[no-untyped-def]
        return super().forward(sample_of_mine["left"] + sample_of_mine["right"])


class Anything(pl.LightningModule):
    """Passes on what it gets, as torchgeo's tasks do."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.net(*args, **kwargs)


class Items(Anything):
    """Passes on what it gets by name, as modules around a network of transformers do."""

    def forward(self, **items: Any) -> Any:
        return self.net(**items)


class Detector(Net):
    """Takes images of any size, as torchvision's detectors do."""

    def forward(self, images: Any, targets: Any = None) -> Any:  # noqa: ARG002
        return [{"scores": super(Detector, self).forward(image[0])} for image in images]


@dataclass
class Batch:
    """Samples as anomalib has them."""

    image: Tensor
    gt_label: Tensor | None = None
    explanation: list[str] | None = None


class TakesImages(Net):
    def forward(self, batch: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]  # noqa: ARG002
        return super().forward(batch)


class NoInput(Net):
    def forward(self) -> Tensor:  # type: ignore[override]
        return super().forward(X)


class Example(Lit):
    def __init__(self, example: Any) -> None:
        super().__init__()
        self.example_input_array = example


CASES: dict[str, tuple[nn.Module, Any, ForwardInputs]] = {
    "a tensor": (Net(), X, ForwardInputs((X,))),
    "a tensor, Lightning's own module": (BoringModel(), WIDE, ForwardInputs((WIDE,))),
    "a pair": (Net(), (X, Y), ForwardInputs((X,))),
    "a list, as torch collates a pair": (Lit(), [X, Y], ForwardInputs((X,))),
    "three parts": (Lit(), (X, Y, Y), ForwardInputs((X,))),
    "a dict with one obvious key": (Lit(), {"image": X, "label": Y}, ForwardInputs((X,))),
    "a dict with one floating tensor": (Lit(), {"wave": X, "speaker": Y}, ForwardInputs((X,))),
    "a dict by names": (
        ByName(),
        {"input_ids": X, "attention_mask": MASK, "labels": Y},
        ForwardInputs(kwargs={"input_ids": X, "attention_mask": MASK}),
    ),
    "a dict by names beside a target": (
        ByName(),
        ({"input_ids": X, "attention_mask": MASK}, Y),
        ForwardInputs(kwargs={"input_ids": X, "attention_mask": MASK}),
    ),
    "a whole dict": (WholeBatch(), {"a": X, "b": X}, ForwardInputs(({"a": X, "b": X},))),
    "a dict for a parameter without a type": (
        UnnamedDict(),
        {"left": X, "right": X},
        ForwardInputs(({"left": X, "right": X},)),
    ),
    "a dict whose input is passed on": (Anything(Net()), {"image": X, "label": Y}, ForwardInputs((X,))),
    "a pair whose input is passed on": (Anything(Net()), (X, Y), ForwardInputs((X,))),
    "a dict that is passed on by name": (
        Anything(ByName()),
        {"input_ids": X, "attention_mask": MASK, "labels": Y},
        ForwardInputs(kwargs={"input_ids": X, "attention_mask": MASK}),
    ),
    "a dict for nothing but items": (
        Items(ByName()),
        {"input_ids": X, "attention_mask": MASK, "labels": Y},
        ForwardInputs(kwargs={"input_ids": X, "attention_mask": MASK}),
    ),
    "images in a list": (Detector(), ([IMAGE, IMAGE + 1], [{}, {}]), ForwardInputs(([IMAGE],))),
    "images in one tensor": (
        Anything(Detector()),
        {"image": torch.stack([IMAGE, IMAGE + 1]), "label": Y},
        ForwardInputs(([IMAGE],)),
    ),
    "a dataclass": (TakesImages(), Batch(X, Y), ForwardInputs((X,))),
    "an optional target": (OptionalTarget(), (X, Y), ForwardInputs((X,))),
    "a needed target": (TwoInputs(), (X, Y), ForwardInputs((X, Y))),
    "two views of the samples": (Lit(), [[X, X + 1], Y], ForwardInputs((X,))),
    "an example": (Example(MASK), (X, Y), ForwardInputs((MASK,))),
    "an example of arguments": (Example((MASK, 1)), X, ForwardInputs((MASK, 1))),
    "an example by name": (Example({"x": MASK}), {"wave": X}, ForwardInputs(kwargs={"x": MASK})),
}


@pytest.mark.parametrize("case", CASES)
def test_inputs_are_found_in_a_batch_of(case: str) -> None:
    module, batch, expected = CASES[case]

    found = forward_inputs(module, batch)

    assert isinstance(found, ForwardInputs), found
    assert_close((found.args, found.kwargs), (expected.args, expected.kwargs), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("module", "batch", "reason"),
    [
        (NoForward(), (X, Y), r"^NoForward defines no forward$"),
        (NoForwardAtAll(), (X, Y), r"^NoForwardAtAll defines no forward$"),
        (TwoInputs(), X, r"forward takes inputs, target, .* a tensor of shape \(4, 6\); set example_input_array"),
        (TwoInputs(), {"image": X, "label": Y}, "a dict with image, label; set example_input_array"),
        (NoInput(), (X, Y), "only optional arguments.*; set example_input_array"),
        (TwoInputs(), Batch(X), "of type Batch with image, gt_label, explanation; set example_input_array"),
        (Items(ByName()), (X, Y), r"takes \*\*kwargs, .*; set example_input_array"),
        (Lit(), (), "a tuple of nothing; set example_input_array"),
        (Lit(), {"left": X, "right": X}, r"a dict with left, right"),
        (Lit(), [[MASK[:, :2], X[:, :3]], Y], r"takes no part of a batch.*\(\w+Error: .*; set example_input_array"),
    ],
)
def test_sentence_says_why_inputs_are_not_found(module: nn.Module, batch: Any, reason: str) -> None:
    found = forward_inputs(module, batch)

    assert isinstance(found, Unclear)
    assert re.search(reason, found.reason, re.DOTALL), found.reason


def test_search_leaves_the_network_and_the_random_generators_as_they_were() -> None:
    module, batch = UnnamedDict().train(), {"left": X, "x": X, "right": X}
    module.net[1].eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    modes, random_state = [one.training for one in module.modules()], torch.get_rng_state()

    found = forward_inputs(module, batch)

    assert isinstance(found, ForwardInputs)
    assert found.args[0].keys() == batch.keys()  # the obvious key was tried before and refused
    assert_close(module.state_dict(), before, rtol=0, atol=0)
    assert [one.training for one in module.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)


def test_call_gives_the_answer_of_the_network() -> None:
    module = ByName().eval()

    inputs = forward_inputs(module, {"input_ids": X, "attention_mask": MASK})

    assert isinstance(inputs, ForwardInputs)
    assert_close(inputs.call(module), module.net(X))


def test_inputs_are_alike_if_tensors_lie_in_the_same_places() -> None:
    one = ForwardInputs((X,), {"mask": MASK})

    assert one.is_like(ForwardInputs((X + 1,), {"mask": MASK}))
    assert not one.is_like(ForwardInputs((X, MASK)))
    assert not one.is_like(ForwardInputs((X,), {"mask": 3}))


class Located(torch.Tensor):
    """A tensor with facts about itself, as MONAI's loaders give them."""


def test_tensors_of_a_library_become_torchs_own() -> None:
    images = torch.ones(2, 3).as_subclass(Located)

    found = ForwardInputs((images,), {"more": [images]})

    assert [type(tensor) for tensor in (found.args[0], found.kwargs["more"][0])] == [torch.Tensor, torch.Tensor]
    assert found.args[0].data_ptr() == images.data_ptr()
