"""Statistics of normalization over the training samples, by a pass apart from that of training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from torch import nn

from syncnorm.norm import PopulationStatistics, snapshot
from syncnorm.trainer.data.user.whole_pass import whole_pass
from syncnorm.trainer.export.forward_inputs import Unclear, reader_of
from syncnorm.trainer.export.statistics.population import population_of_module, population_statistics
from syncnorm.trainer.random_state import seeded
from syncnorm.trainer.training.task_module import network_of
from syncnorm.trainer.worker.module_and_data import Assembly

Estimator = Literal["pooled", "paper", "none"]


class RecomputedStatistics:
    """The samples, their order and their augmentation are the same in every pass of a job."""

    def __init__(self, assembly: Assembly, estimator: Estimator, seed: int) -> None:
        self._assembly = assembly
        self._estimator = estimator
        self._seed = seed

    def recompute(self, loaders: Sequence[Any]) -> PopulationStatistics | None:
        """Replace the running statistics of the network, if it has any. Entered by every rank.

        loaders: of training. Raises: ValueError as `require_possible`.
        """
        module, data = self._assembly.module, self._assembly.task_data
        network = network_of(module)
        if not _has_statistics(network):
            return None
        with seeded(self._seed), _uncompiled(network):
            if data is not None:
                return population_statistics(network, data.loaders.population, self._estimator, module.device)
            found = population_of_module(module, _samples(loaders), self._estimator)
        if isinstance(found, Unclear):
            raise _refusal(found.reason)
        return found

    def require_possible(self, loaders: Sequence[Any]) -> None:
        """Raises: ValueError saying why there is no way to the statistics of a user's module."""
        module = self._assembly.module
        if self._assembly.task_data is not None or not _has_statistics(module):
            return
        with seeded(self._seed):
            reader = reader_of(module, next(iter(_samples(loaders))))
        if isinstance(reader, Unclear):
            raise _refusal(reader.reason)


def _samples(loaders: Sequence[Any]) -> Iterable[Any]:
    if len(loaders) != 1:
        raise _refusal("there are several training loaders")
    samples = whole_pass(loaders[0])
    if samples is None:
        raise _refusal(f"your {type(loaders[0]).__name__} can't be read a second time while it is read for training")
    return samples


def _refusal(reason: str) -> ValueError:
    return ValueError(
        f"train.average needs statistics of normalization for the averaged weights, but {reason}. Choose a norm.kind "
        "without running statistics, such as group, or leave train.average out."
    )


def _has_statistics(network: nn.Module) -> bool:
    return any(not layer.frozen for layer in snapshot(network).values())


@contextmanager
def _uncompiled(network: nn.Module) -> Iterator[None]:
    """Hooks that measure would be compiled, too."""
    compiled, network._compiled_call_impl = network._compiled_call_impl, None
    try:
        yield
    finally:
        network._compiled_call_impl = compiled
