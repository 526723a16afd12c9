"""How Lightning replicates a module over the workers: DDP that follows what is trained, and loaders in shares."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from syncnorm.trainer.random_state import kept_random_state
from syncnorm.trainer.ranks.replica_check import leave_to_ranks
from syncnorm.trainer.training.batch_size import samples_in
from syncnorm.trainer.training.user_exchanges import refused

logger = logging.getLogger(__name__)


@contextmanager
def _requiring_gradients(module: nn.Module, chosen: tuple[bool, ...]) -> Iterator[None]:
    """DDP averages the gradients of the parameters that require some when it is made."""
    parameters = list(module.parameters())
    before = [parameter.requires_grad for parameter in parameters]
    for parameter, wanted in zip(parameters, chosen, strict=True):
        parameter.requires_grad_(wanted)
    try:
        yield
    finally:
        for parameter, was in zip(parameters, before, strict=True):
            parameter.requires_grad_(was)


ShareOut = Callable[[object, bool], object]
"""(loader, training) -> the loader with this worker's share."""


_OPTIONS = inspect.signature(DistributedDataParallel.__init__).parameters
_SENDS_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in _OPTIONS else "broadcast_buffers"
"""DDP's option whether each step sends the buffers of rank 0; renamed in torch 2.13."""


class ReplicaStrategy(DDPStrategy):
    """DDP on a process group that exists already.

    - A checkpoint is loaded once the normalization is converted, since other kinds have other tensors.
    - Layers that are frozen or unfrozen later are followed: DDP itself waits for ever for a frozen layer, and never
      averages the gradients of one that was frozen at the start, so that the workers drift apart. What a training_step
      itself freezes and unfreezes, as of a GAN's discriminator, stays in DDP all the time.
    - Parameters that come after the start and are in none of Lightning's optimizers, as those of a callback that trains
      a probe of its own, stay out of DDP, as under plain Lightning.
    - Whether parameters are left without a gradient is looked at in the first step, unless `find_unused` says so.
    - A last batch that is spread unevenly (data.last_batch: weight) has its loss weighted.
    """

    def __init__(
        self, device: torch.device, share_out: ShareOut, *, steps: int | None = None, find_unused: bool | None = None
    ) -> None:
        """steps: optimizer steps of a job that is not counted in epochs."""
        super().__init__()
        # Buffers are kept equal by what they are computed from; sending rank 0's would hide a difference.
        self._ddp_kwargs[_SENDS_BUFFERS] = False
        self._device = device
        self._share_out = share_out
        self._steps = steps
        self._find_unused = find_unused
        self._stream: torch.cuda.Stream | None = None
        self._has_unused: bool | None = None
        """Whether a parameter got no gradient on some rank; None: no step has shown it yet."""
        self._replicated: tuple[tuple[bool, ...], bool] = ((), False)
        """What DDP was made for: which parameters it averages, and whether unused ones are looked for."""
        self._parameters: list[nn.Parameter] = []
        """Those of the module, as of the start of the batch."""
        self._at_the_start: frozenset[int] = frozenset()
        """Parameters that the module had when DDP was made first, by id."""
        self._switched: set[int] = set()
        """Those that a training_step has frozen or unfrozen."""
        self._told: set[int] = set()
        """Those that are left to the workers, which the log has said."""

    @property
    def root_device(self) -> torch.device:
        return self._device

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        return {"num_replicas": self.world_size, "rank": self.global_rank}

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        return True

    def setup_distributed(self) -> None:
        with kept_random_state():  # Lightning would begin anew with the seed, also where the weights were drawn from it
            super().setup_distributed()

    def process_dataloader(self, dataloader: object) -> object:
        assert self.lightning_module is not None
        return self._share_out(dataloader, bool(self.lightning_module.trainer.training))

    def setup_optimizers(self, trainer: Trainer) -> None:
        """configure_optimizers sees max_steps and estimated_stepping_batches, although callbacks end the job."""
        loop = trainer.fit_loop.epoch_loop
        loop.max_steps, before = self._steps or loop.max_steps, loop.max_steps
        try:
            super().setup_optimizers(trainer)
        finally:
            loop.max_steps = before

    def configure_ddp(self) -> None:
        self._replicate()

    @property
    def finds_unused(self) -> bool:
        """Whether each step looks for parameters that get no gradient."""
        return self._replicated[1]

    def replicate_on(self, stream: torch.cuda.Stream | None) -> None:
        """Make DDP anew, on the stream where steps are captured: some of its work stays on the stream that it was made
        on. None: there is no GPU. It forgets a step that was not finished. Entered by every rank."""
        self._stream = stream
        self._replicate(init_sync=False)

    def _setup_model(self, model: nn.Module) -> DistributedDataParallel:
        if self._stream is None:
            return super()._setup_model(model)
        with torch.cuda.stream(self._stream):
            return DistributedDataParallel(model, device_ids=self.determine_ddp_device_ids(), **self._ddp_kwargs)

    def _replicate(self, **options: Any) -> None:
        assert self.lightning_module is not None
        if isinstance(self.model, DistributedDataParallel):
            self.model._remove_autograd_hooks()
        if not self._at_the_start:
            self._at_the_start = frozenset(map(id, self.lightning_module.parameters()))
        self._replicated = self._wanted()
        averaged, find_unused = self._replicated
        self._ddp_kwargs |= {"find_unused_parameters": find_unused, **options}
        self.model = self.lightning_module
        if any(averaged):  # DDP refuses a module without anything to train
            with _requiring_gradients(self.lightning_module, averaged):
                super().configure_ddp()

    def _wanted(self) -> tuple[tuple[bool, ...], bool]:
        assert self.lightning_module is not None
        self._parameters = list(self.lightning_module.parameters())
        trained = self._trained()
        if len(trained) != len(self._at_the_start):
            own = self._left_to_workers()
            trained = tuple([one and id(p) not in own for p, one in zip(self._parameters, trained, strict=True)])
        if self._switched:
            trained = tuple([one or id(p) in self._switched for p, one in zip(self._parameters, trained, strict=True)])
        if trained != self._replicated[0]:
            self._has_unused = None
        if self._find_unused is not None:
            return trained, self._find_unused
        may_have_unused = self._has_unused is not False or bool(self._switched)
        return trained, may_have_unused or not self.lightning_module.automatic_optimization

    def _left_to_workers(self) -> set[int]:
        """Ids of parameters that came after the start and are in none of Lightning's optimizers."""
        assert self.lightning_module is not None
        optimized = {id(p) for one in self.optimizers for group in one.param_groups for p in group["params"]}
        known = self._at_the_start | optimized | self._told
        left = {name: p for name, p in self.lightning_module.named_parameters() if id(p) not in known}
        if left:
            leave_to_ranks(left.values())
            self._told |= set(map(id, left.values()))
            first, more = next(iter(left)), len(left) - 1
            logger.warning(
                "%s%s came after the start and is in no optimizer of Lightning's: each worker trains its own, and rank "
                "0's is kept",
                first,
                f" (and {more} more)" if more else "",
            )
        return self._told

    def _trained(self) -> tuple[bool, ...]:
        return tuple([parameter.requires_grad for parameter in self._parameters])

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002 - Lightning's signature
        if self._wanted() != self._replicated:
            self._replicate(init_sync=False)  # it would overwrite the statistics that each rank has of its own

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        order = self._order()
        shares = order.uneven_shares() if order else None
        before = self._trained()
        if shares is None:
            result = super().training_step(*args, **kwargs)
        else:
            with refused(type(self.lightning_module).__name__, shares, samples_in(args[0])):
                result = super().training_step(*args, **kwargs)
        if (after := self._trained()) != before:
            self._note_switched(before, after)
        return result

    def _note_switched(self, before: tuple[bool, ...], after: tuple[bool, ...]) -> None:
        changed = {id(p) for p, was, now in zip(self._parameters, before, after, strict=True) if was != now}
        self._switched |= changed & self._at_the_start

    def backward(self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any) -> Tensor:
        order = self._order()
        if order is not None and order.uneven_shares() is not None:
            assert self.lightning_module is not None
            batch = self.lightning_module.trainer.fit_loop.epoch_loop.batch_progress.current.ready - 1
            closure_loss = closure_loss * order.weight(batch)
        result = super().backward(closure_loss, optimizer, *args, **kwargs)
        self._average_unfrozen()
        if self._has_unused is None:
            self._has_unused = self._finds_unused()
        return result

    def _average_unfrozen(self) -> None:
        """The gradients of parameters that this training_step has unfrozen: DDP was made without them."""
        if (trained := self._trained()) == self._replicated[0]:
            return
        for parameter, is_trained, averaged in zip(self._parameters, trained, self._replicated[0], strict=True):
            if is_trained and not averaged and id(parameter) in self._at_the_start:
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = self.reduce(gradient, reduce_op="mean")

    def _finds_unused(self) -> bool:
        assert self.lightning_module is not None
        parameters = self.lightning_module.parameters()
        found = any(parameter.requires_grad and parameter.grad is None for parameter in parameters)
        return bool(self.reduce(torch.tensor(float(found), device=self.root_device), reduce_op="sum"))

    def _order(self) -> Any:
        assert self.lightning_module is not None
        return getattr(self.lightning_module.trainer.train_dataloader, "order", None)
