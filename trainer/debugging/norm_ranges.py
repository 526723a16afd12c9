"""Shows the forward of every normalization layer as a range in a trace, for as long as a profile takes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.profiler import record_function

from syncnorm.norm.registry import is_normalization
from syncnorm.norm.torch_compat import next_sequence_number
from syncnorm.trainer.debugging.trace_summary import FORWARD


class NormRanges:
    """nodes: (path, first, last) of the nodes for backward that each forward made, by their numbers.

    With these numbers the trace tells whose backward a node is, whichever class it has. A forward that another thread
    runs makes nodes with numbers of its own, and is left out.
    """

    def __init__(self, network: nn.Module | None) -> None:
        self.nodes: list[tuple[str, int, int]] = []
        self._network = network
        self._thread = threading.get_ident()
        self._open: dict[str, list[tuple[record_function, int]]] = {}

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Hooks are there within the block only, so nothing is paid for them otherwise."""
        with ExitStack() as hooks:
            for path, module in self._network.named_modules() if self._network is not None else ():
                if is_normalization(module):
                    before, after = partial(self._enter, path), partial(self._leave, path)
                    hooks.callback(module.register_forward_pre_hook(before, prepend=True).remove)
                    hooks.callback(module.register_forward_hook(after, always_call=True).remove)
            yield

    def _enter(self, path: str, _module: nn.Module, _args: Any) -> None:
        if threading.get_ident() == self._thread:
            range_ = record_function(f"{FORWARD}{path}")
            range_.__enter__()
            self._open.setdefault(path, []).append((range_, next_sequence_number()))

    def _leave(self, path: str, _module: nn.Module, _args: Any, _output: Any) -> None:
        if threading.get_ident() == self._thread and self._open.get(path):
            range_, first = self._open[path].pop()
            self.nodes.append((path, first, next_sequence_number()))
            range_.__exit__(None, None, None)
