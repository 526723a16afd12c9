"""Why torch.jit.script does not take layers of norm, said in words that lead on."""

from __future__ import annotations

from typing import NoReturn

from torch import nn


def refuse_scripting(layer: nn.Module) -> NoReturn:
    """What torch.jit.script calls to prepare a module: the `__prepare_scriptable__` of every layer.

    It compiles a dialect of Python without process groups, autograd functions and kernels.
    """
    raise NotImplementedError(
        f"torch.jit.script can't compile {type(layer).__name__}. For inference, script norm.fold(model)[0] or "
        "norm.revert(model), which consist of layers of torch, or use torch.export, torch.jit.trace or ONNX."
    )
