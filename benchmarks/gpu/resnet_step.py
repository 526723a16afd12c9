"""A training step of ResNet-50 on one GPU: ours against torch's SyncBatchNorm and local batch norm, as figures."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence

from benchmarks.gpu.figures import Figure, record

AGAINST_TORCH, AGAINST_LOCAL = 0.5, 1.05
"""Goals: of torch's SyncBatchNorm, and with the graph of local batch norm with one."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--images", type=int, nargs="+", default=[4, 64])
    options = parser.parse_args(arguments)

    from benchmarks import norm_gpu

    with norm_gpu.one_worker():
        # A graph that can't be captured must not cost the figures without one.
        for with_graphs, images in itertools.product((False, True), options.images):
            rows = norm_gpu.resnet_rows(images, options.rounds, with_graphs=with_graphs)
            fastest_s = {row.competitor: row.minimum_s for row in rows}
            record(figures_of(images, {k: v for k, v in fastest_s.items() if not with_graphs or "graph" in k}))


def figures_of(images: int, fastest_s: dict[str, float]) -> Iterator[Figure]:
    """fastest_s: of each competitor of norm_gpu."""
    for name, seconds in fastest_s.items():
        yield Figure("resnet_step", f"{images} images, {name} [ms]", seconds * 1e3)
    pairs = (
        ("ours", "torch.nn.SyncBatchNorm", AGAINST_TORCH),
        ("ours", "local batch norm", None),
        ("ours, CUDA graph", "torch.nn.SyncBatchNorm, CUDA graph", None),
        ("ours, CUDA graph", "local batch norm, CUDA graph", AGAINST_LOCAL),
    )
    for ours, other, goal in pairs:
        if ours in fastest_s and other in fastest_s:
            ratio = fastest_s[ours] / fastest_s[other]
            yield Figure("resnet_step", f"{images} images, {ours} / {other}", ratio, goal)


if __name__ == "__main__":
    main()
