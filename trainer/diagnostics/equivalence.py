"""Do k workers take the step that one device would take with the whole batch?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from syncnorm.trainer.contract.text import counted
from syncnorm.trainer.diagnostics.observed_layers import layer_of
from syncnorm.trainer.diagnostics.probe import Probe

# What rounding may do: the same sums in another order, through some tens of layers. Residual networks and a U-net were
# measured at 6e-6 in fp32, 1e-14 in fp64. A wrong count, a wrong group or a lost sample moves gradients by a tenth.
TOLERANCES = {torch.float32: 1e-3, torch.float64: 1e-9}

# The gradient of a ReLU jumps where its input is 0 but for rounding, and that of a maximum where two values are equal.
# Loss and statistics don't. In fp32 a small network meets one in some tens of steps: 7e-3 was measured. A mistake moves
# gradients in every step, or by more.
JUMP = 5e-2
MOST_JUMPS = 0.25

# A gradient that is 0 but for rounding, such as that of a bias before a batch norm, has no scale of its own.
LEAST_SCALE = 0.1


def measure(probe: Probe) -> dict[str, Any]:
    """The step of all k workers held against a replay: worker 0 takes their samples as one batch, through the same
    network at the same weights, with statistics of its own. Neither side has dropout, and both compute in the
    precision of the parameters: that of bf16-mixed lets units flip, which would hide what is asked here.

    loss_difference: |L_k − L_1| / |L_1|.
    gradient_difference: the greatest over parameters p of max|g_k − g_1| / s_p, s_p = max(max|g_1|, LEAST_SCALE · the
    greatest max|g_1| of all parameters); g_k is the mean over the workers. worst: that parameter.
    statistics_difference: the greatest over running statistics r of max|r_k − r_1| / max|r_1|, after the pass.
    optimizer_difference: as gradient_difference, of what the optimizer was given (by DDP, before clipping) from the
    mean over the workers with the step's own dropout masks and precision; None where gradients accumulate.
    equal: all of them are within `tolerance`, that of the parameters' precision in TOLERANCES.

    Per worker statistics (batch, ghost_batch) and noise drawn per worker (noisy_batch) do not equal one device, and
    this says by how much. With gradient accumulation the batch is a micro-batch. Only worker 0 knows the result.
    Costs two passes over the batch, and on worker 0 one over the batches of all: they must fit its memory.
    """
    given = probe.given_to_optimizer
    by_optimizer = differences(given, _only(probe.observation.gradient, given)) if given else None
    together = probe.evaluate_exactly()
    statistics = probe.running_statistics()
    single_process = probe.evaluate_single_process()
    if single_process is None:
        return {}
    gradients = differences(together.gradient, single_process.gradient)
    buffers = differences(statistics, probe.running_statistics(), least_scale=0.0)
    record: dict[str, Any] = {
        "loss": together.loss,
        "loss_difference": abs(together.loss - single_process.loss) / max(abs(single_process.loss), 1e-12),
        "gradient_difference": _greatest(gradients.values()),
        "worst": max(gradients, key=lambda name: gradients[name], default=None),
        "statistics_difference": _greatest(buffers.values()) if buffers else None,
        "optimizer_difference": None if by_optimizer is None else _greatest(by_optimizer.values()),
        "tolerance": TOLERANCES[next(iter(single_process.gradient.values())).dtype],
        "layers": _by_layer(gradients, "gradient_difference", _by_layer(buffers, "statistics_difference", {})),
    }
    measured = [record[name] for name in _MEASURED if record[name] is not None]
    return record | {"equal": all(value <= record["tolerance"] for value in measured)}  # False for NaN


_MEASURED = ("loss_difference", "gradient_difference", "statistics_difference", "optimizer_difference")
_CONTINUOUS = ("statistics_difference", "optimizer_difference")


def differences(
    tensors: Mapping[str, Tensor], references: Mapping[str, Tensor], *, least_scale: float = LEAST_SCALE
) -> dict[str, float]:
    """max|t − r| / max(max|r|, least_scale · the greatest max|r| of all), by name, in fp64; 0 between tensors of 0."""
    sizes = {name: float(tensor.abs().max()) for name, tensor in references.items()}
    floor = least_scale * max(sizes.values(), default=0.0)
    found = {}
    for name, reference in references.items():
        distance = float((tensors[name].double() - reference.double()).abs().max())
        found[name] = distance / scale if (scale := max(sizes[name], floor)) else float(distance > 0)
    return found


def metrics(record: dict[str, Any]) -> dict[tuple[str, str], float]:
    """By (layer, name); it is one of the whole network."""
    return {("equivalence", name): record[name] for name in _MEASURED if record[name] is not None}


def sentence(records: Sequence[Mapping[str, Any]]) -> str:
    """The result over all measured steps, for the job's logs. A difference of None was not finite."""
    differences = [math.nan if (found := record["gradient_difference"]) is None else found for record in records]
    greatest = _greatest(differences)
    return (
        f"{counted(len(records), 'step')} computed again on one device with the whole batch: {_verdict(records)}; "
        f"gradients differ by at most {greatest:.1e}, allowed is {records[0]['tolerance']:.0e}"
    )


def _verdict(records: Sequence[Mapping[str, Any]]) -> str:
    off = [record for record in records if not record["equal"]]
    if not off:
        return "equal"
    if len(off) <= MOST_JUMPS * len(records) and all(map(_has_jumped, off)):
        return f"equal, but for the gradients of {counted(len(off), 'step')}, as where a ReLU gets 0 but for rounding"
    return "NOT equal"


def _has_jumped(record: Mapping[str, Any]) -> bool:
    """Whether gradients alone are off, by no more than a jump explains."""
    gradient, loss = record["gradient_difference"], record["loss_difference"]
    others = [loss, *(found for name in _CONTINUOUS if (found := record[name]) is not None)]
    within = None not in others and max(others) <= record["tolerance"] == TOLERANCES[torch.float32]
    return within and gradient is not None and gradient <= JUMP


def _greatest(values: Iterable[float]) -> float:
    """NaN if one is NaN, which `max` may pass over."""
    return float(torch.tensor([0.0, *values], dtype=torch.float64).max())


def _by_layer(values: Mapping[str, float], what: str, layers: dict[str, Any]) -> dict[str, Any]:
    """The greatest of a layer's values under `what`, added to `layers`."""
    for name, value in values.items():
        layer = layers.setdefault(layer_of(name), {})
        layer[what] = _greatest([value, layer.get(what, 0.0)])
    return layers


def _only(tensors: Mapping[str, Tensor], names: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: tensors[name] for name in names}
