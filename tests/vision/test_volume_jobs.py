"""A job on volumes through the service, and its model applied to new ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from syncnorm.service.cli import main as cli
from syncnorm.service.cli import terminal
from syncnorm.service.client.client import Client
from syncnorm.trainer.contract.spec_reader import read_spec
from syncnorm.trainer.data import build_data
from syncnorm.trainer.data.info import Windows
from syncnorm.trainer.export.certification import CERTIFICATE_FILE
from syncnorm.trainer.export.formats import export
from syncnorm.trainer.export.forward_inputs import ForwardInputs
from syncnorm.trainer.storage.atomic_files import sha256_of
from syncnorm.trainer.training.tasks.sliding_window import SlidingWindow
from syncnorm.trainer.worker.model_description import describe_network
from syncnorm.trainer.worker.model_inspection import inspect
from tests.helpers.norm.pool import Pool
from tests.helpers.trainer.ranks import train
from tests.stack.conftest import finished
from tests.vision.conftest import artifact, run_of

nibabel = pytest.importorskip("nibabel")
SlidingWindowInferer = pytest.importorskip("monai.inferers").SlidingWindowInferer
from syncnorm.trainer.prediction.volume_mask import predict  # noqa: E402 - needs nibabel
from tests.helpers.vision.nifti_folder import affine_of, save, scene, write_folder  # noqa: E402 - needs nibabel


def job(root: Path, model: dict[str, Any], *, workers: int = 2, **init_args: Any) -> dict[str, Any]:
    return {
        "name": "volumes",
        "model": model,
        "data": {
            "name": "nifti",
            "batch_size": 1,
            "init_args": {"root": str(root), "num_classes": 3, "patch": [16, 16, 16], "val_fraction": 0.5, **init_args},
        },
        "norm": {"kind": "sync_batch"},
        "optimizer": {"name": "adam", "lr": 0.01},
        "train": {"epochs": 2},
        "resources": {"workers": workers},
        "limits": {"max_failures": 0},
    }


UNET = {"name": "unet", "init_args": {"dims": 3, "width": 4, "depth": 1}}
DYN_UNET = {
    "class_path": "monai.networks.nets.DynUNet",
    "init_args": {
        "spatial_dims": 3,
        "in_channels": 1,
        "out_channels": 3,
        "kernel_size": [3, 3, 3],
        "strides": [1, 2, 2],
        "upsample_kernel_size": [2, 2],
        "filters": [4, 8, 16],
        "norm_name": "batch",
        "deep_supervision": True,
        "deep_supr_num": 1,
    },
}
SCALES = {"class_path": "tests.helpers.vision.scales.Scales"}
NETS = {
    "built in": UNET,
    "DynUNet, with deep supervision": DYN_UNET,
    "a list of scales": SCALES,
    "MONAI's UNet": {
        "class_path": "monai.networks.nets.UNet",
        "init_args": {
            "spatial_dims": 3,
            "in_channels": 1,
            "out_channels": 3,
            "channels": [4, 8],
            "strides": [2],
            "norm": "batch",
        },
    },
}


@pytest.mark.parametrize("name", NETS)
def test_networks_train_on_patches_and_k_ranks_equal_one(ranks: Pool, tmp_path: Path, name: str) -> None:
    root = write_folder(tmp_path / "scans", 6)

    def document(workers: int) -> dict[str, Any]:
        made = job(root, NETS[name], workers=workers, patches_per_volume=2)
        made["data"]["batch_size"] = 2 // workers
        sgd = {"name": "sgd", "lr": 0.05}
        return made | {"train": {"precision": "64-true", "steps": 3}, "optimizer": sgd}

    two = ranks.run(train, 2, str(tmp_path / "two"), document(2))
    one = ranks.run(train, 1, str(tmp_path / "one"), document(1))[0]

    for key, tensor in one.state.items():
        torch.testing.assert_close(two[0].state[key], tensor, rtol=1e-9, atol=1e-9)  # fp64
    assert two[0].metrics["val/dice"] == pytest.approx(one.metrics["val/dice"], abs=1e-9)
    assert two[0].metrics["val/dice_2"] == pytest.approx(one.metrics["val/dice_2"], abs=1e-9)


def test_the_plan_promises_one_device_and_names_bad_files(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "scans")
    good = inspect(read_spec(job(root, UNET)))
    (root / "masks" / "v2.nii.gz").unlink()

    bad = inspect(read_spec(job(root, UNET)))

    assert good.guarantees is not None
    assert good.guarantees.equals_one_device.holds == "yes"
    assert [one for one in good.findings if one.severity == "error"] == []
    assert "there is none for v2" in bad.findings[0].message
    assert bad.findings[0].path == "data.init_args.root"


@pytest.mark.parametrize("shape", [(16, 24, 32), (8, 12, 20)])
def test_windows_give_what_those_of_monai_do(shape: tuple[int, ...]) -> None:
    inferer = SlidingWindowInferer(roi_size=[8, 8, 8], sw_batch_size=4, overlap=0.5, mode="constant")
    ours = SlidingWindow((8, 8, 8), Windows(overlap=0.5, blending="constant", at_once=3))
    x, network = torch.randn(2, 1, *shape), nn.Conv3d(1, 3, 5, padding=2)

    with torch.no_grad():
        torch.testing.assert_close(ours(x, network), inferer(x, network), rtol=1e-5, atol=1e-6)  # fp32


def test_an_inferer_of_monai_takes_the_place_of_ours(ranks: Pool, tmp_path: Path) -> None:
    root = write_folder(tmp_path / "scans", 4)
    of_monai = {
        "class_path": "monai.inferers.SlidingWindowInferer",
        "init_args": {"roi_size": [16] * 3, "mode": "gaussian"},
    }

    def dice(model: dict[str, Any]) -> dict[str, float]:
        trained = ranks.run(train, 1, str(tmp_path / str(len(model))), job(root, model, workers=1, overlap=0.0))[0]
        return {name: value for name, value in trained.metrics.items() if name.startswith("val/")}

    ours, theirs = dice(UNET), dice({**UNET, "inferer": of_monai})

    assert ours.keys() == theirs.keys()
    assert ours["val/loss"] == pytest.approx(theirs["val/loss"], rel=0.2)  # by other windows
    assert ours["val/loss"] != theirs["val/loss"]


# A trained model on a new volume


class Brightness(nn.Module):
    """The class whose brightness in units of 100 is nearest, of the last channel."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([-((x[:, -1:] - 100 * (1 + label)) ** 2) for label in range(3)], dim=1)


def exported(folder: Path, formats: list[str], root: Path, **init_args: Any) -> Path:
    """As `syncnorm get` saves the export of a job."""
    spec = read_spec(job(root, UNET, **init_args))
    data = build_data(spec.data, 0)
    files = export(Brightness(), ForwardInputs((torch.zeros(2, *data.info.shape),)), formats, folder)
    (folder / "model.json").write_text(json.dumps(describe_network("job_1", spec, data)))
    digests = {file.path.name: sha256_of(file.path) for file in files}
    (folder / CERTIFICATE_FILE).write_text(json.dumps({"files": digests}))
    return folder


def clean_scene(seed: int, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """With no noise that would move a voxel to another class."""
    _, mask = scene(seed, shape)
    return (100 + 100.0 * mask).astype(np.float32), mask


@pytest.mark.parametrize("axes", ["RAS", "LPS"])
@pytest.mark.parametrize("formats", [["onnx"], ["pt2"], ["onnx", "pt2"]])
def test_a_mask_lies_where_its_volume_does(tmp_path: Path, axes: str, formats: list[str]) -> None:
    model = exported(tmp_path / "model", formats, write_folder(tmp_path / "scans"), normalize="none", patch=[8, 8, 8])
    image, mask = clean_scene(5, (21, 19, 17))
    affine = affine_of(axes, (1.0, 2.0, 3.0))
    affine[:3, 3] = [10, -20, 30]
    save(tmp_path / "new.nii.gz", image, affine)

    found = predict(model, [str(tmp_path / "new.nii.gz")], tmp_path / "out" / "mask.nii.gz")

    written = nibabel.load(tmp_path / "out" / "mask.nii.gz")
    assert np.array_equal(np.asanyarray(written.dataobj), mask)
    assert written.get_data_dtype() == np.uint8
    assert np.array_equal(written.affine, affine)
    assert "".join(nibabel.aff2axcodes(written.affine)) == axes == found["axes"]
    assert found["voxels"] == {str(label): int((mask == label).sum()) for label in range(3)}
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mask.nii.gz"]


@pytest.mark.parametrize(("labels", "dtype"), [([0, 1, 4], np.uint8), ([0, 400, 7], np.uint16)])
def test_a_mask_holds_the_values_that_labels_name(tmp_path: Path, labels: list[int], dtype: type) -> None:
    scans = write_folder(tmp_path / "scans")
    for path in (scans / "masks").iterdir():
        save(path, np.array(labels, dtype)[np.asanyarray(nibabel.load(path).dataobj)])
    model = exported(tmp_path / "model", ["onnx"], scans, normalize="none", patch=[8, 8, 8], labels=labels)
    image, mask = clean_scene(5, (21, 19, 17))
    save(tmp_path / "new.nii.gz", image)

    found = predict(model, [str(tmp_path / "new.nii.gz")], tmp_path / "mask.nii.gz")

    written = np.asanyarray(nibabel.load(tmp_path / "mask.nii.gz").dataobj)
    assert written.dtype == dtype
    assert np.array_equal(written, np.array(labels)[mask])
    assert found["voxels"] == {str(value): int((written == value).sum()) for value in sorted(labels)}


def test_a_resampled_volume_gets_its_mask_in_its_own_voxels(tmp_path: Path) -> None:
    settings = {"normalize": "none", "patch": [8, 8, 8], "spacing": [1, 1, 1]}
    model = exported(tmp_path / "model", ["onnx"], write_folder(tmp_path / "scans"), **settings)
    image, mask = clean_scene(5, (21, 19, 17))
    doubled, truth = (np.repeat(each, 2, axis=2) for each in (image, mask))
    save(tmp_path / "new.nii", doubled, affine_of("LPS", (1.0, 1.0, 0.5)))

    predict(model, [str(tmp_path / "new.nii")], tmp_path / "mask.nii")

    written = np.asanyarray(nibabel.load(tmp_path / "mask.nii").dataobj)
    assert written.shape == truth.shape
    assert (written != truth).mean() < 0.02  # at the borders of objects, where intensities are mixed


def test_channels_and_a_volume_smaller_than_a_window(tmp_path: Path) -> None:
    root = tmp_path / "scans"
    for index in range(2):
        image, mask = scene(index)
        save(root / "images" / f"v{index}.nii.gz", np.stack([image, image], -1))
        save(root / "masks" / f"v{index}.nii.gz", mask)
    model = exported(tmp_path / "model", ["onnx"], root, normalize="none", channels=2)
    image, mask = clean_scene(5, (12, 19, 17))
    save(tmp_path / "noise.nii.gz", 0 * image + 7)
    save(tmp_path / "new.nii.gz", image)

    predict(model, [str(tmp_path / "noise.nii.gz"), str(tmp_path / "new.nii.gz")], tmp_path / "mask.nii.gz")

    assert np.array_equal(np.asanyarray(nibabel.load(tmp_path / "mask.nii.gz").dataobj), mask)
    with pytest.raises(ValueError, match=r"^VOLUME: .*new.nii.gz must have 2 channels, as channels says, got 1\.$"):
        predict(model, [str(tmp_path / "new.nii.gz")], tmp_path / "mask.nii.gz")


def test_what_is_no_model_of_volumes_is_said(tmp_path: Path) -> None:
    model = exported(tmp_path / "model", ["pt2"], write_folder(tmp_path / "scans"))
    scan, mask = str(tmp_path / "scans" / "images" / "v0.nii.gz"), tmp_path / "mask.nii.gz"

    with pytest.raises(ValueError, match=r"--output must end in .nii or .nii.gz, got .*mask.png"):
        predict(model, [scan], tmp_path / "mask.png")
    with pytest.raises(FileNotFoundError, match=r"^VOLUME: there is no file .*nowhere.nii.$"):
        predict(model, [str(tmp_path / "nowhere.nii")], mask)
    (model / "model.pt2").write_bytes((model / "model.pt2").read_bytes() + b"more")
    with pytest.raises(ValueError, match=r"must be the file that certificate.json names, but its digest is another"):
        predict(model, [scan], mask)
    (model / "certificate.json").unlink()
    with pytest.raises(ValueError, match=r"model.pt2 must come with its certificate.json, because a pt2 file can run"):
        predict(model, [scan], mask)
    (model / "model.pt2").unlink()
    with pytest.raises(ValueError, match=r"must hold model.onnx or model.pt2, got neither"):
        predict(model, [scan], mask)
    (model / "model.json").write_text("{}")
    with pytest.raises(ValueError, match=r"must be of a job with data nifti"):
        predict(model, [scan], mask)
    assert not mask.exists()


# Through the service


@pytest.mark.stack
@pytest.mark.timeout(400)
def test_a_job_on_two_workers_scores_what_its_exported_model_gives(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_folder(tmp_path / "scans", 6)
    done = finished(client, client.submit(job(root, UNET))["id"])
    assert done["state"] == "succeeded", done["message"]
    monkeypatch.setattr(terminal, "Client", lambda: Client(client.url))

    spec = read_spec(job(root, UNET))
    of_volumes: dict[int, list[float]] = {1: [], 2: []}
    validated = build_data(spec.data, spec.seed).val
    for record in validated._read.records:  # type: ignore[attr-defined]
        out = tmp_path / Path(record.mask).name
        ran = CliRunner().invoke(cli.app, ["predict", done["id"], str(root / record.images[0]), "-o", str(out)])
        assert ran.exit_code == 0, ran.output
        predicted, truth = (np.asanyarray(nibabel.load(path).dataobj) for path in (out, root / record.mask))
        for label, found in of_volumes.items():
            size = (predicted == label).sum() + (truth == label).sum()
            found.append(2 * ((predicted == label) & (truth == label)).sum() / size)
    proof = json.loads(artifact(done, "export/certificate.json"))
    scores = proof["validation"][proof["statistics"]["used"]]
    for label, found in of_volumes.items():
        # The exported model rounds other sums than the trained one: a voxel between two classes may change.
        assert scores[f"val/dice_{label}"] == pytest.approx(np.mean(found), abs=2e-3)
    assert scores["val/dice"] == pytest.approx(np.mean([scores["val/dice_1"], scores["val/dice_2"]]), rel=1e-9)
    assert artifact(done, "validation/volume_0.png").startswith(b"\x89PNG")
    assert {"val/dice", "val/dice_1", "val/dice_2", "train/dice"} <= run_of(done)["metrics"].keys()
    windows = json.loads(artifact(done, "norm/windows.json"))
    assert proof["windows"] == windows
    assert windows["reference"] == "whole"
    assert run_of(done)["metrics"]["norm/window_changes"] == pytest.approx(windows["share"])
