"""One recording of torch.profiler in the thread that trains, from the start of a step to the end of another."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from torch.autograd import profiler as autograd_profiler
from torch.profiler import ProfilerActivity, profile, record_function

from syncnorm.trainer.debugging.norm_ranges import NormRanges
from syncnorm.trainer.debugging.trace_summary import STEP


class ProfilerBusyError(RuntimeError):
    """Code of the user records with torch's profiler already: a process has one."""


@dataclass(frozen=True)
class Recording:
    """What was recorded. first_step: the optimizer step before it."""

    profiler: profile
    nodes: list[tuple[str, int, int]]
    on_device: bool
    first_step: int
    steps: int

    def count_events(self) -> int:
        found = self.profiler.profiler
        return len(found.kineto_results.events()) if found is not None and found.kineto_results is not None else 0

    def save(self, path: Path) -> None:
        """Write the raw trace."""
        self.profiler.export_chrome_trace(str(path))


class ProfilerSession:
    """Begun by its constructor. network: whose normalization layers are shown; None: none. Raises: ProfilerBusyError.

    Only names and times of operators are recorded: no shapes, no stacks, no values.
    """

    def __init__(self, network: nn.Module | None, *, on_device: bool, first_step: int) -> None:
        if autograd_profiler._is_profiler_enabled:
            raise ProfilerBusyError("the job's own code is recording with torch.profiler in this process")
        self._on_device = on_device
        self._first_step = first_step
        self.steps = 0
        self._ranges = NormRanges(network)
        self._hooks, self._step = ExitStack(), ExitStack()
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_device else [])]
        self._profiler = profile(activities=activities)
        self._hooks.enter_context(self._ranges.shown())
        try:
            self._profiler.start()
        except BaseException:
            self._hooks.close()
            raise

    def begin_step(self) -> None:
        self._step.enter_context(record_function(f"{STEP}{self.steps}"))

    def end_step(self) -> None:
        self._step.close()
        self.steps += 1

    def stop(self) -> Recording:
        """Called by the thread that began it."""
        self._step.close()
        self._hooks.close()
        self._profiler.stop()
        return Recording(self._profiler, self._ranges.nodes, self._on_device, self._first_step, self.steps)
