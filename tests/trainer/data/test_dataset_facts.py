"""What a run says about its data is the same for the same data, and another for other data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from syncnorm.trainer.contract.spec import DataSpec
from syncnorm.trainer.data import build_data
from syncnorm.trainer.data.dataset_facts import dataset_inputs


def inputs(seed: int = 0, **spec: Any) -> list[dict[str, Any]]:
    data = DataSpec.model_validate({"batch_size": 4, **spec})
    return dataset_inputs(data, seed, build_data(data, seed) if data.name else None)


def digests(seed: int = 0, **spec: Any) -> list[str]:
    return [one["dataset"]["digest"] for one in inputs(seed, **spec)]


def test_built_in_data_is_described_by_part() -> None:
    train, val = inputs(name="digits")

    assert [one["tags"][0]["value"] for one in (train, val)] == ["train", "validation"]
    assert train["dataset"]["name"] == "digits"
    profile = json.loads(train["dataset"]["profile"])
    assert profile["num_rows"] + json.loads(val["dataset"]["profile"])["num_rows"] == 1797
    assert (profile["task"], profile["num_classes"], profile["shape"]) == ("classification", 10, [1, 8, 8])


def test_digest_tells_data_apart() -> None:
    same, again = digests(name="digits"), digests(name="digits")
    others = [digests(1, name="digits"), digests(name="digits", init_args={"val_fraction": 0.3})]

    assert same == again
    assert len({*same, *(one for each in others for one in each)}) == 6
    assert all(len(one) <= 36 for one in same)  # MLflow's limit


def test_digest_covers_the_size_of_named_files(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    found = []
    for content in ("a", "bb"):
        file.write_text(content)
        found += digests(class_path="mine.Data", init_args={"path": str(file), "text": "x" * 5000, "odd": "a\0b"})

    assert len(set(found)) == 2
