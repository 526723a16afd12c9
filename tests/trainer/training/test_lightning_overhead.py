"""Lightning does less for our callbacks, and nothing else for those of a user."""

from __future__ import annotations

from collections import Counter
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from syncnorm.trainer.training.lightning_overhead import NoProfiler, skip_empty_hooks

STEPS = 3


class Actions(NoProfiler):
    """Counts what Lightning does, by its own names."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counter[str]()

    def profile(self, action_name: str) -> Any:
        self.counts[action_name] += 1
        return super().profile(action_name)


class Ends(Callback):
    """Wants the end of a batch alone."""

    def __init__(self) -> None:
        self.batches = 0

    def on_train_batch_end(self, *_: Any) -> None:
        self.batches += 1


class Inherits(Ends): ...


class OfUser(Callback): ...


def test_only_the_hooks_that_a_callback_has_are_called_in_a_step() -> None:
    ours, actions = (Ends(), Inherits()), Actions()
    skip_empty_hooks(ours)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=STEPS,
        limit_val_batches=0,
        callbacks=[*ours, OfUser()],
        profiler=actions,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )

    trainer.fit(BoringModel())

    assert [each.batches for each in ours] == [STEPS, STEPS]
    assert actions.counts["[Callback]Ends.on_train_batch_end"] == STEPS
    assert actions.counts["[Callback]OfUser.on_after_backward"] == STEPS
    assert [actions.counts[f"[Callback]Ends.{hook}"] for hook in ("on_after_backward", "on_before_zero_grad")] == [0, 0]
    assert actions.counts["[Callback]Ends.on_train_epoch_end"] == 1  # once an epoch it costs nothing
