"""The tensors in what a network returns, by name."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import SUPPORTED_NODES, keystr, tree_any, tree_flatten_with_path, tree_map

from syncnorm.trainer.contract.failure import ExportReason
from syncnorm.trainer.errors import NoExportError

Array = NDArray[Any]
Outputs = dict[str, Array]
"""By place in the pytree, such as `['out']`; the name of a single tensor is empty."""


def to_arrays(output: Any) -> Outputs:
    """Every tensor of an output on the CPU, floating ones in fp32.

    Raises: NoExportError if there is none.
    """
    leaves = tree_flatten_with_path(as_dicts(output))[0]
    found = {keystr(path): _array(leaf) for path, leaf in leaves if isinstance(leaf, Tensor)}
    if not found:
        what = f"a forward must return tensors, in any nesting of dicts and lists; got a {type(output).__name__}"
        raise NoExportError(ExportReason.NOT_EXPORTABLE, f"{what}.")
    return found


def as_dicts(output: Any) -> Any:
    """The same with a dict by field for each named tuple and dataclass, whose classes no exported file can hold."""
    return tree_map(lambda leaf: _by_field(leaf) if _is_record(leaf) else leaf, output, is_leaf=_is_record)


def has_records(output: Any) -> bool:
    """Whether `as_dicts` changes it."""
    return tree_any(_is_record, output, is_leaf=_is_record)


class DictAnswers(nn.Module):
    """A network that answers with dicts, see `as_dicts`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return as_dicts(self.network(*args, **kwargs))


def _is_record(value: Any) -> bool:
    if isinstance(value, tuple):
        return hasattr(value, "_fields")
    # transformers makes trees of its own dataclasses
    return is_dataclass(value) and not isinstance(value, type) and type(value) not in SUPPORTED_NODES


def _by_field(record: Any) -> dict[str, Any]:
    names = [field.name for field in fields(record)] if is_dataclass(record) else record._fields
    return {name: as_dicts(getattr(record, name)) for name in names}


def _array(tensor: Tensor) -> Array:
    found = tensor.detach().float() if tensor.is_floating_point() else tensor.detach()
    array: Array = np.atleast_1d(found.cpu().numpy())
    return array
