"""Images with a COCO JSON file: what is read, and every kind of wrong record named before training."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image

from syncnorm.trainer.contract.spec import DataSpec
from syncnorm.trainer.data import Data, build_data
from syncnorm.trainer.data.info import Category
from syncnorm.trainer.data.loader import train_loader, val_loader
from syncnorm.trainer.errors import MissingDataError
from tests.helpers.vision.coco_scenes import write_scenes

Document = dict[str, Any]


def data_of(root: Path | str, **init_args: Any) -> Data:
    given = {"root": f"{root}/images", "annotations": f"{root}/annotations.json", "num_workers": 0, **init_args}
    return build_data(DataSpec(name="coco", batch_size=1, init_args=given), seed=0)


@pytest.fixture
def scenes(tmp_path: Path) -> Document:
    return write_scenes(tmp_path, 20)


def test_categories_become_labels_by_their_ids(tmp_path: Path, scenes: Document) -> None:
    data = data_of(tmp_path, augment=False)

    assert data.info.categories == (Category(3, "tall"), Category(7, "wide"))
    assert (data.info.task, data.info.num_classes) == ("detection", 2)
    by_image = {one["id"]: [a for a in scenes["annotations"] if a["image_id"] == one["id"]] for one in scenes["images"]}
    for part in (data.train, data.val):
        for index in range(len(part)):  # type: ignore[arg-type]
            image, target = part[index]
            wanted = [one for one in by_image[target["image_id"]] if not one["iscrowd"]]
            assert target["labels"].tolist() == [{3: 1, 7: 2}[one["category_id"]] for one in wanted]
            boxes = [[x, y, x + w, y + h] for x, y, w, h in (one["bbox"] for one in wanted)]
            assert target["boxes"].tolist() == boxes
            assert target["truth"] == by_image[target["image_id"]]  # crowds, too
            assert (image.shape[0], image.dtype) == (3, torch.float32)
            assert 0 <= float(image.min()) <= float(image.max()) <= 1


def test_held_out_images_are_no_training_images(tmp_path: Path, scenes: Document) -> None:
    data = data_of(tmp_path, val_fraction=0.25)

    ids = [{part[index][1]["image_id"] for index in range(len(part))} for part in (data.train, data.val)]  # type: ignore[arg-type]
    assert (len(ids[0]), len(ids[1])) == (15, 5)
    assert ids[0] | ids[1] == {one["id"] for one in scenes["images"]}


def test_mirrored_image_has_mirrored_boxes(tmp_path: Path, scenes: Document) -> None:
    data = data_of(tmp_path)
    plain = {target["image_id"]: (image, target) for image, target in data.train}
    loader, mirrored = train_loader(data, global_batch=4, seed=3), 0

    for batch in loader:
        for image, target in zip(batch.x, batch.y, strict=True):
            as_it_is, boxes = plain[target["image_id"]][0], plain[target["image_id"]][1]["boxes"]
            is_same = torch.equal(image, as_it_is)
            mirrored += not is_same
            assert torch.equal(image if is_same else image.flip(-1), as_it_is)
            flipped = torch.stack(
                [image.shape[-1] - boxes[:, 2], boxes[:, 1], image.shape[-1] - boxes[:, 0], boxes[:, 3]], 1
            )
            assert torch.equal(target["boxes"], boxes if is_same else flipped)
    assert 0 < mirrored < len(plain)


def test_draws_of_an_image_depend_on_the_epoch_and_not_on_the_workers(tmp_path: Path, scenes: Document) -> None:
    data = data_of(tmp_path)

    def draws(workers: int, epoch: int) -> dict[int, int]:
        found = {}
        for rank in range(workers):
            loader = train_loader(data, global_batch=4, rank=rank, world_size=workers, seed=1)
            loader.set_epoch(epoch)
            found |= {target["image_id"]: target["draw"] for batch in loader for target in batch.y}
        return found

    assert draws(1, 0) == draws(3, 0)
    assert not set(draws(1, 0).values()) & set(draws(1, 1).values())


def test_wide_images_are_batched_with_wide_ones(tmp_path: Path, scenes: Document) -> None:
    by_id = {one["id"]: one["width"] > one["height"] for one in scenes["images"]}
    assert len(set(by_id.values())) == 2

    def mixed(**init_args: Any) -> int:
        batches = train_loader(data_of(tmp_path, val_fraction=0.1, **init_args), global_batch=3)
        return sum(len({by_id[target["image_id"]] for target in batch.y}) > 1 for batch in batches)

    assert mixed() <= 1  # what is left of both
    assert mixed(aspect_ratio_grouping=False) > 1


def test_worker_without_images_gets_an_empty_batch(tmp_path: Path, scenes: Document) -> None:
    data = data_of(tmp_path, val_fraction=0.2)

    *_, last = val_loader(data, global_batch=3, rank=2, world_size=3)

    assert (list(last.x), list(last.y), last.weight) == ([], [], 0.0)


def test_validation_has_a_file_of_its_own(tmp_path: Path, scenes: Document) -> None:
    other = write_scenes(tmp_path / "other", 6, seed=1)

    data = data_of(tmp_path, val_root=f"{tmp_path}/other/images", val_annotations=f"{tmp_path}/other/annotations.json")

    assert (len(data.train), len(data.val)) == (20, len(other["images"]))  # type: ignore[arg-type]


def test_images_in_both_parts_are_told(tmp_path: Path, scenes: Document, caplog: pytest.LogCaptureFixture) -> None:
    data_of(tmp_path, val_annotations=f"{tmp_path}/annotations.json")

    assert "val_annotations puts 20 files into training and into validation: 000.png, 001.png" in caplog.text


def test_images_and_annotations_are_read_from_urls(tmp_path: Path, scenes: Document) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path), "/scenes", recursive=True)

    found = data_of("memory://scenes", augment=False)

    wanted = data_of(tmp_path, augment=False)
    assert torch.equal(found.train[3][0], wanted.train[3][0])
    memory.rm("/scenes", recursive=True)


# Wrong files, named with the record


def _first(name: str, /, **changes: Any) -> Callable[[Document], None]:
    return lambda document: document[name][0].update(changes)


WRONG: dict[str, tuple[Callable[[Document], None], str]] = {
    "no list": (lambda d: d.pop("categories"), r"must be a COCO file, .* it has no list categories"),
    "no category": (lambda d: d["categories"].clear(), r"it has no category"),
    "no image": (lambda d: d["images"].clear(), r"it has no image"),
    "image without a size": (
        lambda d: d["images"][2].pop("width"),
        r"image 2 of the list needs whole numbers `id`, `wid",
    ),
    "image twice": (lambda d: d["images"].append(d["images"][0]), r"two images have the id 100"),
    "category twice": (_first("categories", id=3), r"two categories have the id 3"),
    "name twice": (_first("categories", name="tall"), r"two categories have the name tall"),
    "unknown image": (_first("annotations", image_id=9), r"annotation 0 is of image 9, which the file does not have"),
    "unknown category": (
        _first("annotations", category_id=4),
        r"annotation 0 has the category 4, which the file does not have",
    ),
    "no area": (
        _first("annotations", bbox=[3, 4, 0, 5]),
        r"annotation 0 of image 100 \(000.png, \d+x\d+\): the box \[3, 4, 0, 5\] has no area\. With invalid_boxes: rep",
    ),
    "partly outside": (
        _first("annotations", bbox=[3, -4, 9, 9]),
        r"annotation 0 .*: the box .* leaves the image\. With inv",
    ),
    "outside": (_first("annotations", bbox=[300, 4, 5, 5]), r"annotation 0 .*: the box .* lies outside of the image"),
    "no number": (_first("annotations", bbox=[1, 2, "3", 4]), r"annotation 0 .*: `bbox` must be four finite numbers"),
    "no box": (lambda d: d["annotations"][0].pop("bbox"), r"annotation 0 .*: `bbox` must be four finite .*, got None"),
    "missing file": (_first("images", file_name="gone.png"), r"must hold the 18 images of .*: gone.png \(image 100\)"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_record_is_named(what: str, tmp_path: Path, scenes: Document) -> None:
    change, message = WRONG[what]
    change(scenes)
    (tmp_path / "annotations.json").write_text(json.dumps(scenes))

    with pytest.raises((ValueError, MissingDataError), match=r"^data.init_args.(annotations|root): .*" + message):
        data_of(tmp_path)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (
            {"size": [9, 9], "counts": [81]},
            r"the mask must be as large as its image, height and width .*, got \[9, 9\]",
        ),
        (None, r"it has no mask in `segmentation`; set masks: false"),
        ([[1, 2, 3]], r"`segmentation` must be polygons of three points or more"),
    ],
)
def test_wrong_mask_is_named_where_masks_are_asked_for(
    segmentation: Any, message: str, tmp_path: Path, scenes: Document
) -> None:
    scenes["annotations"][0]["segmentation"] = segmentation
    (tmp_path / "annotations.json").write_text(json.dumps(scenes))

    data_of(tmp_path)
    with pytest.raises(ValueError, match=rf"annotations.json: annotation 0 of image 100 .*{message}"):
        data_of(tmp_path, masks=True)


@pytest.mark.parametrize("what", ["refuse", "repair"])
def test_corners_in_place_of_sizes_are_refused_for_what_they_are(what: str, tmp_path: Path, scenes: Document) -> None:
    for record in scenes["annotations"]:
        left, top, width, height = record["bbox"]
        record["bbox"] = [left, top, left + width, top + height]
    (tmp_path / "annotations.json").write_text(json.dumps(scenes))

    with pytest.raises(ValueError, match=r"all \d+ boxes look like \[left, top, right, bottom\]"):
        data_of(tmp_path, invalid_boxes=what)


def test_corrupt_json_says_where(tmp_path: Path, scenes: Document) -> None:
    (tmp_path / "annotations.json").write_text('{"images": [1, 2')

    with pytest.raises(ValueError, match=r"annotations.json is not JSON that can be read \(.* line 1 column"):
        data_of(tmp_path)


def test_many_problems_are_counted(tmp_path: Path, scenes: Document) -> None:
    for record in scenes["annotations"]:
        record["category_id"] = 1
    (tmp_path / "annotations.json").write_text(json.dumps(scenes))

    with pytest.raises(ValueError, match=rf"annotation 0 .*; and {len(scenes['annotations']) - 5} further problems\.$"):
        data_of(tmp_path)


def test_categories_of_validation_must_be_those_of_training(tmp_path: Path, scenes: Document) -> None:
    scenes["categories"][0]["name"] = "broad"
    (tmp_path / "val.json").write_text(json.dumps(scenes))

    with pytest.raises(
        ValueError, match=r"val.json: its categories must be those of training, 3 tall, 7 wide, but .* 7 b"
    ):
        data_of(tmp_path, val_annotations=f"{tmp_path}/val.json")


def test_repaired_boxes_are_cut_or_left_out_and_told(
    tmp_path: Path, scenes: Document, caplog: pytest.LogCaptureFixture
) -> None:
    scenes["annotations"][0]["bbox"] = [-5, 1, 10, 10]
    scenes["annotations"][1]["bbox"] = [1, 1, 0, 10]
    (tmp_path / "annotations.json").write_text(json.dumps(scenes))

    with caplog.at_level(logging.WARNING):
        data = data_of(tmp_path, invalid_boxes="repair", val_annotations=f"{tmp_path}/annotations.json")

    assert "boxes of" in caplog.text
    assert "annotation 1 of image" in caplog.text
    boxes = {tuple(box) for _, target in data.val for box in target["boxes"].tolist()}
    assert (0.0, 1.0, 5.0, 11.0) in boxes
    assert len(boxes) == sum(not one["iscrowd"] for one in scenes["annotations"]) - 1


def test_box_that_is_rounded_out_of_its_image_is_cut_silently(tmp_path: Path, scenes: Document) -> None:
    width = scenes["images"][0]["width"]
    scenes["annotations"][0]["bbox"] = [width - 10.0, 1, 10.7, 10]
    (tmp_path / "annotations.json").write_text(json.dumps(scenes))

    boxes = data_of(tmp_path, val_annotations=f"{tmp_path}/annotations.json").val[0][1]["boxes"]

    assert [width - 10.0, 1, width, 11] in boxes.tolist()


def test_picture_that_cannot_be_read_is_named(tmp_path: Path, scenes: Document) -> None:
    (tmp_path / "images" / "000.png").write_bytes(b"\x89PNG broken")

    with pytest.raises(ValueError, match=r"^data.init_args.root: 000.png is not an image that can be read"):
        data_of(tmp_path, val_annotations=f"{tmp_path}/annotations.json").val[0]


def test_picture_of_another_size_is_named(tmp_path: Path, scenes: Document) -> None:
    file = BytesIO()
    Image.fromarray(np.zeros((9, 7, 3), np.uint8)).save(file, "PNG")
    (tmp_path / "images" / "000.png").write_bytes(file.getvalue())

    with pytest.raises(
        ValueError, match=r"000.png has 7x9 pixels, but the annotations of image 100 say \d+x\d+. Correct"
    ):
        data_of(tmp_path, val_annotations=f"{tmp_path}/annotations.json").val[0]


def test_missing_annotation_file_is_named(tmp_path: Path, scenes: Document) -> None:
    with pytest.raises(
        MissingDataError, match=r"^data.init_args.annotations: there is no file .*gone.json\. Every worker"
    ):
        data_of(tmp_path, annotations=f"{tmp_path}/gone.json")
