"""Random numbers of each micro-batch, apart from those of the others and of the layers where they meet."""

from __future__ import annotations

import torch
from torch import Tensor

_State = list[Tensor]


class RandomStreams:
    """Streams that torch's global generators switch between, for each of `count` micro-batches.

    A forward draws as if it ran in one piece: activation checkpointing, which runs a part of it again from the state of
    that part's start, gets the same numbers. What layers draw for all micro-batches together comes from the stream of
    before, as for one batch; it moves on by a number if a micro-batch has drawn any.
    """

    def __init__(self, count: int) -> None:
        self._devices = [torch.device("cpu")]
        if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            self._devices.append(torch.device("cuda", torch.cuda.current_device()))
        own = self._state()
        self._first = [self._fork(own, number) for number in range(count)]
        self._states: dict[int | None, _State] = {None: own, **dict(enumerate(self._first))}
        self._current: int | None = None

    def switch_to(self, number: int | None) -> None:
        """Draw from the stream of a micro-batch; None: of all together."""
        if number == self._current:
            return
        self._states[self._current] = self._state()
        self._current = number
        for device, state in zip(self._devices, self._states[number], strict=True):
            _set(device, state)

    def close(self) -> None:
        """Continue as one batch would."""
        self.switch_to(None)
        for place, device in enumerate(self._devices):
            if any(not torch.equal(self._states[i][place], first[place]) for i, first in enumerate(self._first)):
                torch.rand((), device=device)

    def _state(self) -> _State:
        return [
            torch.get_rng_state() if device.type == "cpu" else torch.cuda.get_rng_state(device)
            for device in self._devices
        ]

    def _fork(self, own: _State, number: int) -> _State:
        """A stream that depends on the one of before and on `number`, without drawing from it."""
        generator = torch.Generator()
        generator.set_state(own[0])
        seeds = torch.randint(2**62, (number + 1,), generator=generator)
        seed = int(seeds[number])
        return [torch.Generator(device).manual_seed(seed).get_state() for device in self._devices]


def _set(device: torch.device, state: Tensor) -> None:
    if device.type == "cpu":
        torch.set_rng_state(state)
    else:
        torch.cuda.set_rng_state(state, device)
