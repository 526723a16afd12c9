"""The steps of a session on a GPU, the most valuable first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

TRAINER = ("lightning", "pydantic", "jsonargparse", "httpx", "safetensors", "torchmetrics", "sklearn", "pyarrow")
SERVICE = (*TRAINER, "ray", "mlflow", "fastapi", "uvicorn", "sqlalchemy", "alembic", "torchvision")
"""What must be importable."""


@dataclass(frozen=True)
class Step:
    """command: of Python, with {out} for the folder of the results. limit_s: after which it is ended. needs: modules
    without which it is skipped."""

    name: str
    shows: str
    command: tuple[str, ...]
    limit_s: int
    needs: tuple[str, ...] = ()


STEPS = (
    Step(
        "tests",
        "pytest tests/gpu: normalization, tiles, and the trainer with and without a CUDA graph",
        ("-m", "pytest", "tests/gpu", "-q", "-n", "4", "--durations=15", "--junitxml={out}/junit.xml"),
        limit_s=190,
        needs=(*TRAINER, "pytest", "pytest_timeout", "xdist", "hypothesis"),
    ),
    Step(
        "resnet_step",
        "a step of ResNet-50 with ours, torch's and local batch norm, each also from a CUDA graph",
        ("-m", "benchmarks.gpu.resnet_step"),
        limit_s=80,
        needs=("torchvision",),
    ),
    Step(
        "channels_last",
        "group, layer and instance normalization of channels_last tensors, ours against torch's",
        ("-m", "benchmarks.gpu.channels_last_kernels"),
        limit_s=40,
    ),
    Step(
        "tiles",
        "the memory of a U-Net over a volume in tiles, against the whole volume",
        ("-m", "benchmarks.gpu.tiles_memory"),
        limit_s=30,
    ),
    Step(
        "service",
        "the embedded service: the digits, a ResNet-50 of torchvision and a U-Net, each with one GPU to a certificate",
        ("-m", "benchmarks.gpu.service_jobs"),
        limit_s=200,
        needs=SERVICE,
    ),
)


def reason_to_skip(step: Step, *, has_gpu: bool, is_there: Callable[[str], bool], left_s: float) -> str | None:
    """Why `step` can't run, in words that follow "skipped:". is_there: whether a module can be imported. left_s: of the
    session.

    >>> reason_to_skip(STEPS[1], has_gpu=False, is_there=lambda _: True, left_s=480)
    'there is no CUDA device'
    """
    missing = missing_modules(step.needs, is_there)
    if missing:
        return f"{', '.join(missing)} can't be imported; bring the wheels, see benchmarks/gpu/README.md"
    if not has_gpu:
        return "there is no CUDA device"
    if left_s < 10:
        return "no time is left"
    return None


def missing_modules(names: Sequence[str], is_there: Callable[[str], bool]) -> list[str]:
    return [name for name in names if not is_there(name)]
