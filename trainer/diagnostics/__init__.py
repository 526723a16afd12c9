"""Measurements that a job switches on with `diagnostics: [...]`. See README.md."""

from syncnorm.trainer.diagnostics.callback import Diagnostics

__all__ = ["Diagnostics"]
