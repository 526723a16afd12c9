"""The classes of a new volume's voxels, by windows, on the grid of its file."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from syncnorm.trainer.contract.catalog.volume_args import VolumeArgs
from syncnorm.trainer.data.info import Windows
from syncnorm.trainer.data.remote_files import open_storage
from syncnorm.trainer.data.volumes.checks import require_channels
from syncnorm.trainer.data.volumes.nifti_files import SUFFIXES, NiftiFile, nibabel, read_file
from syncnorm.trainer.data.volumes.preparation import Placement, axes_of, prepared_image
from syncnorm.trainer.errors import MissingDataError
from syncnorm.trainer.export.weights import DESCRIPTION_FILE
from syncnorm.trainer.prediction.exported_network import Network, load_network
from syncnorm.trainer.training.tasks.sliding_window import SlidingWindow

WHERE = "VOLUME"


def predict(model: Path, files: Sequence[str], output: Path) -> dict[str, Any]:
    """Write the mask of the volume in `files` to `output`. model: the folder of an export.

    files: one for all channels, or one for each of them, in order; paths or URLs.
    Returns: the path, its shape, and the number of voxels of each class.
    Raises: ValueError or MissingDataError that names the file.
    """
    if not output.name.endswith(SUFFIXES):
        raise ValueError(f"--output must end in .nii or .nii.gz, got {output}.")
    form, network = read_form(model), load_network(model)
    volume = [_read(file) for file in files]
    labels = classes_of(volume, files, form, network)
    _write(output, labels, volume[0])
    counts = np.bincount(labels.ravel())
    return {
        "mask": str(output),
        "shape": list(labels.shape),
        "axes": volume[0].header.axes,
        "voxels": {str(label): int(count) for label, count in enumerate(counts) if count},
    }


def classes_of(volume: Sequence[NiftiFile], names: Sequence[str], form: VolumeArgs, network: Network) -> np.ndarray:
    """The classes of a volume's voxels on the grid of its first file, uint8."""
    require_channels(WHERE, names, [file.header for file in volume], form)
    image = prepared_image(WHERE, names, volume, form)
    windows = SlidingWindow(form.patch, Windows.of(form))
    scores = windows(torch.from_numpy(image)[None], network)[0].numpy()
    return Placement.of(volume[0].header, axes_of(volume, form), form.spacing).restore(scores)


def read_form(model: Path) -> VolumeArgs:
    """How its volumes are prepared, from model.json. Raises: ValueError if it has no volumes."""
    path = model / DESCRIPTION_FILE
    if not path.is_file():
        raise ValueError(f"{model} must be the folder of an export, with {DESCRIPTION_FILE} (syncnorm get JOB -o DIR).")
    found = json.loads(path.read_bytes()).get("volumes")
    if found is None:
        raise ValueError(f"{path} must be of a job with data nifti, but it says nothing of volumes.")
    return VolumeArgs.model_validate_json(json.dumps(found))


def _read(file: str) -> NiftiFile:
    parent, _, name = file.rpartition("/")
    storage = open_storage(WHERE, parent or ".")
    if not storage.filesystem.isfile(f"{storage.path}/{name}"):
        raise MissingDataError(f"{WHERE}: there is no file {file}.")
    return read_file(storage, name)


def _write(path: Path, labels: np.ndarray, like: NiftiFile) -> None:
    """With the header of `like`, so that both lie at the same place in space by both of NIfTI's affines."""
    header = like.raw.copy()
    header.set_data_dtype(np.uint8)
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
