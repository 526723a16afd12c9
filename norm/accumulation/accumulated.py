"""The loss of one large batch from its micro-batches, which together need little more memory than one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import parametrize

from syncnorm.norm.accumulation.activation_memory import MEMORIES, Memory, kept_in
from syncnorm.norm.accumulation.joint_layers import batch_layers, joined
from syncnorm.norm.distributed.collectives import gather_rows
from syncnorm.norm.lockstep.interruption import require_interruptible
from syncnorm.norm.lockstep.nested_tensors import tensors_in
from syncnorm.norm.lockstep.turns import run_in_turns

T = TypeVar("T")


def accumulated(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    micro_batches: Iterable[tuple[Any, Any]],
    *,
    memory: Memory = "host",
    process_group: dist.ProcessGroup | None = None,
) -> Tensor:
    """The mean loss over all samples of `micro_batches`, as if they were one batch: k micro-batches equal one batch.

    Batch normalization takes its statistics from all of them. So gradient, running statistics and every buffer are
    those of the large batch, up to rounding, for all kinds with batch statistics and for batch normalization of torch
    and of other libraries. Samples count alike, whatever micro-batch they are in. Call backward() on the result once:

        loss = norm.accumulated(model, F.cross_entropy, [(x[:4], y[:4]), (x[4:], y[4:])])
        loss.backward()

    model: called with one input at a time; under DistributedDataParallel, too. loss_fn(output, target): the mean over
    the samples of one micro-batch. micro_batches: (input, target) pairs of any sizes, also empty ones. An input's
    samples are the length of its first tensor, or of a list of images. Each worker gives at least one pair, which may
    be empty; the number may differ from worker to worker.
    memory: where activations wait for the backward pass. `host`: in host memory; the device then holds what one forward
        is working on, and of each waiting one the tensors in its variables: the input of the layer where they wait, and
        open shortcuts. What is saved for backward (as torch.autograd.graph.saved_tensors_hooks sees it) is at no time
        on the device for more than one operation, but for parameters and tensors under 4 KB. On the CPU it is the same
        as `device`. `device`: where they are made, k times the memory of one. `recompute`: modules around normalization
        layers are run again, so that the inputs of these modules are kept for all micro-batches and the rest for one
        module at a time.
    process_group: the workers over which gradients are averaged; None: all. The gradient of the result is weighted for
        that average, as by `loss_weight`; its value is the mean over all workers' samples.

    Dropout draws for each micro-batch by itself. Activation checkpointing works with use_reentrant=False. You can
    differentiate once. How it works and what it costs: norm/README.md.
    Raises: ValueError if micro-batches take different paths through the layers (naming them), if a module that is no
        normalization changes its buffers in forward, and for models that can't stop half-way: compiled, scripted, FSDP.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    >>> x, y = torch.randn(8, 4), torch.randint(2, (8,))
    >>> loss = norm.accumulated(model, nn.functional.cross_entropy, [(x[:3], y[:3]), (x[3:], y[3:])])
    >>> loss.backward()
    >>> int(model[1].num_batches_tracked)
    1
    """
    pairs = list(micro_batches)
    counts = [_num_samples(given) for given, _ in pairs]
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    weights = _weights(counts, process_group, device)
    used = [number for number, count in enumerate(counts) if count] or [0]

    def loss_of(number: int) -> Tensor:
        given, target = pairs[number]
        output = model(given)
        return _mean_loss(loss_fn(output, target)) if counts[number] else _nothing(output)

    losses = run_together(model, [partial(loss_of, number) for number in used], memory=memory)
    own = torch.stack([loss * weights[number] for number, loss in zip(used, losses, strict=True)]).sum()
    values = gather_rows(own.detach().reshape(1), process_group)
    return own + (values.mean() - own.detach()) if len(values) > 1 else own


def run_together(model: nn.Module, forwards: Sequence[Callable[[], T]], *, memory: Memory = "host") -> list[T]:
    """What `forwards` return, each of which calls `model` with a micro-batch; see `accumulated`, which weights them.

    Differentiate the sum of the results at once: a part of it would leave the others' share out of the gradient.
    """
    if memory not in MEMORIES:
        raise ValueError(f"memory must be one of {', '.join(MEMORIES)}, got {memory!r}.")
    require_interruptible(model, "norm.accumulated")
    layers = batch_layers(model)
    with ExitStack() as stack:
        stack.enter_context(kept_in(memory, model, layers.values()))
        stack.enter_context(_weights_made_once(model))
        joining = stack.enter_context(joined(layers))
        if len(forwards) > 1:
            stack.enter_context(_unchanged_buffers(model, set(layers.values())))
        results = run_in_turns(forwards)
        joining.lasts_with(results)
    return results


def _weights(counts: Sequence[int], group: dist.ProcessGroup | None, device: torch.device) -> list[float]:
    """W * n / N for each micro-batch with n of the N samples of all W workers."""
    own = torch.tensor([len(counts), sum(counts)], dtype=torch.float64, device=device)
    given, samples = gather_rows(own, group).cpu().unbind(1)
    if not given.all():
        raise ValueError(
            f"every worker must give at least one micro-batch, got {[int(number) for number in given]}. Give an empty "
            "one, such as x[:0], where there are no samples."
        )
    total = float(samples.sum())
    return [len(samples) * count / total if total else 0.0 for count in counts]


def _num_samples(given: Any) -> int:
    return len(given) if isinstance(given, list) else len(next(tensors_in(given)))


def _mean_loss(loss: Tensor) -> Tensor:
    if loss.numel() != 1:
        raise ValueError(
            f"loss_fn must return one number, the mean over the samples, got shape {tuple(loss.shape)}. Use .mean()."
        )
    return loss.reshape(())


def _nothing(output: Any) -> Tensor:
    """0 that hangs on the model, so that a worker without samples takes part in the exchanges of backward."""
    return torch.stack([leaf.sum() * 0.0 for leaf in tensors_in(output) if leaf.is_floating_point()]).sum()


@contextmanager
def _weights_made_once(model: nn.Module) -> Iterator[None]:
    """Parametrizations with a state, such as spectral normalization, move it once, as for one batch."""
    with_state = [
        (module, name)
        for module in model.modules()
        if parametrize.is_parametrized(module)
        for name, chain in module.parametrizations.items()  # type: ignore[operator, union-attr]
        if any(True for _ in chain.buffers())
    ]
    if not with_state:
        yield
        return
    with parametrize.cached():
        for module, name in with_state:
            getattr(module, name)
        yield


@contextmanager
def _unchanged_buffers(model: nn.Module, layers: set[nn.Module]) -> Iterator[None]:
    """Raises: ValueError after the block if a module that takes no part in the meetings has changed its buffers."""
    before = [
        (f"{path}.{name}".lstrip("."), buffer, buffer._version)
        for path, module in model.named_modules()
        if module not in layers
        for name, buffer in module.named_buffers(recurse=False)
    ]
    yield
    changed = [name for name, buffer, version in before if buffer._version != version]
    if changed:
        raise ValueError(
            f"norm.accumulated leaves buffers as one batch would, but each micro-batch has changed {changed[0]}"
            f"{f' and {len(changed) - 1} others' if len(changed) > 1 else ''}. "
            "Update it outside of forward, once a step."
        )
