"""What a run of MLflow says about the data of a job: name, digest, source, schema and profile of each part. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from syncnorm.trainer.contract.spec import DataSpec
from syncnorm.trainer.data.info import Data, DataInfo

_PLACES = ("root", "path", "file", "files", "folder", "data_dir", "url")
"""Arguments that may say where the data lies, the most telling first."""
_LONGEST_NAME = 500
_DIGEST = 16
"""Characters. MLflow takes 36."""


def dataset_inputs(spec: DataSpec, seed: int, data: Data | None) -> list[dict[str, Any]]:
    """The parts for training and validation, as MLflow's `runs/log-inputs` takes them (mlflow 3.17).

    data: None for a LightningDataModule, whose samples only it knows. The digest covers the name, all arguments, the
    seed that splits them, the number of samples and the sizes of the files that arguments name. It does not cover every
    byte of them.
    """
    counts = {"train": _count(data.train), "validation": _count(data.val)} if data else {"train": None}
    return [
        {"tags": [{"key": "mlflow.data.context", "value": part}], "dataset": _dataset(spec, seed, data, part, samples)}
        for part, samples in counts.items()
    ]


def _dataset(spec: DataSpec, seed: int, data: Data | None, part: str, samples: int | None) -> dict[str, str]:
    kind, source = _source(spec)
    facts = {
        "data": spec.name or spec.class_path,
        "init_args": spec.init_args,
        "seed": seed,
        "part": part,
        "samples": samples,
        "bytes": _sizes(spec.init_args),
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:_DIGEST]
    found = {
        "name": (spec.name or spec.class_path or "data of the module")[:_LONGEST_NAME],
        "digest": digest,
        "source_type": kind,
        "source": json.dumps(source),
        "profile": json.dumps(_profile(data, samples)),
    }
    return found | ({"schema": json.dumps(_schema(data.info))} if data else {})


def _source(spec: DataSpec) -> tuple[str, dict[str, Any]]:
    """Where the samples come from, in MLflow's own words, so that `mlflow.data.get_source` reads it."""
    for name in _PLACES:
        if isinstance(value := spec.init_args.get(name), str) and value:
            scheme = urlsplit(value).scheme
            if scheme in ("http", "https"):
                return "http", {"url": value}
            return ("s3" if scheme == "s3" else "local"), {"uri": value}
    return "code", {"tags": {"mlflow.source.type": "LOCAL", "mlflow.source.name": spec.class_path or spec.name or ""}}


def _profile(data: Data | None, samples: int | None) -> dict[str, Any]:
    counted = {} if samples is None else {"num_rows": samples}
    if data is None:
        return counted
    info = data.info
    described = {"task": info.task, "num_classes": info.num_classes, "shape": list(info.shape)}
    names = [category.name for category in info.categories]
    return {**counted, **described, **({"classes": names[:100]} if names else {})}


def _schema(info: DataInfo) -> dict[str, Any]:
    """As MLflow describes a dataset of arrays. -1: the number of samples."""
    features = _tensors("float32", [-1, *info.shape])
    targets = {
        "classification": ("int64", [-1]),
        "segmentation": ("int64", [-1, *info.shape[1:]]),
        "regression": ("float32", [-1, info.num_classes]),
        "multilabel": ("float32", [-1, info.num_classes]),
    }
    known = targets.get(info.task)
    return {"mlflow_tensorspec": {"features": features, "targets": _tensors(*known) if known else None}}


def _tensors(dtype: str, shape: list[int]) -> str:
    return json.dumps([{"type": "tensor", "tensor-spec": {"dtype": dtype, "shape": shape}}])


def _count(samples: Any) -> int | None:
    try:
        return len(samples)
    except TypeError:
        return None  # a stream


def _sizes(arguments: Mapping[str, Any]) -> dict[str, int]:
    """Bytes of the files among the arguments. Folders are not walked: they may hold millions of files."""
    found = {}
    for name, value in arguments.items():
        with suppress(OSError, ValueError):  # no path at all, as most texts
            if isinstance(value, str) and (path := Path(value)).is_file():
                found[name] = path.stat().st_size
    return found
