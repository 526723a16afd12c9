"""What happens within one training step of a torchvision detector: counts, and random draws that belong to an image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from syncnorm.norm.lockstep.turns import meet

_DETECTION = "torchvision.models.detection."
_PADDING = "padding"


class Counts:
    """What the losses of a step are divided by, on this worker, as counts by name."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._found: dict[str, Tensor] = {}

    def add(self, name: str, tensors: Sequence[Tensor]) -> None:
        found = torch.stack([tensor.sum() for tensor in tensors]).sum().double().to(self._device)
        self._found[name] = self._found.get(name, 0.0) + found

    def __contains__(self, name: str) -> bool:
        return name in self._found

    def __getitem__(self, name: str) -> Tensor:
        return self._found[name] if name in self._found else torch.zeros((), dtype=torch.float64, device=self._device)


@contextmanager
def watched(network: nn.Module, draws: Sequence[int], counts: Counts, *, padding: Padding) -> Iterator[None]:
    """Within the block, `network` counts into `counts`, and what it draws at random for an image comes from the number
    of that image in `draws`: the same, on whatever worker and in whatever batch the image is. Its images are padded as
    `padding` says."""
    with ExitStack() as stack:
        for place, module in enumerate(network.modules()):
            for name, replacement in _replacements(module, [draw + place for draw in draws], counts, padding):
                stack.enter_context(_replaced(module, name, replacement))
        yield


class Padding:
    """Images of a batch are padded to the largest, of all micro-batches that are normalized together. is_shared: to
    that of all workers, as on one device. is_blank: whether this worker has no image."""

    def __init__(self, device: torch.device, *, is_shared: bool, is_blank: bool) -> None:
        self._device, self._is_shared, self._is_blank = device, is_shared, is_blank

    def __call__(self, largest: list[int]) -> list[int]:
        own = [0] * len(largest) if self._is_blank else largest
        sides: list[int] = meet(_PADDING, "the padding of its images", own, self._of_all)
        return sides

    def _of_all(self, of_micro_batches: Sequence[list[int]]) -> list[list[int]]:
        largest = [max(sides) for sides in zip(*of_micro_batches, strict=True)]
        if self._is_shared:
            sides = torch.tensor(largest, device=self._device)
            dist.all_reduce(sides, op=dist.ReduceOp.MAX)
            largest = [int(side) for side in sides.tolist()]
        return [largest] * len(of_micro_batches)


def is_detector(module: nn.Module, *names: str) -> bool:
    """Whether it is one of these classes of torchvision's detection models, or derived from one."""
    wanted = {_DETECTION + name for name in names}
    return any(f"{base.__module__}.{base.__qualname__}" in wanted for base in type(module).__mro__)


def _replacements(
    module: Any, draws: list[int], counts: Counts, padding: Padding
) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Attributes of one module with what stands in for them."""
    if is_detector(module, "transform.GeneralizedRCNNTransform"):
        of_images = _own(module, "max_by_axis")
        yield "max_by_axis", lambda sizes: padding(of_images(sizes))
        yield "torch_choice", _drawn_in_turn(_own(module, "torch_choice"), draws)
    elif is_detector(module, "rpn.RegionProposalNetwork"):
        yield "fg_bg_sampler", _Sampler(_own(module, "fg_bg_sampler"), draws, counts, "anchors")
        yield "compute_loss", _with_labels_as_wide(_own(module, "compute_loss"))
    elif is_detector(module, "roi_heads.RoIHeads"):
        yield "fg_bg_sampler", _Sampler(_own(module, "fg_bg_sampler"), draws, counts, "rois", "positive_rois")
    elif is_detector(module, "fcos.FCOSHead", "ssd.SSD"):
        compute = _own(module, "compute_loss")

        def counting(targets: Any, outputs: Any, anchors: Any, matches: list[Tensor]) -> Any:
            counts.add("foreground", [match >= 0 for match in matches])
            return compute(targets, outputs, anchors, matches)

        yield "compute_loss", counting


def _with_labels_as_wide(compute: Callable[..., Any]) -> Callable[..., Any]:
    """torchvision's labels of anchors are float32, which rounds the loss of double networks."""

    def compute_loss(objectness: Tensor, deltas: Tensor, labels: list[Tensor], targets: Any) -> Any:
        wide = torch.promote_types(objectness.dtype, labels[0].dtype)
        return compute(objectness, deltas, [label.to(wide) for label in labels], targets)

    return compute_loss


class _Sampler:
    """Stands in for torchvision's choice of anchors or RoIs, which it calls image by image."""

    def __init__(self, choose: Any, draws: list[int], counts: Counts, name: str, positives: str = "") -> None:
        self._choose, self._draws, self._counts = choose, draws, counts
        self._name, self._positives = name, positives

    def __call__(self, matches: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        positive, negative = [], []
        for draw, match in zip(self._draws, matches, strict=True):
            with _drawn_from(draw, match.device):
                chosen = self._choose([match])
            positive += chosen[0]
            negative += chosen[1]
        self._counts.add(self._name, [*positive, *negative])
        if self._positives:
            self._counts.add(self._positives, positive)
        return positive, negative


def _drawn_in_turn(choose: Callable[..., Any], draws: list[int]) -> Callable[..., Any]:
    """A choice that is made once for each image, in their order."""
    remaining = iter(draws)

    def of_next_image(options: Any) -> Any:
        with _drawn_from(next(remaining), torch.device("cpu")):
            return choose(options)

    return of_next_image


@contextmanager
def _drawn_from(seed: int, device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


class _Chosen:
    """Stands in for an attribute of a module: for each micro-batch that is under way what was put there for it."""

    def __init__(self, original: Any, had_own: bool) -> None:
        self.original, self.had_own = original, had_own
        self.users = 0
        self.own: ContextVar[Callable[..., Any]] = ContextVar("own", default=original)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.own.get()(*args, **kwargs)


def _own(module: nn.Module, name: str) -> Any:
    """The attribute itself, whatever stands in for it."""
    found = getattr(module, name)
    return found.original if isinstance(found, _Chosen) else found


@contextmanager
def _replaced(module: nn.Module, name: str, value: Callable[..., Any]) -> Iterator[None]:
    """Within the block, calls of `module.name` that belong to it go to `value`. Blocks of several micro-batches, which
    run in turns and in contexts of their own, may overlap."""
    own = vars(module)
    chosen = own.get(name)
    if not isinstance(chosen, _Chosen):
        chosen = own[name] = _Chosen(getattr(module, name), name in own)
    chosen.users += 1
    token = chosen.own.set(value)
    try:
        yield
    finally:
        chosen.own.reset(token)
        chosen.users -= 1
        if not chosen.users and chosen.had_own:
            own[name] = chosen.original
        elif not chosen.users:
            del own[name]
