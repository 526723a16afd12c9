"""What `norm.kind: auto` picks, from what, and what else it names."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import nn

from syncnorm.norm.kind import KINDS
from syncnorm.trainer.contract.norm_choice import choose_norm
from syncnorm.trainer.contract.plan import plan
from syncnorm.trainer.contract.spatial_maps import smallest_map, uses_windows
from syncnorm.trainer.contract.spec import JobSpec
from syncnorm.trainer.contract.spec_reader import read_spec
from syncnorm.trainer.data import build_data
from syncnorm.trainer.models import build_model


def spec(batch: int = 32, workers: int = 1, **changes: Any) -> JobSpec:
    document = {
        "name": "j",
        "model": {"name": "cnn"},
        "data": {"name": "digits", "batch_size": batch},
        "norm": {"kind": "auto"},
        "resources": {"workers": workers},
    }
    return read_spec(document | changes)


@pytest.mark.parametrize(
    ("chosen", "kind", "alternative"),
    [
        (spec(32), "batch", "group"),
        (spec(32, workers=4), "batch", "sync_batch"),
        (spec(4, workers=4), "sync_batch", "group"),
        (spec(2, workers=4), "group", "sync_batch"),
        (spec(2), "group", "batch_renorm"),
        (spec(2, model={"name": "mlp"}), "layer", "batch_renorm"),
        (spec(64, model={"name": "lstm"}), "layer", "batch"),
        (spec(4, workers=8, norm={"kind": "auto", "group": 2}), "group", "sync_batch"),
    ],
)
def test_kind_follows_from_model_batch_and_workers(chosen: JobSpec, kind: str, alternative: str) -> None:
    choice = choose_norm(chosen)

    assert choice.alternative is not None
    assert (choice.kind, choice.alternative.kind) == (kind, alternative)
    assert {choice.kind, choice.alternative.kind} <= set(KINDS)
    assert choice.evidence


WINDOWS = {"class_path": "monai.inferers.SlidingWindowInferer", "init_args": {"roi_size": [16, 16]}}


VOLUMES_OF_FILES = {
    "name": "nifti",
    "batch_size": 1,
    "init_args": {"root": "/volumes", "num_classes": 3, "patch": [32, 32, 32]},
}


def by_windows(batch: int, workers: int = 1, inferer: dict[str, Any] = WINDOWS, **changes: Any) -> JobSpec:
    model = {"name": "unet", "init_args": {"width": 4, "depth": 2}, "inferer": inferer}
    data = {"name": "digit_scenes", "batch_size": batch, "init_args": {"size": 32, "scenes": 16}}
    return spec(batch, workers, **({"model": model, "data": data} | changes))


@pytest.mark.parametrize(
    ("chosen", "kind", "says"),
    [
        (by_windows(32), "batch", "running statistics do not depend on windows"),
        (by_windows(4, workers=4), "sync_batch", "stable with the 16 of the group; its running statistics do not"),
        (by_windows(2), "batch", "on whose place the answers of group depend; .* 2 samples of many positions"),
        (by_windows(1, workers=4), "sync_batch", "4 samples of many positions"),
        (by_windows(1), "group", "only 1 sample; .* Its answers depend on the windows"),
        (by_windows(2, model={"name": "mlp", "inferer": WINDOWS}), "layer", "Its answers depend on the windows"),
        (by_windows(2, inferer={"class_path": "monai.inferers.SimpleInferer"}), "group", "normalizes each sample"),
        (by_windows(1, workers=2, model={"name": "unet"}, data=VOLUMES_OF_FILES), "sync_batch", "2 samples of many"),
    ],
)
def test_windows_speak_for_running_statistics(chosen: JobSpec, kind: str, says: str) -> None:
    choice = choose_norm(chosen)

    assert choice.kind == kind
    assert re.search(says, choice.why)
    assert any("windows.md" in line for line in choice.evidence) == (says != "normalizes each sample")


@pytest.mark.parametrize(
    ("class_path", "field"),
    [
        ("monai.inferers.SlidingWindowInferer", "model.inferer"),
        ("monai.inferers.SlidingWindowInfererAdapt", "model.inferer"),
        ("monai.inferers.SlidingWindowHoVerNetInferer", "model.inferer"),
        ("monai.inferers.PatchInferer", "model.inferer"),
        ("monai.inferers.SliceInferer", "model.inferer"),
        ("my_tiles.by_tile", "model.inferer"),
        ("monai.inferers.SimpleInferer", None),
        ("window_tools.Whole", None),
    ],
)
def test_windows_are_known_by_the_class_of_the_inferer(class_path: str, field: str | None) -> None:
    assert uses_windows(by_windows(2, inferer={"class_path": class_path})) == field


def test_volumes_of_files_are_validated_by_windows_unless_the_inferer_is_another() -> None:
    one = {"name": "unet", "inferer": {"class_path": "monai.inferers.SimpleInferer"}}

    assert uses_windows(by_windows(1, model={"name": "unet"}, data=VOLUMES_OF_FILES)) == "data"
    assert uses_windows(by_windows(1, model=one, data=VOLUMES_OF_FILES)) is None


@pytest.mark.parametrize(
    ("norm", "path"),
    [
        ({"kind": "group"}, "norm.kind"),
        ({"kind": "weight_standardization"}, "norm.kind"),
        ({"kind": "sync_batch", "overrides": [{"match": "head.*", "kind": "instance"}]}, "norm.overrides"),
        ({"kind": "sync_batch"}, None),
        ({"kind": "auto"}, None),
    ],
)
def test_plan_warns_of_statistics_that_windows_change(norm: dict[str, Any], path: str | None) -> None:
    found = {one.code: one for one in plan(by_windows(2, norm=norm), None).findings}
    whole = plan(by_windows(2, norm=norm, model={"name": "unet"}), None).findings

    assert (found["statistics_of_windows"].path if "statistics_of_windows" in found else None) == path
    assert "statistics_of_windows" not in {one.code for one in whole}
    if path is not None:
        assert found["statistics_of_windows"].severity == "warning"
        assert "model.inferer gives it windows" in found["statistics_of_windows"].message


def test_plan_names_settings_of_windows_that_an_inferer_replaces() -> None:
    model = {"name": "unet", "inferer": WINDOWS}
    chosen = {
        **VOLUMES_OF_FILES,
        "init_args": {**VOLUMES_OF_FILES["init_args"], "overlap": 0.25, "blending": "constant"},
    }

    (found,) = [
        one
        for one in plan(by_windows(1, model=model, data=chosen), None).findings
        if one.code == "windows_without_effect"
    ]

    assert found.path == "data.init_args.overlap"
    assert "overlap and blending do not affect validation: model.inferer runs volumes" in found.message
    for document in (
        by_windows(1, model=model, data=VOLUMES_OF_FILES),
        by_windows(1, model={"name": "unet"}, data=chosen),
    ):
        assert "windows_without_effect" not in {one.code for one in plan(document, None).findings}


def test_choice_shows_its_numbers_in_the_plan() -> None:
    shown = plan(spec(4, workers=4), None).as_json()["norm"]

    assert shown["why"] == "batch statistics are noisy with 4 samples per worker, and stable with the 16 of the group"
    assert shown["evidence"][:2] == [
        "samples per statistic: 4 on one worker, 16 on the 4 that share them",
        "smallest map: 4 positions, so at least 16 values on one worker",
    ]
    assert shown["alternative"] == {"kind": "group", "why": "exchanges nothing between workers"}


def test_named_kind_is_taken_as_it_is() -> None:
    choice = choose_norm(spec(2, norm={"kind": "batch"}))

    assert (choice.kind, choice.why, choice.evidence, choice.alternative) == ("batch", "named in the spec", [], None)


def test_default_is_not_called_named() -> None:
    choice = choose_norm(spec(2, norm={"group": "node"}))

    assert (choice.kind, choice.why.split(",")[0]) == ("sync_batch", "the default")


IMAGES = {"name": "synthetic", "batch_size": 2, "init_args": {"shape": [3, 37, 48], "samples": 4, "val_samples": 2}}
VOLUMES = {"name": "synthetic", "batch_size": 2, "init_args": {"shape": [1, 9, 12, 8], "samples": 4, "val_samples": 2}}
SCENES = {"name": "digit_scenes", "batch_size": 2, "init_args": {"size": 16, "scenes": 2, "val_scenes": 2}}


@pytest.mark.parametrize(
    ("model", "data"),
    [
        ({"name": "cnn"}, None),
        ({"name": "cnn", "init_args": {"channels": [4, 4]}}, None),
        ({"name": "cnn", "init_args": {"channels": [4, 4, 4, 4, 4, 4]}}, IMAGES),
        ({"name": "cnn", "init_args": {"channels": [4, 4, 4]}}, VOLUMES),
        ({"name": "vgg", "init_args": {"width": 4}}, None),
        ({"name": "vgg", "init_args": {"width": 4}}, IMAGES),
        ({"name": "resnet", "init_args": {"depth": 8}}, None),
        ({"name": "resnet", "init_args": {"depth": 8}}, IMAGES),
        ({"name": "resnet", "init_args": {"depth": 18, "width": 8}}, IMAGES),
        ({"name": "unet", "init_args": {"width": 4, "depth": 2}}, SCENES),
        ({"name": "mlp"}, None),
        ({"name": "lstm"}, None),
    ],
)
def test_smallest_map_is_the_one_that_a_norm_layer_really_sees(
    model: dict[str, Any], data: dict[str, Any] | None
) -> None:
    job = spec(2, model=model) if data is None else spec(2, model=model, data=data)
    info = build_data(job.data, 0).info
    network = build_model(job.model, job.norm, info)
    seen: list[int] = []
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            module.register_forward_pre_hook(lambda _module, args: seen.append(math.prod(args[0].shape[2:])))

    network.eval()(torch.zeros(2, *info.shape))

    assert smallest_map(job) == min(seen)


def test_map_of_a_model_of_ones_own_is_not_guessed() -> None:
    assert smallest_map(spec(2, model={"class_path": "torchvision.models.resnet18"})) is None
