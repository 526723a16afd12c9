"""Exchange of rows over gloo."""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from syncnorm.norm.distributed.call_headers import HEADER_BYTES, Call, Direction, ExchangeError, Ledger
from syncnorm.norm.distributed.timeouts import timeout_s

_HEADER = HEADER_BYTES // 8
# gloo aborts the process when workers send unequal lengths, so all send the same: up to 2295 channels in one frame.
# On loopback a frame of 36 KB takes as long as one of 1 KB.
_FRAME = 4608


class ProcessGroupTransport:
    """One all-gather of frames (header, row, padding) in a process group of our own.

    Of our own, so that a worker that skipped a layer and went on to DDP's all-reduce can't meet the others there.
    """

    name = "gloo"

    def __init__(self, group: dist.ProcessGroup) -> None:
        ranks = dist.get_process_group_ranks(group)
        self._ranks = ranks
        self._timeout_s = timeout_s(group)
        self._group = dist.new_group(
            ranks, timedelta(seconds=self._timeout_s), backend="gloo", use_local_synchronization=True
        )
        self.world_size = len(ranks)
        self._rank = dist.get_rank(group)
        self._ledger = Ledger()

    def gather(self, row: Tensor, layer: nn.Module | None, direction: Direction) -> Tensor:
        header = self._ledger.header(layer, direction, row.numel()).count()
        size = -(-(_HEADER + row.numel()) // _FRAME) * _FRAME
        frame = torch.zeros(size, dtype=torch.float64, device="cpu")
        frame[:_HEADER] = torch.frombuffer(header.bytes, dtype=torch.float64)
        frame[_HEADER : _HEADER + row.numel()] = row
        frames = torch.empty(self.world_size * size, dtype=torch.float64, device="cpu")
        try:
            self._group._allgather_base(frames, frame).wait()  # its public names change with torch 2.13
        except RuntimeError as error:
            raise ExchangeError(
                f"rank {self._ranks[self._rank]} could not exchange statistics in {header.call()} within "
                f"{self._timeout_s:g} s: {error}. Another worker has ended, or skipped this layer; look at its log."
            ) from error
        table = frames.view(self.world_size, size)
        words = table[:, :4].contiguous().view(torch.int64)
        if not torch.equal(words, words[self._rank].expand_as(words)):
            check_calls([bytes(line.numpy()) for line in table[:, :_HEADER]], self._ranks)
        return table[:, _HEADER : _HEADER + row.numel()]


def check_calls(headers: list[bytes], ranks: list[int]) -> None:
    """Raises ExchangeError unless all workers announced the same call."""
    calls = [Call.parse(header) for header in headers]
    if all(call.agrees(calls[0]) for call in calls):
        return
    where = "; ".join(f"rank {rank} is in {call}" for rank, call in zip(ranks, calls, strict=True))
    raise ExchangeError(
        "all workers must pass through the same synchronized layers in the same order with the same channels: "
        f"{where}. Don't skip a layer on some workers only, and build the same model on all."
    )
