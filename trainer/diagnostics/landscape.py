"""How smooth the loss is along the gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from syncnorm.trainer.diagnostics.probe import Evaluation, Gradient, Probe

# Step sizes as multiples of the learning rate, evenly spaced in their logarithm.
RATES = tuple(0.5 * 2 ** (i / 2) for i in range(7))


def measure(probe: Probe) -> dict[str, Any]:
    """Along the gradient g = ∇L(W) of a step's batch, at W − ηg for η = RATES times the learning rate (1/2 to 4 times):

    losses: L(W − ηg); their least and greatest value are the range of the loss.
    gradient_changes: ‖∇L(W − ηg) − g‖₂, the gradient predictiveness: small where g tells what comes.
    beta: max over η of ‖∇L(W − ηg) − g‖₂ / ‖ηg‖₂, the effective β-smoothness: how fast the gradient changes.

    L is the loss of the whole batch over all workers, with batch statistics over those who share them; all trained
    parameters take part. The line is that of plain gradient descent whatever the optimizer. The learning rate is the
    one that the schedule starts from, not that of the step: one ruler for all of training, where a decaying one would
    only show itself (and β, at kinks of the loss, grows as the ruler gets shorter).
    See: Santurkar et al. 2018, arXiv:1805.11604, sec. 3.1 and fig. 4.
    """
    here = probe.observation
    weights = {name: probe.start.parameters[name] for name in here.gradient}
    return along(probe.evaluate, weights, here, probe.lr)


def along(
    evaluate: Callable[[Mapping[str, Tensor]], Evaluation], weights: Gradient, here: Evaluation, lr: float
) -> dict[str, Any]:
    """The measurement for any function. here: its evaluation at `weights`."""
    length = distance(here.gradient, None)
    losses, changes = [], []
    for rate in RATES:
        there = evaluate({name: w - rate * lr * here.gradient[name] for name, w in weights.items()})
        losses.append(there.loss)
        changes.append(distance(there.gradient, here.gradient))
    moved = [rate * lr * length for rate in RATES]
    return {
        "lr": lr,
        "loss": here.loss,
        "gradient_l2": length,
        "rates": list(RATES),
        "losses": losses,
        "gradient_changes": changes,
        "beta": max((change / far for change, far in zip(changes, moved, strict=True) if far > 0), default=0.0),
    }


def distance(first: Gradient, second: Gradient | None) -> float:
    """‖first − second‖₂ over all parameters, in fp64; second None: ‖first‖₂."""
    squares = [
        (tensor.double() - (0 if second is None else second[name].double())).square().sum()
        for name, tensor in first.items()
    ]
    return float(torch.stack(squares).sum().sqrt())


def metrics(record: dict[str, Any]) -> dict[tuple[str, str], float]:
    """By (layer, name); the landscape is one of the whole network."""
    return {
        ("landscape", "loss_min"): min(record["losses"]),
        ("landscape", "loss_max"): max(record["losses"]),
        ("landscape", "gradient_change"): max(record["gradient_changes"]),
        ("landscape", "beta_smoothness"): record["beta"],
    }
