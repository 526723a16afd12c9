"""Data `nifti`: files are brought to one grid, cut into patches, kept, and checked before training."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch

from syncnorm.trainer.contract.spec import DataSpec
from syncnorm.trainer.data import Data, build_data
from syncnorm.trainer.data.loader import train_loader
from syncnorm.trainer.data.user.named_data import NamedData

nibabel = pytest.importorskip("nibabel")
from tests.helpers.vision.nifti_folder import affine_of, save, scene, write_folder  # noqa: E402 - needs nibabel

SETTINGS = {"patch": [8, 8, 8]}


def build(root: Path, seed: int = 0, **init_args: Any) -> Data:
    given = {"root": str(root), "num_classes": 3, **SETTINGS, **init_args}
    return build_data(DataSpec(name="nifti", batch_size=1, init_args=given), seed)


def listed(root: Path, *volumes: tuple[Any, str], validation: tuple[Any, str] | None = None) -> dict[str, Any]:
    """Writes a datalist."""
    content = {"training": [{"image": image, "label": mask} for image, mask in volumes]}
    last = validation or volumes[-1]
    content["validation"] = [{"image": last[0], "label": last[1]}]
    (root / "list.json").write_text(json.dumps(content))
    return {"datalist": "list.json"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "scans")


# Values of masks, and voxels of different sizes


def test_labels_name_the_values_of_the_classes(root: Path) -> None:
    plain = build(root)
    expected = plain.train[0][1], plain.val[0][1]
    for path in (root / "masks").iterdir():
        mask = np.asanyarray(nibabel.load(path).dataobj)
        save(path, np.array([0, 400, 1], np.int16)[mask])

    named = build(root, labels=[0, 400, 1])

    assert torch.equal(named.train[0][1], expected[0])
    assert torch.equal(named.val[0][1], expected[1])
    with pytest.raises(
        ValueError, match=r"holds the value 400, which is none of data.init_args.labels \[0, 1, 2\]\. Add"
    ):
        build(root, labels=[0, 1, 2])
    with pytest.raises(ValueError, match="labels must name a value for each of num_classes 3; got 2"):
        build(root, labels=[0, 400])


def test_voxels_of_different_sizes_are_logged_where_nothing_is_resampled(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for folder in ("images", "masks"):
        content = np.asanyarray(nibabel.load(root / folder / "v1.nii.gz").dataobj)
        save(root / folder / "v1.nii.gz", content, affine_of("RAS", (3.0, 1.0, 1.0))[[1, 2, 0, 3]])

    build(root, spacing=[1, 1, 1], patch=[4, 4, 4])
    assert not caplog.records
    build(root, patch=[4, 4, 4])

    assert "voxels from [1, 1, 1] to [1, 1, 3] mm" in caplog.text
    assert "their median, [1, 1, 1]." in caplog.text


# What a volume becomes


def test_training_takes_patches_and_validation_whole_volumes(root: Path) -> None:
    data = build(root, patches_per_volume=3)

    assert data.info.shape == (1, 8, 8, 8)
    assert len(data.train) == 9
    x, y = data.train[0]
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((1, 8, 8, 8), torch.float32, (8, 8, 8), torch.int64)
    whole, mask = data.val[0]
    assert whole.shape[1:] == mask.shape
    assert mask.shape[1:] == (18, 16)
    assert (float(whole.mean()), float(whole.std())) == pytest.approx((0, 1), abs=1e-3)
    assert data.held_out is not None
    assert [data.held_out[index][0].shape for index in range(4)] == [(1, 8, 8, 8)] * 4


@pytest.mark.parametrize("axes", ["LPS", "RAS"])
def test_volumes_and_masks_are_turned_to_one_orientation(tmp_path: Path, axes: str) -> None:
    image, mask = scene(3)
    save(tmp_path / "a.nii.gz", image)
    save(tmp_path / "a_mask.nii.gz", mask)
    flips = (slice(None, None, -1), slice(None, None, -1))
    turned = affine_of("LPS")
    turned[:2, 3] = [19, 17]  # the same places in space
    save(tmp_path / "b.nii", image[flips], turned)
    save(tmp_path / "b_mask.nii", mask[flips], turned)
    files = listed(tmp_path, ("a.nii.gz", "a_mask.nii.gz"), validation=("b.nii", "b_mask.nii"))

    data = build(tmp_path, orientation=axes, **files)

    x, y = data.val[0]
    expected = (image, mask) if axes == "RAS" else (image[flips], mask[flips])
    torch.testing.assert_close(y, torch.from_numpy(expected[1].astype(np.int64)))
    restored = x[0] * image.std() + image.mean()
    torch.testing.assert_close(restored, torch.from_numpy(expected[0].copy()), rtol=1e-4, atol=1e-2)


def test_a_mask_stored_in_other_axes_than_its_image_is_the_same_mask(tmp_path: Path) -> None:
    image, mask = scene(3)
    permuted = np.zeros((4, 4))
    permuted[[0, 1, 2, 3], [1, 2, 0, 3]] = 1  # stored index 1 runs right, 2 anterior, 0 superior
    save(tmp_path / "a.nii.gz", image)
    save(tmp_path / "m.nii.gz", mask.transpose(2, 0, 1), permuted)

    x, y = build(tmp_path, orientation=None, **listed(tmp_path, ("a.nii.gz", "m.nii.gz"))).val[0]

    assert x.shape[1:] == image.shape
    assert torch.equal(y, torch.from_numpy(mask.astype(np.int64)))


def test_volumes_are_resampled_to_the_spacing(tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.arange(20.0)[:, None, None], (20, 16, 16)).astype(np.float32)
    mask = (ramp >= 10).astype(np.uint8)
    for name, data in (("a", ramp), ("m", mask)):
        save(tmp_path / f"{name}.nii.gz", data, affine_of("RAS", (1.0, 1.0, 2.0)))

    x, y = build(tmp_path, spacing=[0.5, 1, 1], normalize="none", **listed(tmp_path, ("a.nii.gz", "m.nii.gz"))).val[0]

    assert x.shape == (1, 40, 16, 32)
    # A voxel of half the size lies a quarter of the old size off the centre of the old one.
    torch.testing.assert_close(x[0, 1:-1, 0, 0], torch.arange(40.0)[1:-1] / 2 - 0.25)
    assert y[:, 0, 0].tolist() == [0] * 20 + [1] * 20


def test_channels_may_be_files_of_their_own_or_the_fourth_dimension(tmp_path: Path) -> None:
    image, mask = scene(0)
    both = np.stack([image, 2 * image + 5], axis=-1)
    for index in range(2):
        save(tmp_path / "imagesTr" / f"b_{index:04}.nii.gz", both[..., index])
        save(tmp_path / "imagesTr" / f"a_{index:04}.nii.gz", both[..., index])
    for name in "ab":
        save(tmp_path / "labelsTr" / f"{name}.nii.gz", mask)
    save(tmp_path / "four.nii.gz", both)

    files = build(tmp_path, channels=2, normalize="none", images="imagesTr", masks="labelsTr")
    dimension = build(tmp_path, channels=2, normalize="none", **listed(tmp_path, ("four.nii.gz", "labelsTr/a.nii.gz")))

    assert files.info.shape[0] == 2
    assert torch.equal(files.val[0][0], torch.from_numpy(both).movedim(-1, 0))
    assert torch.equal(dimension.val[0][0], files.val[0][0])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"normalize": "none"}, [0, 10, 20, 70]),
        ({"normalize": "none", "clip": [5, 30]}, [5, 10, 20, 30]),
        ({"normalize": "unit"}, [0, 1 / 7, 2 / 7, 1]),
        ({"normalize": "unit", "clip": [10, 30]}, [0, 0, 0.5, 1]),
        ({"normalize": "zscore"}, [-25 / 26.9258, -15 / 26.9258, -5 / 26.9258, 45 / 26.9258]),
        ({"normalize": "nonzero"}, [0, -23.3333 / 26.2467, -13.3333 / 26.2467, 36.6667 / 26.2467]),
    ],
)
def test_intensities_are_normalized_as_asked(tmp_path: Path, settings: dict[str, Any], expected: list[float]) -> None:
    image = np.zeros((4, 8, 8), np.int16)
    image[:] = np.array([0, 10, 20, 70])[:, None, None]
    save(tmp_path / "a.nii.gz", image)
    save(tmp_path / "m.nii.gz", (image > 5).astype(np.uint8))

    x, _ = build(tmp_path, patch=[4, 8, 8], **settings, **listed(tmp_path, ("a.nii.gz", "m.nii.gz"))).val[0]

    assert x[0, :, 3, 3].tolist() == pytest.approx(expected, abs=1e-4)


# Patches


def test_a_quota_of_the_patches_is_centred_on_foreground(root: Path) -> None:
    data = build(root, patches_per_volume=4, foreground=0.5, flips=[])

    for index in range(len(data.train)):
        centres = {int(data.train.read(index, np.random.default_rng(draw))[1][4, 4, 4]) for draw in range(20)}
        # Both classes get their turn; the rest lies anywhere, also on foreground.
        assert (centres == {1, 2}) == (index % 4 < 2)


def test_a_quota_that_is_no_whole_number_is_met_on_average(root: Path) -> None:
    data = build(root, patches_per_volume=1, foreground=0.3, flips=[], patch=[2, 2, 2])

    centres = [int(data.train.read(0, np.random.default_rng(draw))[1][1, 1, 1]) for draw in range(400)]

    background = 1 - 8**3 / data.train.read(0, None)[1].new_tensor(1) / (20 * 18 * 16)
    assert np.mean(np.array(centres) > 0) == pytest.approx(0.3 + 0.7 * (1 - float(background)), abs=0.08)


def test_flips_move_image_and_mask_alike(root: Path) -> None:
    data = build(root, normalize="none")

    for draw in range(10):
        x, y = data.train.read(0, np.random.default_rng(draw))
        assert float(x[0][y == 2].mean()) == pytest.approx(300, abs=20) or not (y == 2).any()
        assert float(x[0][y == 0].mean()) == pytest.approx(100, abs=20)


def test_patches_are_the_same_whatever_reads_them(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNCNORM_SCRATCH", str(tmp_path / "scratch"))
    kinds = [build(root, cache=cache) for cache in ("none", "memory", "disk", "disk")]
    sent = pickle.loads(pickle.dumps(kinds[1]))  # as to a worker process

    for index in (0, 5, 11):
        each = [data.train.read(index, np.random.default_rng((1, 2, index))) for data in [*kinds, sent]]
        assert all(torch.equal(x, each[0][0]) and torch.equal(y, each[0][1]) for x, y in each)


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_batches_are_the_same_for_any_number_of_processes(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: str
) -> None:
    monkeypatch.setenv("SYNCNORM_SCRATCH", str(tmp_path / "scratch"))
    loaders = [
        train_loader(build(root, cache=cache, num_workers=processes), global_batch=4, seed=3) for processes in (0, 2)
    ]

    for here, there in zip(*loaders, strict=True):
        assert torch.equal(here.x, there.x)
        assert torch.equal(here.y, there.y)


def test_volumes_are_read_from_a_url(root: Path) -> None:
    remote = fsspec.filesystem("memory")
    remote.put(str(root), "/scans", recursive=True)
    try:
        there = build_data(
            DataSpec(name="nifti", batch_size=1, init_args={**SETTINGS, "root": "memory://scans", "num_classes": 3}), 0
        )

        assert torch.equal(there.train[5][0], build(root).train[5][0])
        assert torch.equal(there.val[0][1], build(root).val[0][1])
    finally:
        remote.rm("/scans", recursive=True)


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_a_cache_reads_each_volume_once_and_keeps_to_its_bound(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: str
) -> None:
    monkeypatch.setenv("SYNCNORM_SCRATCH", str(tmp_path / "scratch"))
    from syncnorm.trainer.data.remote_files import Storage

    opened: list[str] = []
    read: Callable[[Storage, str], bytes] = Storage.read
    monkeypatch.setattr(Storage, "read", lambda self, name: opened.append(name) or read(self, name))
    whole = build(root, cache=cache, check_masks=False, patches_per_volume=2)
    # A volume has some 5 kB a thousand voxels; the smallest has 5,760 of them.
    tiny = build(root, cache=cache, check_masks=False, patches_per_volume=2, cache_gib=1e-6)

    for _ in range(2):
        [whole.train[index] for index in range(6)]
    assert len(opened) == len(set(opened)) == 6
    opened.clear()
    [tiny.train[index] for index in range(6)]
    assert len(opened) == (12 if cache == "memory" else 0)  # what lies on the disk already is used


def test_changed_files_and_settings_are_not_taken_from_the_disk(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYNCNORM_SCRATCH", str(tmp_path / "scratch"))
    before = build(root, cache="disk").val[0][0]

    assert not torch.equal(build(root, cache="disk", normalize="unit").val[0][0], before)
    for path in (root / "images").iterdir():
        image = nibabel.load(path)
        save(path, image.get_fdata()[::-1].astype(np.float32))
    assert not torch.equal(build(root, cache="disk").val[0][0], before)


def test_a_module_of_yours_gets_patches_in_batches_and_volumes_one_by_one(root: Path) -> None:
    data = NamedData(build(root, val_fraction=0.5), batch_size=4)

    assert [len(x) for x, _ in data.train_dataloader()] == [4, 4]
    assert [len(x) for x, _ in data.val_dataloader()] == [1, 1]


# Bad input


def _truncate(root: Path) -> None:
    path = root / "images" / "v1.nii.gz"
    path.write_bytes(path.read_bytes()[:60])


def _truncate_voxels(root: Path) -> None:
    path = root / "masks" / "v1.nii.gz"
    path.write_bytes(path.read_bytes()[:-40])


def _truncate_image(root: Path) -> None:
    path = root / "images" / "v1.nii.gz"
    path.write_bytes(path.read_bytes()[:-4000])


def _truncate_plain(root: Path) -> None:
    image, _ = scene(1, (22, 18, 16))
    (root / "images" / "v1.nii.gz").unlink()
    save(root / "images" / "v1.nii", image)
    path = root / "images" / "v1.nii"
    path.write_bytes(path.read_bytes()[:-2000])


def _mask(change: Callable[[np.ndarray], np.ndarray], **where: Any) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        save(root / "masks" / "v1.nii.gz", change(scene(1, (22, 18, 16))[1]), **where)

    return write


def _all_background(root: Path) -> None:
    for index in range(4):
        save(root / "masks" / f"v{index}.nii.gz", np.zeros((20 + 2 * index, 18, 16), np.uint8))


def _moved() -> np.ndarray:
    affine = affine_of()
    affine[:3, 3] = 5
    return affine


BAD: dict[str, tuple[Callable[[Path], None], dict[str, Any], str]] = {
    "truncated header": (_truncate, {}, r"images/v1.nii.gz must be a whole NIfTI file, but it can't be read"),
    "truncated voxels": (_truncate_voxels, {}, r"masks/v1.nii.gz must be a whole NIfTI file, but .*end-of-stream"),
    "truncated image": (
        _truncate_image,
        {},
        r"images/v1.nii.gz must be a whole NIfTI file, but .*end-of-stream",
    ),
    "truncated without compression": (_truncate_plain, {}, r"images/v1.nii must be a whole NIfTI file, but it .*bytes"),
    "no NIfTI": (
        lambda root: (root / "images" / "v1.nii.gz").write_bytes(b"\x89PNG and so on" * 99),
        {},
        "images/v1.nii.gz must be a whole NIfTI file, but it can't be read .Not a gzipped",
    ),
    "another size": (
        _mask(lambda mask: mask[:-2]),
        {},
        r"masks/v1.nii.gz must lie where its image images/v1.nii.gz does, but it has \(20, 18, 16\) voxels, not \(22,",
    ),
    "another affine": (
        _mask(lambda mask: mask, affine=_moved()),
        {},
        r"masks/v1.nii.gz must lie where its image images/v1.nii.gz does, but its affine puts it up to 5 mm away\.",
    ),
    "another orientation": (
        _mask(lambda mask: mask, affine=affine_of("LPS")),
        {},
        r"masks/v1.nii.gz .* up to 21 mm away, with axes that point LPS and RAS\.",
    ),
    "class beyond": (
        _mask(lambda mask: mask * 2),
        {},
        r"masks/v1.nii.gz holds the class 4, but data.init_args.num_classes is 3, so values must be 0 to 2\.",
    ),
    "negative class": (_mask(lambda mask: mask.astype(np.int16) - 1), {}, r"masks/v1.nii.gz holds the class -1, but"),
    "mask of fractions": (
        _mask(lambda mask: mask.astype(np.float32) / 2),
        {},
        r"masks/v1.nii.gz must hold whole numbers, .*; 485 voxels differ, such as 0.5\. Is it an image",
    ),
    "patch too large": (
        lambda _: None,
        {"patch": [8, 8, 24]},
        r"images/v0.nii.gz must be as large as data.init_args.patch \(8, 8, 24\), but it has \(20, 18, 16\) voxels",
    ),
    "patch too large once resampled": (
        lambda _: None,
        {"spacing": [1, 1, 3]},
        r"images/v0.nii.gz .* it has \(20, 18, 5\) voxels in this orientation and spacing\. Use a smaller patch",
    ),
    "too few channels": (
        lambda _: None,
        {"channels": 2},
        r"images/v0.nii.gz must have 2 channels, as channels says, got 1\.",
    ),
    "no foreground": (_all_background, {}, r"must hold a class besides 0, the background, but no voxel"),
    "no mask": (
        lambda root: (root / "masks" / "v1.nii.gz").unlink(),
        {},
        r"masks must have a mask for every volume; there is none for v1\.",
    ),
    "no image": (
        lambda root: (root / "images" / "v1.nii.gz").unlink(),
        {},
        r"images must have an image for every volume; there is none for v1\.",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_named_before_training(root: Path, case: str) -> None:
    spoil, settings, message = BAD[case]
    spoil(root)

    with pytest.raises((ValueError, FileNotFoundError), match=rf"^data.init_args.root: .*{message}"):
        build(root, **settings)


def test_several_problems_are_said_at_once(root: Path) -> None:
    with pytest.raises(ValueError, match=r"channels") as caught:
        build(root, channels=3)

    assert all(f"images/v{index}.nii.gz must have 3 channels" in str(caught.value) for index in range(4))


def test_masks_are_checked_as_they_are_read_where_all_are_too_many(root: Path) -> None:
    _mask(lambda mask: mask * 2)(root)

    data = build(root, check_masks=False)

    with pytest.raises(ValueError, match=r"masks/v1.nii.gz holds the class 4"):
        [part[index] for part in (data.train, data.val) for index in range(len(part))]


@pytest.mark.parametrize("shared", [True, False])
def test_volume_in_both_parts_of_a_list_is_told(root: Path, shared: bool, caplog: pytest.LogCaptureFixture) -> None:
    volumes = [(f"images/v{number}.nii.gz", f"masks/v{number}.nii.gz") for number in (1, 2, 3)]

    build(root, **listed(root, *volumes[: 3 if shared else 2], validation=volumes[2]))

    told = "list.json puts 1 file into training and into validation: images/v3.nii.gz" in caplog.text
    assert told == shared


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not JSON", r"datalist: list.json must be JSON"),
        ('{"training": []}', r"must be an object with a list of volumes under `training`"),
        ('{"training": [{"image": 3, "label": "m.nii"}]}', r"training\[0\] must be .*, got {'image': 3"),
        ('{"training": [{"image": "../a.nii", "label": "m.nii"}]}', r"a file must be a path below root"),
        ('{"training": [{"image": "a.nii", "label": "m.nii"}]}', r"must hold two or more volumes"),
    ],
)
def test_a_list_that_is_none_is_named(root: Path, content: str, message: str) -> None:
    (root / "list.json").write_text(content)

    with pytest.raises((ValueError, FileNotFoundError), match=message):
        build(root, datalist="list.json")
