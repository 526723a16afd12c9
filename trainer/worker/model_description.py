"""export/model.json: which network the published weights belong to, and what it takes to build it again."""

from __future__ import annotations

import platform
from importlib.metadata import Distribution, PackageNotFoundError, distributions, version
from typing import Any

from syncnorm.trainer.contract.catalog.volume_args import VolumeArgs
from syncnorm.trainer.contract.norm_choice import choose_norm
from syncnorm.trainer.contract.spec import JobSpec, ModelSpec
from syncnorm.trainer.data import Data

_ALWAYS = ("syncnorm", "torch", "safetensors")


def describe_network(job_id: str, spec: JobSpec, data: Data) -> dict[str, Any]:
    """Everything needed to build the network of a built-in task that the weights belong to."""
    return describe_job(job_id, spec) | {
        "task": data.info.task,
        "num_classes": data.info.num_classes,
        "input_shape": list(data.info.shape),
        **_of_volumes(spec, data),
        **({"categories": [one._asdict() for one in data.info.categories]} if data.info.categories else {}),
    }


def _of_volumes(spec: JobSpec, data: Data) -> dict[str, Any]:
    """How volumes are prepared and run by windows, for `syncnorm predict`, and how far the network looks where windows
    need it."""
    if spec.data.name != "nifti":
        return {}
    found = {name: value for name, value in spec.data.init_args.items() if name in VolumeArgs.model_fields}
    field = data.info.windows.field if data.info.windows else None
    return {"volumes": found} | ({"receptive_field": field._asdict()} if field is not None else {})


def describe_job(job_id: str, spec: JobSpec) -> dict[str, Any]:
    """The same as far as the spec says it. code: the uploaded package that the model comes from; needs: what was
    installed where it was trained, by version."""
    return {
        "job_id": job_id,
        "model": spec.model.model_dump(mode="json"),
        "norm": spec.norm.model_dump(mode="json") | {"kind": choose_norm(spec).kind},
        "code": spec.code.model_dump(mode="json") if spec.code else None,
        "needs": {"python": platform.python_version(), **_versions(spec.model)},
    }


def _versions(model: ModelSpec) -> dict[str, str]:
    library, slash, _ = (model.name or "").partition("/")
    module = library if slash else (model.class_path or "").partition(".")[0]
    found = dict[str, str]()
    for name in (*_ALWAYS, *(_distributions_with(module) if module else ())):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a checkout that is not installed
            continue
    return found


def _distributions_with(module: str) -> list[str]:
    """Those that bring the top-level module. Ten times as fast as packages_distributions(), which makes a path of every
    file that is installed."""
    return sorted({one.name for one in distributions() if _brings(one, module)})


def _brings(distribution: Distribution, module: str) -> bool:
    if declared := distribution.read_text("top_level.txt"):
        return module in declared.split()
    files = "\n" + (distribution.read_text("RECORD") or "")
    return f"\n{module}/" in files or f"\n{module}." in files
