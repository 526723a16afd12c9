"""How Lightning replicates a module over the workers: DDP that follows what is trained, and loaders in shares."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from syncnorm.trainer.random_state import kept_random_state
from syncnorm.trainer.training.batch_size import samples_in
from syncnorm.trainer.training.user_exchanges import refused

ShareOut = Callable[[object, bool], object]
"""(loader, training) -> the loader with this worker's share."""


_OPTIONS = inspect.signature(DistributedDataParallel.__init__).parameters
_SENDS_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in _OPTIONS else "broadcast_buffers"
"""DDP's option whether each step sends the buffers of rank 0; renamed in torch 2.13."""


class ReplicaStrategy(DDPStrategy):
    """DDP on a process group that exists already.

    - A checkpoint is loaded once the normalization is converted, since other kinds have other tensors.
    - Layers that are frozen or unfrozen later are followed: DDP itself waits for ever for a frozen layer, and never
      averages the gradients of one that was frozen at the start, so that the workers drift apart.
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
        """What DDP was made for: which parameters are trained, and whether unused ones are looked for."""

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
        self._replicated = self._wanted()
        trained, find_unused = self._replicated
        self._ddp_kwargs |= {"find_unused_parameters": find_unused, **options}
        self.model = self.lightning_module
        if any(trained):  # DDP refuses a module without anything to train
            super().configure_ddp()

    def _wanted(self) -> tuple[tuple[bool, ...], bool]:
        assert self.lightning_module is not None
        trained = tuple([parameter.requires_grad for parameter in self.lightning_module.parameters()])
        if trained != self._replicated[0]:
            self._has_unused = None
        if self._find_unused is not None:
            return trained, self._find_unused
        return trained, self._has_unused is not False or not self.lightning_module.automatic_optimization

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002 - Lightning's signature
        if self._wanted() != self._replicated:
            self._replicate(init_sync=False)  # it would overwrite the statistics that each rank has of its own

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        order = self._order()
        shares = order.uneven_shares() if order else None
        if shares is None:
            return super().training_step(*args, **kwargs)
        with refused(type(self.lightning_module).__name__, shares, samples_in(args[0])):
            return super().training_step(*args, **kwargs)

    def backward(self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any) -> Tensor:
        order = self._order()
        if order is not None and order.uneven_shares() is not None:
            assert self.lightning_module is not None
            batch = self.lightning_module.trainer.fit_loop.epoch_loop.batch_progress.current.ready - 1
            closure_loss = closure_loss * order.weight(batch)
        result = super().backward(closure_loss, optimizer, *args, **kwargs)
        if self._has_unused is None:
            self._has_unused = self._finds_unused()
        return result

    def _finds_unused(self) -> bool:
        assert self.lightning_module is not None
        parameters = self.lightning_module.parameters()
        found = any(parameter.requires_grad and parameter.grad is None for parameter in parameters)
        return bool(self.reduce(torch.tensor(float(found), device=self.root_device), reduce_op="sum"))

    def _order(self) -> Any:
        assert self.lightning_module is not None
        return getattr(self.lightning_module.trainer.train_dataloader, "order", None)
