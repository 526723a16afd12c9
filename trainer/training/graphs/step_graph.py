"""A CUDA graph of a training step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import torch
from lightning.pytorch import LightningModule

T = TypeVar("T")


class StepGraph(Protocol):
    """Repeats the work of one step in the same memory."""

    @property
    def stream(self) -> torch.cuda.Stream | None:
        """Where steps warm up and are captured. None: there is no GPU."""

    def warm_up(self, work: Callable[[], T]) -> T:
        """Do `work` as it is done while it is captured."""

    def capture(self, work: Callable[[], T]) -> T:
        """Note what `work` computes, without computing it: its tensors get their values from `replay`. What was
        captured before is forgotten."""

    def replay(self) -> None:
        """Compute what was captured, with what its inputs, weights and buffers hold now."""


class CudaStepGraph:
    """On a stream of its own, as https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs says.

    NCCL's error handling stays on: since torch 2.2 its watchdog leaves captures alone.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._graph = torch.cuda.CUDAGraph()
        self.stream: torch.cuda.Stream | None = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def warm_up(self, work: Callable[[], T]) -> T:
        current = torch.cuda.current_stream(self._device)
        assert self.stream is not None
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            result = work()
        current.wait_stream(self.stream)
        return result

    def capture(self, work: Callable[[], T]) -> T:
        """Raises: what `work` raises, or RuntimeError where it waits for the device. Random numbers are as before."""
        generator = torch.cuda.default_generators[self._device.index or 0]
        before = generator.clone_state()
        self._graph = torch.cuda.CUDAGraph()
        try:
            # torch stays on the stream of a capture that fails (torch 2.14), hence a block of our own.
            # thread_local: other threads, such as one that pins the next batch, may allocate meanwhile.
            with (
                torch.cuda.stream(self.stream),
                torch.cuda.graph(self._graph, stream=self.stream, capture_error_mode="thread_local"),
            ):
                return work()
        except BaseException:
            # The state that failed waits for the end of a capture: "Offset increment outside graph capture".
            generator.graphsafe_set_state(before)
            raise

    def replay(self) -> None:
        self._graph.replay()


def cuda_graph_of(module: LightningModule) -> StepGraph:
    """A graph on the device of `module`."""
    return CudaStepGraph(module.device)
