from __future__ import annotations

import uuid
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from syncnorm.trainer.contract.spec import DataSpec
from syncnorm.trainer.data import Data, DataInfo, build_data
from syncnorm.trainer.data.images import ImageReader, centre_square, random_box
from syncnorm.trainer.data.loader import train_loader
from syncnorm.trainer.storage.filesystems import filesystem_at
from tests.helpers.gs import Gs
from tests.helpers.s3 import S3

MEAN, STD = torch.tensor([0.485, 0.456, 0.406])[:, None, None], torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def _build(name: str, **init_args: Any) -> Data:
    return build_data(DataSpec(name=name, batch_size=1, init_args=init_args), seed=0)


def _png(value: int | tuple[int, int, int], size: tuple[int, int] = (12, 8)) -> bytes:
    file = BytesIO()
    Image.new("L" if isinstance(value, int) else "RGB", size, value).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def s3(s3_server: S3) -> Iterator[str]:
    """The URL of a bucket. Credentials and endpoint are in the environment, as workers have them."""
    with s3_server.used():
        yield s3_server.new_bucket()


@pytest.fixture(scope="module")
def gs(gs_server: Gs) -> Iterator[str]:
    with gs_server.used():
        yield gs_server.new_bucket()


@pytest.fixture(params=["disk", "memory", "s3", "gs"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty folder, on disk and under URLs."""
    if request.param == "disk":
        yield str(tmp_path)
        return
    base = "memory:/" if request.param == "memory" else request.getfixturevalue(request.param)
    url = f"{base}/{uuid.uuid4().hex}"
    yield url
    filesystem, path = filesystem_at(url)
    if filesystem.exists(path):
        filesystem.rm(path, recursive=True)


def _write(root: str, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        filesystem, path = filesystem_at(f"{root}/{name}")
        filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)
        filesystem.pipe_file(path, content)


def _classes(count: int, *, value: int = 100, under: str = "") -> dict[str, bytes]:
    return {f"{under}{name}/{i}.png": _png(value + i) for name in ("cat", "dog") for i in range(count)}


def test_folders_are_classes_and_a_part_is_held_out(root: str) -> None:
    _write(root, _classes(10) | {"cat/notes.txt": b"", "dog/.hidden.png": b""})

    data = _build("image_folder", root=root, size=4, val_fraction=0.2)

    assert data.info == DataInfo("classification", 2, (3, 4, 4))
    assert [int(data.train[i][1]) for i in range(16)] == [0] * 8 + [1] * 8
    assert [int(data.val[i][1]) for i in range(4)] == [0, 0, 1, 1]


def test_train_and_val_folders_are_used_as_they_are(root: str) -> None:
    _write(root, _classes(2, under="train/") | {"val/dog/deep/0.png": _png((255, 0, 51))})

    data = _build("image_folder", root=root, size=4, val_fraction=0.5)

    x, y = data.val[0]
    assert (len(data.train), len(data.val), int(y)) == (4, 1, 1)  # type: ignore[arg-type]
    expected = (torch.tensor([1.0, 0.0, 0.2])[:, None, None] - MEAN) / STD
    torch.testing.assert_close(x, expected.expand(3, 4, 4))  # fp32


def test_grey_images_have_one_channel(root: str) -> None:
    _write(root, _classes(2))

    x, _ = _build("image_folder", root=root, size=4, channels=1).val[0]

    assert x.shape == (1, 4, 4)


def test_training_images_are_cropped_at_random_and_validation_images_are_not(root: str) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    _write(root, {f"{name}/{i}.png": file.getvalue() for name in "ab" for i in range(2)})

    data = _build("image_folder", root=root, size=8)

    drawn = [data.train.read(0, np.random.default_rng(seed))[0] for seed in (1, 1, 2)]  # type: ignore[attr-defined]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert data.train.augments  # type: ignore[attr-defined]
    assert not data.val.augments  # type: ignore[attr-defined]


def test_unaugmented_image_of_the_right_size_is_kept_pixel_by_pixel() -> None:
    picture = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)

    x = ImageReader(8, 3).classify(Image.fromarray(picture), None)

    expected = (torch.from_numpy(picture).movedim(2, 0) / 255 - MEAN) / STD
    torch.testing.assert_close(x, expected)  # fp32


def test_random_boxes_lie_within_the_image_with_the_asked_area_and_aspect() -> None:
    rng = np.random.default_rng(0)

    for _ in range(200):
        left, top, right, bottom = random_box(40, 30, rng, least_area=0.25)
        width, height = right - left, bottom - top
        assert left >= 0
        assert top >= 0
        assert right <= 40 + 1e-9
        assert bottom <= 30 + 1e-9
        assert width * height >= 0.25 * 40 * 30 - 1e-9
        assert 3 / 4 - 1e-9 <= width / height <= 4 / 3 + 1e-9


def test_box_of_an_image_too_long_for_any_crop_is_the_centred_square() -> None:
    box = random_box(1000, 1, np.random.default_rng(0), least_area=0.9)

    assert box == centre_square(1000, 1) == (499.5, 0, 500.5, 1)


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        (None, FileNotFoundError, r"^data.init_args.root: there is no folder .*nothing"),
        ({"cat/readme.txt": b""}, FileNotFoundError, r"^data.init_args.root: .* holds no file that ends in .bmp, .gif"),
        ({"0.png": b""}, ValueError, r"^data.init_args.root: .* must hold a folder for each class, got images only"),
        ({"cat/0.png": b""}, ValueError, r"must hold folders of two or more classes, got \['cat'\]"),
        (
            {"train/a/0.png": b"", "train/b/0.png": b"", "val/c/0.png": b""},
            ValueError,
            r"/val has classes that train has not: c",
        ),
    ],
)
def test_folder_that_can_not_be_used_is_named(
    root: str, files: dict[str, bytes] | None, error: type[Exception], message: str
) -> None:
    _write(root, files or {})

    with pytest.raises(error, match=message):
        _build("image_folder", root=root if files is not None else f"{root}/nothing")


def test_unreadable_image_is_named(root: str) -> None:
    _write(root, _classes(1) | {"cat/0.png": _png(3)[:40]})
    data = _build("image_folder", root=root, size=4)

    with pytest.raises(ValueError, match=r"data.init_args.root: cat/0.png is not an image that can be read.*Remove"):
        data.train[0]


def test_image_that_has_gone_is_named(tmp_path: Path) -> None:
    _write(str(tmp_path), _classes(1))
    data = _build("image_folder", root=str(tmp_path), size=4)
    (tmp_path / "cat" / "0.png").unlink()

    with pytest.raises(FileNotFoundError, match=r"data.init_args.root: .*/cat/0.png was deleted since the job began"):
        data.train[0]


def test_url_of_an_unknown_kind_is_refused_with_the_extras() -> None:
    with pytest.raises(
        ValueError, match=r"data.init_args.root: nope://x can't be read.*pip install 'syncnorm\[s3,gcs,azure\]'"
    ):
        _build("image_folder", root="nope://x")


def _masked(count: int = 4, **changed: bytes) -> dict[str, bytes]:
    files = {f"images/{i}.png": _png((i, i, i)) for i in range(count)}
    files |= {f"masks/{i}.png": _png(i % 3) for i in range(count)}
    return files | {name.replace("__", "/") + ".png": content for name, content in changed.items()}


def test_masks_are_classes_of_pixels(root: str) -> None:
    _write(root, _masked())

    data = _build("segmentation_folder", root=root, num_classes=3, size=4, val_fraction=0.25)

    assert data.info == DataInfo("segmentation", 3, (3, 4, 4))
    assert (len(data.train), len(data.val)) == (3, 1)  # type: ignore[arg-type]
    for index in range(3):
        x, y = data.train[index]
        grey = (x * STD + MEAN)[0, 0, 0] * 255
        assert y.shape == (4, 4)
        assert set(y.unique().tolist()) == {round(grey.item()) % 3}


def test_image_and_mask_are_cut_alike(root: str) -> None:
    half = np.zeros((16, 16), dtype=np.uint8)
    half[:, 8:] = 1
    image, mask = BytesIO(), BytesIO()
    Image.fromarray(half * 255).save(image, "PNG")
    Image.fromarray(half).save(mask, "PNG")
    _write(
        root,
        {
            f"{folder}/{i}.png": file
            for folder, file in (("images", image.getvalue()), ("masks", mask.getvalue()))
            for i in range(2)
        },
    )
    data = _build("segmentation_folder", root=root, num_classes=2, size=16, channels=1)

    for seed in range(10):
        x, y = data.train.read(0, np.random.default_rng(seed))  # type: ignore[attr-defined]
        bright = x[0] > (0.5 - 0.449) / 0.226
        # bilinear in the image, nearest in the mask: they may differ in one column
        assert (bright.long() != y).float().mean() <= 1 / 16


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"images__lonely": _png(1)}, FileNotFoundError, r"must have a mask for every image; there is none for lonely"),
        ({"masks__0": _png(7)}, ValueError, r"masks/0.png holds the class 7, but data.init_args.num_classes is 3"),
        ({"masks__0": _png((1, 1, 1))}, ValueError, r"masks/0.png must have one value a pixel.*mode RGB"),
        ({"masks__0": _png(1, (5, 5))}, ValueError, r"masks/0.png must be as large as its image, got \(5, 5\) for"),
        ({"masks__0": b"x"}, ValueError, r"masks/0.png is not an image that can be read"),
    ],
)
def test_mask_that_can_not_be_used_is_named(
    root: str, changed: dict[str, bytes], error: type[Exception], message: str
) -> None:
    _write(root, _masked(**changed))

    with pytest.raises(error, match=message):
        data = _build("segmentation_folder", root=root, num_classes=3, size=4)
        for part in (data.train, data.val):
            for index in range(len(part)):  # type: ignore[arg-type]
                part[index]


def _table(root: str, name: str, labels: list[Any], **columns: Any) -> str:
    images = [_png((i, 0, 0)) for i in range(len(labels))]
    file = BytesIO()
    pq.write_table(pa.table({"image": images, "label": labels, **columns}), file)
    _write(root, {name: file.getvalue()})
    return f"{root}/{name}"


@pytest.mark.parametrize("labels", [["dog", "cat"] * 5, [1, 0] * 5])
def test_parquet_rows_are_images_with_labels(root: str, labels: list[Any]) -> None:
    path = _table(root, "train.parquet", labels)

    data = _build("parquet", path=path, size=4, val_fraction=0.2)

    assert data.info == DataInfo("classification", 2, (3, 4, 4))
    assert (len(data.train), len(data.val)) == (8, 2)  # type: ignore[arg-type]
    for part in (data.train, data.val):
        for index in range(len(part)):  # type: ignore[arg-type]
            x, y = part[index]
            row = round(((x * STD + MEAN)[0, 0, 0] * 255).item())
            assert int(y) == (row + 1) % 2


@pytest.mark.parametrize(
    ("task", "columns"),
    [("regression", {"a": [0.5 * i for i in range(10)]}), ("multilabel", {"a": [0, 1] * 5, "b": [True] * 10})],
)
def test_parquet_columns_are_the_targets_of_their_row(root: str, task: str, columns: dict[str, list[Any]]) -> None:
    path = _table(root, "train.parquet", [0] * 10, **columns)

    data = _build("parquet", path=path, size=4, task=task, target_columns=list(columns), val_fraction=0.2)

    assert data.info == DataInfo(task, len(columns), (3, 4, 4))  # type: ignore[arg-type]
    assert (len(data.train), len(data.val)) == (8, 2)  # type: ignore[arg-type]
    for part in (data.train, data.val):
        for index in range(len(part)):  # type: ignore[arg-type]
            x, y = part[index]
            row = round(((x * STD + MEAN)[0, 0, 0] * 255).item())
            assert y.tolist() == [float(values[row]) for values in columns.values()]


@pytest.mark.parametrize(
    ("init_args", "message"),
    [
        (
            {"task": "regression", "target_columns": ["text"]},
            r"column text of .* must hold numbers for regression, got st",
        ),
        (
            {"task": "regression", "target_columns": ["hole"]},
            r"column hole .* finite numbers for regression, got nan in r",
        ),
        (
            {"task": "multilabel", "target_columns": ["label", "two"]},
            r"column two of .* must hold 0 or 1 .* got 2.0 in row 1",
        ),
        (
            {"task": "regression", "target_columns": ["far"]},
            r"has no far. It has .*; set image_column or target_columns",
        ),
        ({"task": "regression"}, r"task regression needs target_columns, at least 1"),
        ({"task": "multilabel", "target_columns": ["two"]}, r"task multilabel needs target_columns, at least 2"),
        ({"target_columns": ["two"]}, r"target_columns are for task regression or multilabel"),
    ],
)
def test_parquet_targets_that_can_not_be_used_are_named(root: str, init_args: dict[str, Any], message: str) -> None:
    path = _table(root, "train.parquet", [0, 1], text=["a", "b"], hole=[1.0, None], two=[0, 2])

    with pytest.raises(ValueError, match=message):
        _build("parquet", path=path, size=4, **init_args)


def test_parquet_folder_with_struct_images_and_a_validation_file(root: str) -> None:
    structs = [{"bytes": _png((9, 9, 9)), "path": "x"}] * 2
    for name in ("train/0.parquet", "train/1.parquet", "val.parquet"):
        file = BytesIO()
        pq.write_table(pa.table({"image": structs, "label": [0, 1]}), file)
        _write(root, {name: file.getvalue()})

    data = _build("parquet", path=f"{root}/train", val_path=f"{root}/val.parquet", size=4)

    assert (len(data.train), len(data.val)) == (4, 2)  # type: ignore[arg-type]
    assert data.val[1][0].shape == (3, 4, 4)


@pytest.mark.parametrize(
    ("init_args", "labels", "error", "message"),
    [
        ({"path": "none.parquet"}, [0, 1], FileNotFoundError, r"^data.init_args.path: there is no .*none.parquet"),
        ({"val_path": "none"}, [0, 1], FileNotFoundError, r"^data.init_args.val_path: there is no .*none"),
        ({"image_column": "img"}, [0, 1], ValueError, r"has no img. It has image, label; set image_column"),
        ({}, [0, -1], ValueError, r"labels of .* must all be integers from 0 on, or all names; got int, the least -1"),
        ({}, [0.5, 1.0], ValueError, r"labels of .* must all be integers from 0 on, or all names; got float"),
        ({"path": "text.parquet"}, [0, 1], ValueError, r"^data.init_args.path: .* can't be read as Parquet"),
    ],
)
def test_parquet_that_can_not_be_used_is_named(
    root: str, init_args: dict[str, Any], labels: list[Any], error: type[Exception], message: str
) -> None:
    _table(root, "good.parquet", labels)
    _write(root, {"text.parquet": b"no parquet at all"})
    paths = {key: f"{root}/{value}" for key, value in init_args.items() if key.endswith("path")}

    with pytest.raises(error, match=message):
        _build("parquet", **({"path": f"{root}/good.parquet"} | init_args | paths))


def test_row_that_is_no_image_is_named(root: str) -> None:
    file = BytesIO()
    pq.write_table(pa.table({"image": [b"x", None], "label": [0, 1]}), file)
    _write(root, {"bad.parquet": file.getvalue()})
    data = _build("parquet", path=f"{root}/bad.parquet", val_path=f"{root}/bad.parquet")

    for row in range(2):
        with pytest.raises(ValueError, match=rf"data.init_args.path: row {row} of .*bad.parquet is not an image"):
            data.train[row]


def test_worker_processes_read_the_same_crops(tmp_path: Path) -> None:
    _write(str(tmp_path), _classes(4))
    here, there = (_build("image_folder", root=str(tmp_path), size=4, num_workers=count) for count in (0, 1))

    batches = zip(train_loader(here, global_batch=3), train_loader(there, global_batch=3), strict=True)
    same = [torch.equal(one.x, other.x) and torch.equal(one.y, other.y) for one, other in batches]

    assert same == [True, True]


@pytest.mark.parametrize("store", ["s3", "gs"])
def test_worker_processes_read_from_object_storage(store: str, request: pytest.FixtureRequest) -> None:
    root = f"{request.getfixturevalue(store)}/{uuid.uuid4().hex}"
    _write(root, _classes(6))
    data = _build("image_folder", root=root, size=4, val_fraction=0.5, num_workers=2)

    batches = list(train_loader(data, global_batch=2))

    assert [batch.x.shape for batch in batches] == [(2, 3, 4, 4)] * 3
    assert sorted(int(y) for batch in batches for y in batch.y) == [0, 0, 0, 1, 1, 1]
