"""What could not be written to the run: said once by name, and counted."""

from __future__ import annotations

import logging
from collections import Counter

from syncnorm.trainer.contract.text import storable

logger = logging.getLogger(__name__)

_LONGEST = 500


class Losses:
    """The losses of one attempt. Logging never fails training, so this is where a user learns of them."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, what: str, why: str) -> None:
        """what: the verb or the name, under which it is counted. why: a sentence, with what to do instead."""
        self._counts[what] += 1
        if self._counts[what] == 1:
            logger.warning("left out of the MLflow run: %s. %s", storable(what, _LONGEST), storable(why, _LONGEST))

    def summary(self) -> str:
        """`add_video 12 times, add_mesh once`; empty if nothing was lost."""
        return ", ".join(f"{what} {'once' if n == 1 else f'{n} times'}" for what, n in self._counts.most_common())
