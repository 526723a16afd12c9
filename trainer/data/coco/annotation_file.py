"""A COCO JSON file as images with their objects, checked record by record before training."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from syncnorm.trainer.contract.text import counted
from syncnorm.trainer.data.coco.annotation_checks import BoxProblem, are_corners, checked_box, mask_problem
from syncnorm.trainer.data.info import Category
from syncnorm.trainer.data.remote_files import read_file

InvalidBoxes = Literal["refuse", "repair"]
SHOWN_PROBLEMS = 5


@dataclass(frozen=True)
class Instance:
    """One object of an image. box: (left, top, right, bottom) within the image. label: 1 for the first category.
    record: its annotation as in the file, with `area` and `iscrowd` filled in."""

    box: tuple[float, float, float, float]
    label: int
    record: Mapping[str, Any]

    @property
    def is_crowd(self) -> bool:
        return bool(self.record["iscrowd"])


@dataclass(frozen=True)
class LabelledImage:
    """id: that of the file. instances: none for an image without objects."""

    id: int
    file: str
    width: int
    height: int
    instances: tuple[Instance, ...]


@dataclass(frozen=True)
class Annotations:
    """images: in the order of their ids. categories: in the order of theirs. repaired: boxes that were cut or left
    out, in words."""

    url: str
    categories: tuple[Category, ...]
    images: tuple[LabelledImage, ...]
    repaired: tuple[str, ...] = ()


def read_annotations(
    where: str,
    url: str,
    *,
    invalid_boxes: InvalidBoxes = "refuse",
    masks: bool = False,
    known: Sequence[Category] | None = None,
) -> Annotations:
    """The content of the file at `url`. where: the spec path that names it. masks: whether every object must have one.
    known: the categories it must have; None: any.

    Raises: ValueError with the record that is wrong; FileNotFoundError (MissingDataError) where there is no such file.
    """
    return _Reader(where, url, invalid_boxes, masks, known).read()


@dataclass
class _Reader:
    where: str
    url: str
    invalid_boxes: InvalidBoxes
    masks: bool
    known: Sequence[Category] | None
    problems: list[str] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)
    advice: str = ""

    def read(self) -> Annotations:
        document = self._document()
        categories = self._categories(document["categories"])
        headers = self._headers(document["images"])
        self._require_no_problem()
        labels = {category.id: label for label, category in enumerate(categories, 1)}
        instances = self._instances(document["annotations"], headers, labels)
        self._require_widths_and_heights(document["annotations"], headers)
        self._require_no_problem()
        images = (
            LabelledImage(number, file, width, height, tuple(instances[number]))
            for number, (file, width, height) in sorted(headers.items())
        )
        return Annotations(self.url, categories, tuple(images), tuple(self.repaired))

    def _document(self) -> dict[str, list[Any]]:
        try:
            document = json.loads(read_file(self.where, self.url))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(
                f"{self.where}: {self.url} is not JSON that can be read ({error}). Write it anew."
            ) from error
        parts = ("images", "annotations", "categories")
        absent = [name for name in parts if not isinstance(document, dict) or not isinstance(document.get(name), list)]
        if absent:
            raise ValueError(
                f"{self.where}: {self.url} must be a COCO file, an object with the lists {', '.join(parts)}; it has no "
                f"list {', '.join(absent)}."
            )
        return {name: document[name] for name in parts}

    def _categories(self, records: list[Any]) -> tuple[Category, ...]:
        found = dict[int, Category]()
        for place, record in enumerate(records):
            if not _has(record, id=int, name=str):
                self.problems.append(f"category {place} of the list needs a whole number `id` and a text `name`")
            elif record["id"] in found:
                self.problems.append(f"two categories have the id {record['id']}")
            else:
                if any(record["name"] == one.name for one in found.values()):
                    self.problems.append(f"two categories have the name {record['name']}")
                found[record["id"]] = Category(record["id"], record["name"])
        categories = tuple(found[number] for number in sorted(found))
        if not categories and not self.problems:
            self.problems.append("it has no category")
        if self.known is not None and categories != tuple(self.known):
            self.problems.append(
                f"its categories must be those of training, {_named(self.known)}, but they are {_named(categories)}"
            )
        return categories

    def _headers(self, records: list[Any]) -> dict[int, tuple[str, int, int]]:
        found = dict[int, tuple[str, int, int]]()
        for place, record in enumerate(records):
            if not _has(record, id=int, file_name=str, width=int, height=int):
                self.problems.append(
                    f"image {place} of the list needs whole numbers `id`, `width` and `height` and a text `file_name`"
                )
            elif record["id"] in found:
                self.problems.append(f"two images have the id {record['id']}")
            else:
                found[record["id"]] = (record["file_name"], record["width"], record["height"])
        if not found and not self.problems:
            self.problems.append("it has no image")
        return found

    def _instances(
        self, records: list[Any], headers: Mapping[int, tuple[str, int, int]], labels: Mapping[int, int]
    ) -> Mapping[int, list[Instance]]:
        found = defaultdict[int, list[Instance]](list)
        for place, record in enumerate(records):
            if not _has(record, image_id=int, category_id=int):
                self.problems.append(f"annotation {place} of the list needs whole numbers `image_id` and `category_id`")
                continue
            name = f"annotation {record.get('id', f'{place} of the list')}"
            if record["image_id"] not in headers:
                self.problems.append(f"{name} is of image {record['image_id']}, which the file does not have")
            elif record["category_id"] not in labels:
                self.problems.append(f"{name} has the category {record['category_id']}, which the file does not have")
            else:
                file, width, height = headers[record["image_id"]]
                name = f"{name} of image {record['image_id']} ({file}, {width}x{height})"
                found[record["image_id"]] += self._instance(name, record, (width, height), labels)
        return found

    def _instance(
        self, name: str, record: dict[str, Any], size: tuple[int, int], labels: Mapping[int, int]
    ) -> Iterator[Instance]:
        """One, or none where it is wrong or left out."""
        found = checked_box(record.get("bbox"), size)
        if isinstance(found, BoxProblem):
            if self.invalid_boxes == "refuse" or not found.is_repairable:
                self.problems.append(f"{name}: {found.text}")
                if found.is_repairable:
                    self.advice = " With invalid_boxes: repair such boxes are cut to their image or left out."
                return
            self.repaired.append(f"{name}: {found.text}")
            if found.box is None:
                return
            found = found.box
        if self.masks and (problem := mask_problem(record.get("segmentation"), size)) is not None:
            self.problems.append(f"{name}: {problem}")
            return
        left, top, right, bottom = found
        filled = {"area": (right - left) * (bottom - top), "iscrowd": 0, **record}
        yield Instance(found, labels[record["category_id"]], filled)

    def _require_widths_and_heights(self, records: list[Any], headers: Mapping[int, tuple[str, int, int]]) -> None:
        """Boxes with corners in place of sizes would be cut as if they only left their images."""
        if not (self.problems or self.repaired):
            return
        known = [one for one in records if isinstance(one, dict) and one.get("image_id") in headers]
        if are_corners((one.get("bbox"), headers[one["image_id"]][1:]) for one in known):
            raise ValueError(
                f"{self.where}: {self.url}: `bbox` must be [left, top, width, height], but all {len(known)} boxes look "
                f"like [left, top, right, bottom], such as {known[0]['bbox']}. Subtract left from right, and top from "
                "bottom."
            )

    def _require_no_problem(self) -> None:
        if not self.problems:
            return
        rest = len(self.problems) - SHOWN_PROBLEMS
        more = f"; and {counted(rest, 'further problem')}" if rest > 0 else ""
        raise ValueError(f"{self.where}: {self.url}: {'; '.join(self.problems[:SHOWN_PROBLEMS])}{more}.{self.advice}")


def _has(record: Any, **kinds: type[int] | type[str]) -> bool:
    """Whether it is an object with values of these kinds; numbers are not negative."""
    return isinstance(record, dict) and all(_is(record.get(name), kind) for name, kind in kinds.items())


def _is(value: Any, kind: type[int] | type[str]) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and (isinstance(value, str) or value >= 0)


def _named(categories: Sequence[Category]) -> str:
    return ", ".join(f"{one.id} {one.name}" for one in categories[:10]) + (" …" if len(categories) > 10 else "")
