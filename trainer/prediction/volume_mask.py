"""The classes of a new volume's voxels, by windows, on the grid of its file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from syncnorm.trainer.contract.catalog.volume_args import VolumeArgs
from syncnorm.trainer.data.info import DataInfo, ReceptiveField, Windows
from syncnorm.trainer.data.remote_files import open_storage
from syncnorm.trainer.data.volumes.checks import require_channels
from syncnorm.trainer.data.volumes.nifti_files import SUFFIXES, NiftiFile, nibabel, read_file
from syncnorm.trainer.data.volumes.preparation import Placement, axes_of, prepared_image
from syncnorm.trainer.errors import MissingDataError
from syncnorm.trainer.export.weights import DESCRIPTION_FILE
from syncnorm.trainer.prediction.exported_network import Network, load_network
from syncnorm.trainer.prediction.trained_network import load_trained
from syncnorm.trainer.training.tasks.joint_windows import JointWindows
from syncnorm.trainer.training.tasks.main_output import MainOutput
from syncnorm.trainer.training.tasks.receptive_field import with_field
from syncnorm.trainer.training.tasks.sliding_window import SlidingWindow

WHERE = "VOLUME"
How = Literal["separate", "joint"]
Run = Callable[[Tensor], Tensor]
"""Scores of every voxel of prepared volumes: (N, C, *spatial) -> (N, K, *spatial)."""


def predict(model: Path, files: Sequence[str], output: Path, how: How | None = None) -> dict[str, Any]:
    """Write the mask of the volume in `files` to `output`. model: the folder of an export.

    files: one for all channels, or one for each of them, in order; paths or URLs. how: windows by themselves, through
    the exported file, or joint ones, through the trained network; None: as the job was validated.
    Returns: the path, its shape, how windows were run, and the number of voxels of each value.
    Raises: ValueError or MissingDataError that names the file.
    """
    if not output.name.endswith(SUFFIXES):
        raise ValueError(f"--output must end in .nii or .nii.gz, got {output}.")
    about = read_description(model)
    form = VolumeArgs.model_validate_json(json.dumps(about["volumes"]))
    form = form if how is None else form.model_copy(update={"windows": how})
    run = _runner(model, about, form)
    volume = [_read(file) for file in files]
    labels = _values(classes_of(volume, files, form, run), form)
    _write(output, labels, volume[0])
    counts = np.bincount(labels.ravel())
    return {
        "mask": str(output),
        "shape": list(labels.shape),
        "axes": volume[0].header.axes,
        "windows": form.windows,
        "voxels": {str(label): int(count) for label, count in enumerate(counts) if count},
    }


def _runner(model: Path, about: Mapping[str, Any], form: VolumeArgs) -> Run:
    """What gives the scores of whole volumes."""
    windows = Windows.of(form)
    if windows.is_joint:
        info = DataInfo("segmentation", about["num_classes"], (form.channels, *form.patch), windows)
        network = load_trained(model, info)
        fitted = with_field(info, network).windows
        assert fitted is not None
        assert fitted.field is not None
        return partial(_jointly, JointWindows(form.patch, fitted.field), network)
    if windows.overlap == "auto":
        field = ReceptiveField(**{name: tuple(value) for name, value in about["receptive_field"].items()})
        windows = replace(windows, field=field)
    return partial(_by_windows, SlidingWindow(form.patch, windows), load_network(model))


def _jointly(inferer: JointWindows, network: nn.Module, x: Tensor) -> Tensor:
    return inferer(x, MainOutput(network))


def _by_windows(inferer: SlidingWindow, network: Network, x: Tensor) -> Tensor:
    return inferer(x, network)


def classes_of(volume: Sequence[NiftiFile], names: Sequence[str], form: VolumeArgs, run: Run) -> np.ndarray:
    """The classes of a volume's voxels on the grid of its first file, uint8."""
    require_channels(WHERE, names, [file.header for file in volume], form)
    image = prepared_image(WHERE, names, volume, form)
    scores = run(torch.from_numpy(image)[None])[0].numpy()
    return Placement.of(volume[0].header, axes_of(volume, form), form.spacing).restore(scores)


def _values(classes: np.ndarray, form: VolumeArgs) -> np.ndarray:
    """Those that stand for the classes in the masks that the network was trained with."""
    if form.labels is None:
        return classes
    values: np.ndarray = np.array(form.labels, np.uint8 if max(form.labels) < 256 else np.uint16)[classes]
    return values


def read_description(model: Path) -> dict[str, Any]:
    """model.json, whose `volumes` say how they are prepared. Raises: ValueError if it has none."""
    path = model / DESCRIPTION_FILE
    if not path.is_file():
        raise ValueError(f"{model} must be the folder of an export, with {DESCRIPTION_FILE} (syncnorm get JOB -o DIR).")
    found: dict[str, Any] = json.loads(path.read_bytes())
    if found.get("volumes") is None:
        raise ValueError(f"{path} must be of a job with data nifti, but it says nothing of volumes.")
    return found


def _read(file: str) -> NiftiFile:
    parent, _, name = file.rpartition("/")
    storage = open_storage(WHERE, parent or ".")
    if not storage.filesystem.isfile(f"{storage.path}/{name}"):
        raise MissingDataError(f"{WHERE}: there is no file {file}.")
    return read_file(storage, name)


def _write(path: Path, labels: np.ndarray, like: NiftiFile) -> None:
    """With the header of `like`, so that both lie at the same place in space by both of NIfTI's affines."""
    header = like.raw.copy()
    header.set_data_dtype(labels.dtype)
    header["cal_min"] = header["cal_max"] = 0  # of the scan's intensities
    header.set_intent("label")
    kind = nibabel().Nifti2Image if header.sizeof_hdr == 540 else nibabel().Nifti1Image
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        kind(labels, like.header.affine, header).to_filename(unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
