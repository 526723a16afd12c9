"""Reads the tensors in a file of torch or safetensors, without running anything that is in it."""

from __future__ import annotations

import argparse
import pickle
import re
import shutil
import stat
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from syncnorm.trainer.contract.text import name_some, storable
from syncnorm.trainer.export.weights import whole_tensor

KEYS = ("state_dict", "model_state_dict", "model", "module")
"""Where training code mostly keeps a state_dict: Lightning, plain torch, timm and Detectron2, DeepSpeed."""
_EXTRA = "_extra_state"
_INERT = [argparse.Namespace, np.dtype, np.ndarray, *(type(np.dtype(kind)) for kind in "fdilqbB?")]
"""What checkpoints often hold besides tensors, and what runs nothing when it is read."""
_DEEPEST = 8


def is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") < 2**30


def require_file(path: Path, where: str) -> None:
    """Raises: ValueError naming `where` unless there is a file that can be read."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ValueError(f"{where} must be a file, but {path} is none.")
        with path.open("rb"):
            pass
    except OSError as error:
        raise ValueError(
            f"{where} must be a file that every worker can read: {path}: {error.strerror or error}."
        ) from error


def as_safetensors(path: Path, target: Path, where: str, key: str | None) -> str | None:
    """Write the tensors in `path` to `target`; returns the key that they were found under.

    Raises: ValueError naming `where`, or the tensor, for a file that can't be read so.
    """
    if is_safetensors(path):
        if key is not None:
            raise ValueError(f"model.init_from.key must be left out: {path.name} is a safetensors file, without keys.")
        _check(path, where)
        shutil.copyfile(path, target)
        return None
    found, used = _state_dict(load_plain(path, where), key, where)
    tensors = {name: _tensor(name, value, where) for name, value in found}
    save_file(tensors, target)
    return used


def _check(path: Path, where: str) -> None:
    try:
        with safetensors.safe_open(path, "pt"):
            pass
    except safetensors.SafetensorError as error:
        raise ValueError(f"{where}: {path.name} can't be read as safetensors: {error}") from error


def load_plain(path: Path, where: str) -> Any:
    """The tensors and plain values in a file of torch; nothing in it is run. Raises: ValueError naming `where`."""
    try:
        with torch.serialization.safe_globals([*_INERT, _scalar(), _reconstruct()]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about versions of pickle, which the error below tells as well
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"{found[1]}, which would have to be run" if found else "something other than tensors and plain values"
        raise ValueError(
            f"{where} must hold tensors and plain values alone, but {path.name} holds {what}. Save the state_dict by "
            "itself: torch.save(model.state_dict(), FILE), or use safetensors."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{where} must be a file of torch or safetensors; {path.name} can't be read as one "
            f"({type(error).__name__}). Is it whole?"
        ) from error


def _scalar() -> Any:
    return np._core.multiarray.scalar  # type: ignore[attr-defined]


def _reconstruct() -> Any:
    return np._core.multiarray._reconstruct  # type: ignore[attr-defined]


def _state_dict(value: Any, key: str | None, where: str) -> tuple[list[tuple[str, Any]], str | None]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} must hold tensors by name, got a {type(value).__name__}.")
    if key is not None:
        return list(_flat(_at(value, key))), key
    if any(isinstance(one, Tensor) for one in value.values()):
        return list(_flat(value)), None
    holding = [name for name in KEYS if isinstance(value.get(name), Mapping) and _has_tensors(value[name])]
    if len(holding) == 1:
        return list(_flat(value[holding[0]])), holding[0]
    if not holding and value and all(isinstance(one, Mapping) and _has_tensors(one) for one in value.values()):
        return list(_flat(value)), None  # parts of a network, each by itself
    given = name_some([storable(str(name), 80) for name in value], 12) or "nothing"
    raise ValueError(
        f"model.init_from.key must say where the tensors lie: {', '.join(holding) or 'none'} of the usual keys holds "
        f"some; the file has {given}."
    )


def _at(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """What is under a key; one with dots may be a key itself, or lead through several."""
    now: Any = value
    rest = key
    while rest:
        heads = [rest, *(rest[:dot] for dot in range(len(rest) - 1, 0, -1) if rest[dot] == ".")]
        head = next((head for head in heads if isinstance(now, Mapping) and head in now), None)
        if head is None:
            has = name_some([storable(str(name), 80) for name in now], 12) if isinstance(now, Mapping) else "no keys"
            raise ValueError(f"model.init_from.key must be a key of the file: there is no {rest!r}, it has {has}.")
        now, rest = now[head], rest[len(head) + 1 :]
    if not isinstance(now, Mapping) or not _has_tensors(now):
        raise ValueError(f"model.init_from.key must lead to tensors by name, but {key!r} holds {_described(now)}.")
    return now


def _has_tensors(value: Mapping[str, Any], depth: int = _DEEPEST) -> bool:
    return any(
        isinstance(one, Tensor) or (depth and isinstance(one, Mapping) and _has_tensors(one, depth - 1))
        for one in value.values()
    )


def _flat(value: Mapping[str, Any], prefix: str = "", depth: int = _DEEPEST) -> Iterator[tuple[str, Any]]:
    """Tensors by name; those of parts that have a dict each get the part's name in front."""
    for name, one in value.items():
        if isinstance(one, Mapping) and depth and _has_tensors(one):
            yield from _flat(one, f"{prefix}{name}.", depth - 1)
        elif not str(name).endswith(_EXTRA):
            yield f"{prefix}{name}", one


def _tensor(name: str, value: Any, where: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise ValueError(f"{where}: {name} must be a tensor, got {_described(value)}. Name its place in key.")
    if value.is_quantized or value.is_meta or nn.parameter.is_lazy(value):
        raise ValueError(f"{where}: {name} must hold plain numbers, got a quantized or empty tensor.")
    return whole_tensor(value)


def _described(value: Any) -> str:
    return f"a {type(value).__name__}"
