"""Group, layer and instance normalization of channels_last tensors on one GPU, forward and backward, as figures."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence

from benchmarks.gpu.figures import Figure, record

SHAPES = ((32, 256, 56, 56), (8, 64, 112, 112), (2, 32, 64, 64, 64))
GOAL = 1.1
"""Of torch's own kernels on contiguous tensors, as on CPUs."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args(arguments)

    from benchmarks.channels_last import GROUPS

    for shape in SHAPES:
        for kind in GROUPS:
            record(_figures(shape, kind, options.rounds))


def _figures(shape: tuple[int, ...], kind: str, rounds: int) -> list[Figure]:
    import torch

    from benchmarks.channels_last import OURS, PEER, build

    with torch.device("cuda"):
        steps = build(shape, kind)
    fastest_ms = _fastest_ms(steps, rounds)
    name = f"{kind} {shape}".replace(", ", ",")
    return [
        Figure("channels_last", f"{name}, ours / torch's contiguous", fastest_ms[OURS] / fastest_ms[PEER], GOAL),
        Figure(
            "channels_last",
            f"{name}, ours / torch's channels_last",
            fastest_ms[OURS] / fastest_ms["channels_last, torch"],
        ),
    ]


def _fastest_ms(steps: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Time of the GPU, each step in turn."""
    import torch

    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 3):
        for name, step in steps.items():
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            step()
            end.record()
            end.synchronize()
            if number >= 3:  # the first rounds compile and allocate
                times[name].append(begin.elapsed_time(end))
    return {name: min(taken) for name, taken in times.items()}


if __name__ == "__main__":
    main()
