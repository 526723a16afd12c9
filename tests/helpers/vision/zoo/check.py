"""What is checked of one architecture with one kind of normalization."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from syncnorm import norm
from syncnorm.norm.reading.readers import read_source

Inputs = tuple[Tensor, ...]
TOLERANCE = 2e-3
"""Of the largest output: fp32, over up to a hundred layers with random weights."""

NOT_FINITE = "gradients that are not finite"


@dataclass
class Result:
    """effect: `same`, if the function in eval mode is kept to rounding; `other`; `refused`; `none`, without any layer.

    refusal: our sentence. folded: of `layers`. exported: None if it was not tried, or the library's own network can't
    be. faults: what must not happen.
    """

    architecture: str
    kind: str
    effect: str = "none"
    layers: int = 0
    folded: int = 0
    exported: bool | None = None
    refusal: str = ""
    faults: list[str] = field(default_factory=list)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Within, every exception is a fault, except a refusal of ours."""
        try:
            yield
        except Exception as error:  # code of others, with layers that it was not written for
            if isinstance(error, ValueError) and "syncnorm" in _raised_in(error):
                self.effect, self.refusal = "refused", f"In a forward: {error}"
                return
            self.faults.append(f"{name}: {type(error).__name__}: {error}".splitlines()[0][:300])


class Checked:
    """One network of a library, and what it does before anything is converted."""

    def __init__(self, key: str, model: nn.Module, inputs: Inputs) -> None:
        self.key, self.model, self.inputs = key, model.eval(), inputs
        self.expected = outputs_of(model, inputs)
        self.state = copy.deepcopy(model.state_dict())
        self.types = types_of(model)
        self.kinds = set(sources_of(model).values())
        self.trains = self._trained(copy.deepcopy(model)) == ""

    @cached_property
    def can_be_exported(self) -> bool:
        """Whether the library's own network can."""
        try:
            torch.export.export(norm.revert(copy.deepcopy(self.model)), self.inputs)
        except Exception:  # torch.export's own limits
            return False
        return True

    def check(self, kind: str, *, with_export: bool) -> Result:
        """Every step with `kind`. Afterwards the network is as it was, unless there are faults."""
        result = Result(self.key, kind)
        try:
            self.model, replaced = norm.convert(self.model, kind)
        except ValueError as error:
            result.effect, result.refusal = "refused", str(error)
            self._require_untouched(result, "after a refusal")
            return result
        except Exception as error:  # must not happen
            result.faults.append(f"convert: {type(error).__name__}: {error}"[:300])
            return result
        if replaced:
            self._check_converted(kind, replaced, result, with_export)
        with result.step("revert"):
            self.model = norm.revert(self.model)
        self._require_untouched(result, "after revert")
        if replaced:
            with result.step("train"):
                self._check_training(kind, result)
        return result

    def _check_converted(self, kind: str, replaced: list[norm.Replacement], result: Result, with_export: bool) -> None:
        y = None
        with result.step("forward"):
            y = outputs_of(self.model, self.inputs)
            result.effect = "same" if are_close(y, self.expected) else "other"
        if result.effect == "other" and (silent := self._silent(kind, replaced)):
            result.faults.append(f"silent change: {silent}")
        if keeps_keys(kind, replaced) and (lost := self.state.keys() - self.model.state_dict().keys()):
            result.faults.append(f"state_dict: keys are gone: {sorted(lost)[:3]}")
        with result.step("audit"):
            found = norm.audit(self.model, self.inputs, batch_size=2, workers=2)
            result.faults += [f"audit: {one.message}"[:300] for one in found if one.code == "forward_fails" and y]
            is_said = any(one.code in ("box_cox_in_a_deep_network", "output_not_finite") for one in found)
            if y is not None and are_finite(self.expected) and not are_finite(y) and not is_said:
                result.faults.append("forward: outputs that are not finite")
        with result.step("fold"):
            folded, report = norm.fold(self.model)
            result.layers, result.folded = len(report), sum(one.into is not None for one in report)
            if y is not None and not are_close(outputs_of(folded, self.inputs), y):
                result.faults.append("fold: another function")
        if with_export and y is not None:
            self._check_export(result, y)

    def _check_export(self, result: Result, y: list[Tensor]) -> None:
        try:
            program = torch.export.export(self.model, self.inputs).module()
        except Exception as error:  # torch.export's own limits, if the library's own network has them too
            result.faults += [f"export: {error}"[:300]] if self.can_be_exported else []
            return
        with result.step("export"):
            result.exported = are_close(_run(program, self.inputs), y)
            result.faults += [] if result.exported else ["export: another function"]

    def _silent(self, kind: str, replaced: list[norm.Replacement]) -> str:
        """What the names of the kinds promise to be the same function in eval mode, with no note that it isn't."""
        before = {one.before for one in replaced}
        keeps_statistics = norm.kinds()[kind].running_statistics and all("Batch" in name for name in before)
        is_expected = keeps_statistics or self.kinds == {kind}
        is_said = any(one.note for one in replaced)
        return f"{sorted(before)} became {kind}" if is_expected and not is_said else ""

    def _check_training(self, kind: str, result: Result) -> None:
        if not self.trains:
            return
        model, _ = norm.convert(copy.deepcopy(self.model), kind)
        try:
            problem = self._trained(model)
        except ValueError as error:
            result.refusal = f"In training: {error}"
        else:
            overflows = not are_finite(outputs_of(model, self.inputs)) if problem == NOT_FINITE else False
            result.faults += [f"train: {problem}"] if problem and not overflows else []
        back = norm.revert(model)
        if types_of(back) != self.types:
            result.faults.append("revert after training: other classes")

    def _trained(self, model: nn.Module) -> str:
        """What is wrong with a step of training, or nothing. Raises: ValueError for a refusal of ours."""
        try:
            torch.manual_seed(0)
            sum(y.sum() for y in tensors(model.train()(*self.inputs)) if y.requires_grad).backward()  # type: ignore[union-attr]
        except Exception as error:  # as in `step`
            if isinstance(error, ValueError) and "syncnorm" in _raised_in(error):
                raise
            return f"{type(error).__name__}: {error}".splitlines()[0][:300]
        takes_powers = any(isinstance(module, norm.BoxCox) for module in model.modules())  # the audit warns of them
        if not are_finite([p.grad for p in model.parameters() if p.grad is not None]) and not takes_powers:
            return NOT_FINITE
        without = [path for path, layer in model.named_modules() if read_source(layer, path) and _lacks_gradient(layer)]
        return f"no gradient in {without[:3]}" if without and len(without) == len(sources_of(model)) else ""

    def _require_untouched(self, result: Result, when: str) -> None:
        state = self.model.state_dict()
        if state.keys() != self.state.keys():
            result.faults.append(f"{when}: the state_dict has other keys")
        elif wrong := [name for name, value in state.items() if not _is_same(value, self.state[name])]:
            result.faults.append(f"{when}: {len(wrong)} tensors are others, such as {wrong[0]}")
        if types_of(self.model) != self.types:
            result.faults.append(f"{when}: modules are of other classes")
        if not all(map(_is_same, outputs_of(self.model, self.inputs), self.expected)):
            result.faults.append(f"{when}: the function is another")


def _raised_in(error: Exception) -> str:
    """The name of the module that raised it."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return str(frame.tb_frame.f_globals.get("__name__")) if frame is not None else ""


def keeps_keys(kind: str, replaced: list[norm.Replacement]) -> bool:
    """Whether the names of the state_dict are promised: batch normalization that stays one."""
    promised = norm.kinds()[kind].running_statistics and kind != "frozen_batch"
    return promised and all("Batch" in one.before and "Frozen" not in one.before for one in replaced)


def sources_of(model: nn.Module) -> dict[str, str]:
    """The kinds of its layers, by path."""
    found = dict[str, str]()
    for path, layer in model.named_modules():
        try:
            source = read_source(layer, path)
        except ValueError:
            continue
        if source is not None:
            found[path] = source.kind
    return found


def types_of(model: nn.Module) -> list[tuple[str, type[nn.Module]]]:
    return [(path, type(module)) for path, module in model.named_modules()]


def outputs_of(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    return _run(model.eval(), inputs)


def _run(model: Any, inputs: Inputs) -> list[Tensor]:
    torch.manual_seed(0)
    with torch.no_grad():
        return tensors(model(*inputs))


def tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def are_finite(found: Iterable[Tensor]) -> bool:
    return all(bool(one.isfinite().all()) for one in found)


def are_close(found: list[Tensor], expected: list[Tensor]) -> bool:
    def close(y: Tensor, other: Tensor) -> bool:
        if y.shape != other.shape:
            return False
        if not bool(other.isfinite().all()):
            return True  # there is nothing to compare
        largest = float(other.abs().max()) if other.numel() else 0.0
        return bool(((y - other).abs() <= TOLERANCE * max(largest, 1e-6)).all())

    return len(found) == len(expected) and all(map(close, found, expected))


def _is_same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other) or torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


def _lacks_gradient(layer: nn.Module) -> bool:
    own = [parameter for parameter in layer.parameters(recurse=False) if parameter.requires_grad]
    return bool(own) and all(parameter.grad is None for parameter in own)
