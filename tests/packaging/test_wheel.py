"""What the wheel holds, and what it asks for."""

from __future__ import annotations

import email
import os
import re
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import syncnorm
from tests.helpers.paths import ROOT

FOR_READERS = {".md", ".png"}


def test_wheel_holds_syncnorm_alone_and_every_file_of_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        names = {name for name in opened.namelist() if ".dist-info/" not in name}
        tops = {name.partition("/")[0] for name in opened.namelist()}

    assert tops == {"syncnorm", f"syncnorm-{syncnorm.__version__}.dist-info"}
    assert names == set(_files_of_the_package())


def test_source_distribution_holds_what_the_wheel_is_built_from_and_no_tests(distribution: tuple[Path, Path]) -> None:
    with tarfile.open(distribution[0]) as opened:
        names = {name.partition("/")[2] for name in opened.getnames() if opened.getmember(name).isfile()}

    assert set(_files_of_the_package()) < names
    assert {name for name in names if name.startswith("tests")} == set()


def test_wheel_asks_for_what_the_client_needs_and_offers_the_rest_as_extras(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        metadata = email.message_from_bytes(opened.read(f"syncnorm-{syncnorm.__version__}.dist-info/METADATA"))
    asked = [text for text in metadata.get_all("Requires-Dist", []) if "extra ==" not in text]

    assert metadata["Version"] == syncnorm.__version__
    assert [re.split(r"[<>=]", text)[0] for text in asked] == ["httpx", "pydantic", "typer", "rich", "pyyaml"]
    assert metadata.get_all("Provides-Extra") == [
        *("norm", "worker", "server", "vision", "medical", "s3", "gcs", "azure", "dev")
    ]


def _files_of_the_package() -> Iterator[str]:
    for folder, subfolders, files in os.walk(ROOT / "syncnorm", followlinks=True):
        subfolders[:] = [name for name in subfolders if name != "__pycache__"]
        paths = (Path(folder, name) for name in files)
        yield from (path.relative_to(ROOT).as_posix() for path in paths if path.suffix not in FOR_READERS)
