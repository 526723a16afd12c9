"""The tensors in what a network returns, by name."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path

from syncnorm.trainer.contract.failure import ExportReason
from syncnorm.trainer.errors import NoExportError

Array = NDArray[Any]
Outputs = dict[str, Array]
"""By place in the pytree, such as `['out']`; the name of a single tensor is empty."""


def to_arrays(output: Any) -> Outputs:
    """Every tensor of an output on the CPU, floating ones in fp32.

    Raises: NoExportError if there is none.
    """
    found = {keystr(path): _array(leaf) for path, leaf in tree_flatten_with_path(output)[0] if isinstance(leaf, Tensor)}
    if not found:
        what = f"a forward must return tensors, in any nesting of dicts and lists; got a {type(output).__name__}"
        raise NoExportError(ExportReason.NOT_EXPORTABLE, f"{what}.")
    return found


def _array(tensor: Tensor) -> Array:
    found = tensor.detach().float() if tensor.is_floating_point() else tensor.detach()
    array: Array = np.atleast_1d(found.cpu().numpy())
    return array
