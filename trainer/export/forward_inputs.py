"""What the forward of a network takes, found from its signature and one batch of a loader.

The batch may be a tensor, an (input, target) pair, a longer tuple, a dict or a dataclass. Of the possible readings of a
batch, the first one that the network accepts is taken. A LightningModule's `example_input_array` answers first.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from inspect import Parameter
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only

from syncnorm.trainer.contract.failure import ExportReason
from syncnorm.trainer.diagnostics.undisturbed import undisturbed
from syncnorm.trainer.errors import NoExportError

REMEDY = "set example_input_array"
_INPUTS = ("x", "image", "images", "img", "input", "inputs", "pixel_values", "data", "features")
"""Keys of a dict that name the network's input by custom."""
_TARGETS = ("y", "target", "targets", "label", "labels")
"""Optional parameters of a forward that make it compute a loss. They are left out."""
_WHOLE = ("batch", "sample", "data")
"""Names of the only parameter of a forward that takes a batch as it is."""
_EXPORTABLE = (Tensor, bool, int, float, complex, str, torch.dtype, torch.device, type(None))


@dataclass(frozen=True)
class ForwardInputs:
    """The arguments of one call of forward. Any pytree.

    Its tensors are torch's own, also where a library's loader gives tensors with facts about themselves: no exported
    model could take those.
    """

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        args, kwargs = tree_map_only(Tensor, _plain, (self.args, self.kwargs))
        object.__setattr__(self, "args", args)
        object.__setattr__(self, "kwargs", kwargs)

    def call(self, network: nn.Module) -> Any:
        return network(*self.args, **self.kwargs)

    @property
    def tensor(self) -> Tensor | None:
        """The only argument, if that is a tensor."""
        is_alone = len(self.args) == 1 and not self.kwargs and isinstance(self.args[0], Tensor)
        return self.args[0] if is_alone else None

    @property
    def foreign(self) -> type | None:
        """The class of an argument, or part of one, that no exported model takes: it is neither tensor nor number."""
        leaves = tree_flatten((self.args, self.kwargs))[0]
        return next((type(leaf) for leaf in leaves if not isinstance(leaf, _EXPORTABLE)), None)

    def to(self, device: torch.device) -> ForwardInputs:
        return self._mapped(lambda tensor: tensor.to(device))

    def double(self) -> ForwardInputs:
        """With fp64 in place of other floating types."""
        return self._mapped(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> ForwardInputs:
        args, kwargs = tree_map_only(Tensor, change, (self.args, self.kwargs))
        return ForwardInputs(args, kwargs)

    def is_like(self, other: ForwardInputs) -> bool:
        """Whether both have the same structure, with tensors in the same places."""
        (ours, our_shape), (theirs, their_shape) = (tree_flatten((one.args, one.kwargs)) for one in (self, other))
        return our_shape == their_shape and all(
            isinstance(a, Tensor) == isinstance(b, Tensor) for a, b in zip(ours, theirs, strict=True)
        )


def _plain(tensor: Tensor) -> Tensor:
    return tensor if type(tensor) in (Tensor, nn.Parameter) else tensor.as_subclass(Tensor)


@dataclass(frozen=True)
class Unclear:
    """Why it could not be found out, in a sentence without its full stop."""

    reason: str
    why: ExportReason = ExportReason.INPUTS_UNCLEAR

    @property
    def error(self) -> NoExportError:
        """The same as the error of an export."""
        return NoExportError(self.why, f"{self.reason}.")


def forward_inputs(module: nn.Module, batch: Any) -> ForwardInputs | Unclear:
    """What `module.forward` takes: its example_input_array, or else the part of `batch` that fits its signature.

    Of a batch for a detector it is the first image alone, in a list, because an exported detector takes one image. The
    network is called in eval mode and left as it was, so every rank should call this, or a single process.
    """
    if not defines_forward(module):
        return Unclear(f"{type(module).__name__} defines no forward", ExportReason.NO_FORWARD)
    return example_of(module) or _inputs_of_batch(module, batch)


def defines_forward(module: nn.Module) -> bool:
    """Whether it has a forward of its own; a LightningModule may do without."""
    return getattr(module.forward, "__func__", None) not in (nn.Module.forward, LightningModule.forward)


def example_of(module: nn.Module) -> ForwardInputs | None:
    """Its example_input_array: a tensor, a tuple of arguments, or a dict of arguments by name."""
    example = getattr(module, "example_input_array", None)
    if example is None:
        return None
    if isinstance(example, Mapping):
        return ForwardInputs(kwargs=dict(example))
    return ForwardInputs(tuple(example) if isinstance(example, tuple | list) else (example,))


def _inputs_of_batch(module: nn.Module, batch: Any) -> ForwardInputs | Unclear:
    """The part of `batch` that fits the signature of forward, which the module must define."""
    reader = reader_of(module, batch)
    if isinstance(reader, Unclear):
        return reader
    inputs = reader(batch)
    alone = ForwardInputs(([inputs.args[0][0]],)) if reader.finds_objects else inputs
    return alone if alone is inputs or refusal(module, alone) is None else inputs


def readings_of(module: nn.Module, batch: Any) -> list[ForwardInputs]:
    """What forward may take of `batch` by its signature, the likeliest first. The network is not called."""
    try:
        return list(_readings(_Parameters.of(module), batch))
    except (TypeError, ValueError):
        return []


def refusal(module: nn.Module, inputs: ForwardInputs) -> str | None:
    """What the network says of them, in one line; None: it takes them. It is left as it was."""
    said = _answer(module, inputs)
    return said.reason if isinstance(said, Unclear) else None


def _answer(module: nn.Module, inputs: ForwardInputs) -> Any:
    """Of the network, or its refusal in one line."""
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    try:
        with undisturbed(module), torch.no_grad():
            return inputs.to(device).call(module)
    except Exception as error:  # whatever the user's own code raises
        return Unclear(f"{type(error).__name__}: {error}".partition("\n")[0])


def reader_of(module: nn.Module, batch: Any) -> InputReader | Unclear:
    """How forward is given a batch like this one. The network is called, see `forward_inputs`."""
    try:
        parameters = _Parameters.of(module)
    except (TypeError, ValueError) as error:
        return Unclear(f"the signature of {type(module).__name__}.forward can't be read ({error}); {REMEDY}")
    readings = list(_readings(parameters, batch))
    if not readings:
        return Unclear(
            f"{type(module).__name__}.forward takes {parameters}, which can't be found in a batch that is "
            f"{describe(batch)}; {REMEDY}"
        )
    why: str | None = None
    for index, reading in enumerate(readings):
        answer = _answer(module, reading)
        if not isinstance(answer, Unclear):
            return InputReader(parameters, index, _finds_objects(reading, answer))
        why = why or answer.reason
    return Unclear(
        f"{type(module).__name__}.forward takes no part of a batch that is {describe(batch)} ({why}); {REMEDY}"
    )


@dataclass(frozen=True)
class InputReader:
    """Reads batches of one form, without calling the network again."""

    parameters: _Parameters
    index: int
    """Of the reading that the network accepts."""
    finds_objects: bool
    """Whether the network takes images, and answers a dict for each, as torchvision's detectors do."""

    def __call__(self, batch: Any) -> ForwardInputs:
        return list(_readings(self.parameters, batch))[self.index]


def _finds_objects(reading: ForwardInputs, answer: Any) -> bool:
    images = reading.args[0] if len(reading.args) == 1 and not reading.kwargs else None
    return (
        isinstance(images, Tensor | tuple | list)
        and isinstance(answer, tuple | list)
        and len(images) == len(answer) > 0
        and all(isinstance(found, Mapping) for found in answer)
    )


@dataclass(frozen=True)
class _Parameters:
    """Of a forward: those that it must be given, and those with a default."""

    needed: tuple[str, ...]
    """`*args` is one, where nothing has a name."""
    optional: tuple[str, ...]
    takes_dict: bool
    """Whether the only needed one is annotated as a dict."""
    takes_items: bool
    """Whether a dict's items can be its arguments: `**kwargs` without any name before it."""

    @classmethod
    def of(cls, module: nn.Module) -> _Parameters:
        found = list(inspect.signature(module.forward).parameters.values())
        named = [one for one in found if one.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)]
        needed = [one for one in named if one.default is Parameter.empty]
        passed_on = [] if named else [one.kind for one in found]  # to a network within: torchgeo's forward(*args, ...)
        return cls(
            ("*args",) if Parameter.VAR_POSITIONAL in passed_on else tuple(one.name for one in needed),
            tuple(one.name for one in named if one.default is not Parameter.empty),
            len(needed) == 1 and any(word in str(needed[0].annotation).lower() for word in ("dict", "mapping")),
            Parameter.VAR_KEYWORD in passed_on,
        )

    def __str__(self) -> str:
        return ", ".join(self.needed) or ("**kwargs" if self.takes_items else "only optional arguments")


def _readings(parameters: _Parameters, batch: Any) -> Iterator[ForwardInputs]:
    """The ways to call a forward with `batch`, the likeliest first."""
    if (named := _by_name(batch)) is not None:
        yield from _readings_of_dict(parameters, batch, named)
    elif isinstance(batch, tuple | list):
        yield from _readings_of_sequence(parameters, batch)
    elif len(parameters.needed) == 1 or (not parameters.needed and parameters.optional):
        yield ForwardInputs((batch,))


def _by_name(batch: Any) -> Mapping[Any, Any] | None:
    """A dict, or the fields of a dataclass, such as the batches of anomalib."""
    if is_dataclass(batch) and not isinstance(batch, type):
        return {one.name: getattr(batch, one.name) for one in fields(batch)}
    return batch if isinstance(batch, Mapping) else None


def _readings_of_dict(parameters: _Parameters, batch: Any, named: Mapping[Any, Any]) -> Iterator[ForwardInputs]:
    wanted = [*parameters.needed, *(name for name in parameters.optional if name not in _TARGETS)]
    given = {name: named[name] for name in wanted if name in named}
    if len(given) == 1 and parameters.needed == tuple(given):
        yield ForwardInputs(tuple(given.values()))
    elif given and set(parameters.needed) <= set(given):
        yield ForwardInputs(kwargs=given)
    else:
        yield from _readings_of_items(parameters, batch, named)


def _readings_of_items(parameters: _Parameters, batch: Any, named: Mapping[Any, Any]) -> Iterator[ForwardInputs]:
    """Where no parameter has the name of a key: the obvious input, all items, or the batch itself."""
    takes_whole = parameters.takes_dict or parameters.needed in [(name,) for name in _WHOLE]
    takes_one = len(parameters.needed) == 1
    by_custom = [name for name in _INPUTS if name in named]
    tensors = [name for name, value in named.items() if isinstance(value, Tensor) and value.is_floating_point()]
    if takes_whole:
        yield ForwardInputs((batch,))
    if takes_one and len(obvious := by_custom or tensors) == 1:
        yield ForwardInputs((named[obvious[0]],))
    if parameters.takes_items:
        yield ForwardInputs(kwargs={str(key): value for key, value in named.items() if key not in _TARGETS})
    if takes_one and not takes_whole:
        yield ForwardInputs((batch,))


def _readings_of_sequence(parameters: _Parameters, batch: Sequence[Any]) -> Iterator[ForwardInputs]:
    count = len(parameters.needed) or min(len(parameters.optional), 1)
    if not count or not len(batch):
        return
    if parameters.needed in [(name,) for name in _WHOLE]:
        yield ForwardInputs((batch,))
    elif len(batch) >= count:
        yield ForwardInputs(tuple(batch[:count]))
    if count == 1 and isinstance(batch[0], tuple | list) and batch[0]:  # several views of the same samples
        yield ForwardInputs((batch[0][0],))
    if isinstance(batch[0], Mapping) and not parameters.takes_dict:  # (inputs by name, target)
        yield from _readings_of_dict(parameters, batch[0], batch[0])


def describe(batch: Any) -> str:
    """The kind of a batch and its parts, for a message."""
    if isinstance(batch, Tensor):
        return f"a tensor of shape {tuple(batch.shape)}"
    if isinstance(batch, Mapping):
        return f"a dict with {', '.join(map(str, batch))}" if batch else "an empty dict"
    if isinstance(batch, tuple | list):
        return f"a {type(batch).__name__} of {', '.join(type(part).__name__ for part in batch) or 'nothing'}"
    if (named := _by_name(batch)) is not None:
        return f"of type {type(batch).__name__} with {', '.join(named)}"
    return f"of type {type(batch).__name__}"
