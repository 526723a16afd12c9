"""Running statistics move once and by plain numbers, whatever transform of torch.func runs around a layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from syncnorm.norm.torch_compat import is_inside_functorch, is_wrapped_by_functorch, outside_functorch, unwrapped


@torch.no_grad()
def move_outside_transforms(move: Callable[[Tensor], None], row: Tensor, buffers: Iterable[Tensor | None]) -> None:
    """`move(row)`, which changes `buffers` in place.

    torch.func refuses to change a tensor that it did not get as an input. Running statistics are no input of the
    function that is differentiated, so outside of grad and jvp they get the values. Buffers that are inputs of the
    transform change inside it.
    Raises: ValueError under vmap if the buffers are not inputs: there is one set of them and a batch for every slice.
    """
    if torch.compiler.is_compiling() or not is_inside_functorch():
        move(row)
        return
    if any(buffer is not None and is_wrapped_by_functorch(buffer) for buffer in buffers):
        move(row)
        return
    value = unwrapped(row)
    if value is None:
        raise ValueError(
            "Under vmap a layer in training has a batch for every slice but one set of running statistics. Give it "
            "buffers with a slice each (torch.func.stack_module_state), set track_running_stats=False, or call eval()."
        )
    with outside_functorch():
        move(value)
