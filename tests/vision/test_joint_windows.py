"""Joint windows of data nifti: validation and `syncnorm predict` answer as the network does for the whole volume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from typer.testing import CliRunner

from syncnorm.service.cli import main as cli
from syncnorm.service.cli import terminal
from syncnorm.service.client.client import Client
from syncnorm.trainer.contract.spec_reader import read_spec
from syncnorm.trainer.export.certification import CERTIFICATE_FILE
from syncnorm.trainer.export.formats import export
from syncnorm.trainer.export.forward_inputs import ForwardInputs
from syncnorm.trainer.export.weights import write_weights
from syncnorm.trainer.storage.atomic_files import sha256_of
from syncnorm.trainer.training.conversion import convert
from syncnorm.trainer.training.tasks.joint_windows import JointWindows
from syncnorm.trainer.worker.model_description import describe_network
from syncnorm.trainer.worker.model_inspection import inspect
from syncnorm.trainer.worker.module_and_data import assemble
from tests.stack.conftest import finished
from tests.vision.conftest import artifact

nibabel = pytest.importorskip("nibabel")
from syncnorm.trainer.prediction.volume_mask import predict  # noqa: E402 - needs nibabel
from tests.helpers.vision.nifti_folder import save, scene, write_folder  # noqa: E402 - needs nibabel
from tests.vision.test_volume_jobs import DYN_UNET, UNET, job  # noqa: E402 - needs nibabel


def document(root: Path, model: dict[str, Any] = UNET, **init_args: Any) -> dict[str, Any]:
    return job(root, model, workers=1, **init_args) | {"norm": {"kind": "group"}}


def exported(folder: Path, made: dict[str, Any], formats: list[str]) -> nn.Module:
    """The files that `syncnorm get` saves of a job, whose network has weights of its own."""
    spec = read_spec(made)
    assembly = assemble(spec, 0, 1)
    assert assembly.task_data is not None
    data = assembly.task_data.data
    torch.manual_seed(3)
    network, _ = convert(assembly.module.network, spec, None)  # type: ignore[union-attr,arg-type]
    for parameter in network.parameters():
        nn.init.normal_(parameter, 0, 0.5)
    written = write_weights(network.eval(), describe_network("job_1", spec, data), folder)
    files = export(network, ForwardInputs((torch.zeros(2, *data.info.shape),)), formats, folder) if formats else []
    digests = {path.name: sha256_of(path) for path in [*written, *(file.path for file in files)]}
    (folder / CERTIFICATE_FILE).write_text(json.dumps({"files": digests}))
    return network


def scores_of(network: nn.Module, image: np.ndarray) -> Tensor:
    """For the whole volume, with zeros up to even sides."""
    x = torch.from_numpy(image)[None, None]
    pads = [pad for side in x.shape[:1:-1] for pad in (0, side % 2)]
    with torch.no_grad():
        y: Tensor = network(nn.functional.pad(x, pads))
    return y[0][(slice(None), *map(slice, image.shape))]


def scan(path: Path) -> np.ndarray:
    image, _ = scene(5, (21, 19, 17))
    image = (image / 100).astype(np.float32)
    save(path, image)
    return image


def mask_of(path: Path) -> np.ndarray:
    return np.asanyarray(nibabel.load(path).dataobj)


@pytest.mark.parametrize("model", [UNET, DYN_UNET], ids=["built in", "DynUNet"])
def test_joint_windows_give_the_classes_of_the_whole_volume(tmp_path: Path, model: dict[str, Any]) -> None:
    root = write_folder(tmp_path / "scans")
    made = document(root, model, windows="joint", normalize="none", patch=[8, 8, 8])
    network, image = exported(tmp_path / "model", made, []), scan(tmp_path / "new.nii.gz")
    if model is DYN_UNET:
        image = np.pad(image, [(0, 3), (0, 1), (0, 3)])  # to its total stride of 4

    found = predict(tmp_path / "model", [str(tmp_path / "new.nii.gz")], tmp_path / "mask.nii.gz")

    expected = scores_of(network, image).argmax(0).numpy()[:21, :19, :17]
    assert found["windows"] == "joint"
    assert len(np.unique(expected)) > 1
    assert (mask_of(tmp_path / "mask.nii.gz") != expected).mean() < 1e-3  # rounding between two classes


class OwnModule(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Conv3d(1, 3, 1)

    def training_step(self, batch: Any, _batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1].clamp(0, 2))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


OWN = {"class_path": f"{OwnModule.__module__}.OwnModule"}


def test_own_module_is_told_which_settings_of_windows_it_replaces(tmp_path: Path) -> None:
    made = document(write_folder(tmp_path / "scans"), OWN, windows_at_once=2)
    made.pop("optimizer", None)

    (found,) = [one for one in inspect(read_spec(made)).findings if one.code == "windows_without_effect"]

    assert found.path == "data.init_args.windows_at_once"
    assert "the validation_step of your module runs volumes" in found.message


@pytest.mark.parametrize(("setting", "value"), [("windows", "joint"), ("overlap", "auto")])
def test_own_module_can_not_have_windows_that_need_its_network(tmp_path: Path, setting: str, value: str) -> None:
    made = document(write_folder(tmp_path / "scans"), OWN, **{setting: value})
    made.pop("optimizer", None)

    with pytest.raises(ValueError, match=f"data.init_args.{setting}: {value} must be left out, because OwnModule"):
        assemble(read_spec(made), 0, 1)


def test_predict_runs_windows_as_you_ask(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "scans")
    network = exported(tmp_path / "model", document(root, normalize="none", patch=[8, 8, 8]), ["onnx"])
    image, files = scan(tmp_path / "new.nii.gz"), [str(tmp_path / "new.nii.gz")]

    as_trained = predict(tmp_path / "model", files, tmp_path / "a.nii.gz")
    separate = predict(tmp_path / "model", files, tmp_path / "b.nii.gz", "separate")
    joint = predict(tmp_path / "model", files, tmp_path / "c.nii.gz", "joint")

    expected = scores_of(network, image).argmax(0).numpy()
    assert [one["windows"] for one in (as_trained, separate, joint)] == ["separate", "separate", "joint"]
    assert np.array_equal(mask_of(tmp_path / "a.nii.gz"), mask_of(tmp_path / "b.nii.gz"))
    assert (mask_of(tmp_path / "b.nii.gz") != expected).mean() > 0.01  # group takes statistics from each window
    assert (mask_of(tmp_path / "c.nii.gz") != expected).mean() < 1e-3


def test_an_exported_file_runs_windows_that_show_all(tmp_path: Path) -> None:
    root = tmp_path / "scans"
    for index, (image, mask) in enumerate(scene(seed, (26, 26, 26)) for seed in range(2)):
        save(root / "images" / f"v{index}.nii.gz", image)
        save(root / "masks" / f"v{index}.nii.gz", mask)
    made = document(root, overlap="auto", normalize="none", patch=[24, 24, 24]) | {"norm": {"kind": "batch"}}
    network, image = exported(tmp_path / "model", made, ["onnx"]), scan(tmp_path / "new.nii.gz")
    wide = np.pad(np.concatenate([image, image]), [(0, 0), (0, 6), (0, 8)])
    save(tmp_path / "wide.nii.gz", wide)

    predict(tmp_path / "model", [str(tmp_path / "wide.nii.gz")], tmp_path / "mask.nii.gz")

    expected = scores_of(network, wide).argmax(0).numpy()
    assert json.loads((tmp_path / "model" / "model.json").read_text())["receptive_field"]["reach"] == [8, 8, 8]
    assert (mask_of(tmp_path / "mask.nii.gz") != expected).mean() < 1e-3


def test_why_joint_windows_can_not_be_run_is_said(tmp_path: Path) -> None:
    model, files = tmp_path / "model", [str(tmp_path / "new.nii.gz")]
    exported(model, document(write_folder(tmp_path / "scans"), DYN_UNET, windows="joint"), [])
    scan(tmp_path / "new.nii.gz")
    about = json.loads((model / "model.json").read_text())

    def refused(match: str) -> None:
        with pytest.raises(ValueError, match=match) as raised:
            predict(model, files, tmp_path / "mask.nii.gz")
        assert "--windows separate" in str(raised.value)

    (model / "model.json").write_text(json.dumps(about | {"code": {"package": "sha256:0"}}))
    refused("joint windows need the trained network, .* its class is in a package of code that the job brought")
    (model / "model.json").write_text(json.dumps(about | {"job_id": "another"}))
    refused(r"model.json must be the file that certificate.json names, but its digest is another one")
    (model / "certificate.json").unlink()
    refused(r"model.json must come with its certificate.json, because the class that it names can run code")
    (model / "weights.safetensors").write_bytes(b"")
    refused("weights.safetensors must be the file that model.json names")
    assert not (tmp_path / "mask.nii.gz").exists()


def test_a_network_that_sees_everything_is_refused_in_the_plan(tmp_path: Path) -> None:
    excited = {"class_path": "tests.helpers.vision.scales.Excited"}
    root = write_folder(tmp_path / "scans")

    found = inspect(read_spec(document(root, excited, windows="joint"))).findings

    (error,) = [one for one in found if one.severity == "error"]
    assert error.path == "data.init_args.windows"
    assert "adaptive_avg_pool3d pools the whole picture" in error.message
    assert "Without it, volumes are run by windows" in error.message


def test_a_volume_is_run_by_tiles_where_they_save_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_folder(tmp_path / "scans")
    network = exported(tmp_path / "model", document(root, DYN_UNET, windows="joint", normalize="none"), [])
    image = scan(tmp_path / "new.nii.gz")
    monkeypatch.setattr(JointWindows, "tile", lambda *_: (12, 20, 20))

    predict(tmp_path / "model", [str(tmp_path / "new.nii.gz")], tmp_path / "mask.nii.gz")

    expected = scores_of(network, np.pad(image, [(0, 3), (0, 1), (0, 3)])).argmax(0).numpy()[:21, :19, :17]
    assert (mask_of(tmp_path / "mask.nii.gz") != expected).mean() < 1e-3


# Through the service


@pytest.mark.stack
@pytest.mark.timeout(400)
def test_a_job_scores_what_predict_gives(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_folder(tmp_path / "scans", 4)
    made = document(root, windows="joint", patches_per_volume=8) | {"export": {"formats": ["onnx"]}}

    done = finished(client, client.submit(made)["id"])

    assert done["state"] == "succeeded", done["message"]
    monkeypatch.setattr(terminal, "Client", lambda: Client(client.url))
    proof, about = (json.loads(artifact(done, f"export/{name}.json")) for name in ("certificate", "model"))
    validation = assemble(read_spec(made), 0, 1).task_data.data.val  # type: ignore[union-attr]
    of_volumes = []
    for record in validation._read.records:  # type: ignore[attr-defined]
        out = tmp_path / Path(record.mask).name
        ran = CliRunner().invoke(cli.app, ["predict", done["id"], str(root / record.images[0]), "-o", str(out)])
        assert ran.exit_code == 0, ran.output
        assert "by joint windows" in " ".join(ran.output.split())
        predicted, truth = mask_of(out) == 1, mask_of(root / record.mask) == 1
        of_volumes.append(2 * (predicted & truth).sum() / (predicted.sum() + truth.sum()))
    scores = proof["validation"][proof["statistics"]["used"]]
    assert scores["val/dice_1"] == pytest.approx(np.mean(of_volumes), abs=2e-3)  # a voxel between two classes
    assert (proof["windows"]["validated"], proof["windows"]["reference"]) == ("joint", "whole")
    assert 0 <= proof["windows"]["share"] < 1
    assert about["receptive_field"]["strides"] == [2, 2, 2]
