"""Memory of one GPU for a U-Net over a volume: whole, and in tiles that equal it, as figures."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from benchmarks.gpu.figures import Figure, record

GOAL = 0.6


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--edge", type=int, default=192, help="of the volume, in voxels")
    parser.add_argument("--kinds", nargs="+", default=["group", "instance", "batch"])
    options = parser.parse_args(arguments)

    import torch

    from syncnorm import norm
    from tests.helpers.norm.unet import UNet

    x = torch.randn(1, 2, *3 * [options.edge])
    for kind in options.kinds:
        model = norm.convert(UNet(3, width=16), kind)[0].eval().cuda()
        with torch.no_grad():
            whole = _peak_gib(lambda model=model: model(x.cuda()).cpu())  # type: ignore[misc]
            tiles = _peak_gib(lambda model=model: norm.tiled(model, x, tile=64))  # type: ignore[misc]
        record(
            [
                Figure("tiles", f"{kind}, whole volume [GiB]", whole),
                Figure("tiles", f"{kind}, tiles / whole volume", tiles / whole, GOAL),
            ]
        )


def _peak_gib(run: Callable[[], object]) -> float:
    """What `run` adds, at most."""
    import torch

    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**30


if __name__ == "__main__":
    main()
