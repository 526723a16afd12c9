"""The commands of examples/volumes, as its README has them. pip gets the brain from its index."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from syncnorm.service.client.client import Client
from tests.helpers.paths import EXAMPLES
from tests.helpers.stack.shell import commands_of, shell
from tests.vision.conftest import artifact

pytestmark = [pytest.mark.stack, pytest.mark.chaos, pytest.mark.timeout(1800)]


def test_commands_of_the_readme_tell_grey_from_white_matter(client: Client, tmp_path: Path) -> None:
    nibabel, numpy = pytest.importorskip("nibabel"), pytest.importorskip("numpy")
    brain, mask = tmp_path / "brain", tmp_path / "mask.nii.gz"
    commands = "\n".join(commands_of(EXAMPLES / "volumes" / "README.md")).replace("$PWD/brain", str(brain))
    commands = commands.replace("-o left-96.nii.gz", f"-o {mask}").replace(" brain", f" {brain}")

    shell(f"set -e\n{commands}", SYNCNORM_URL=client.url)

    predicted, truth = (
        numpy.asanyarray(nibabel.load(path).dataobj) for path in (mask, brain / "tissue/left-96.nii.gz")
    )
    for label in (1, 2):
        dice = (
            2 * ((predicted == label) & (truth == label)).sum() / ((predicted == label).sum() + (truth == label).sum())
        )
        assert dice >= 0.85
    proof = json.loads(artifact(next(iter(client.jobs(limit=1))), "export/certificate.json"))
    assert proof["validation"][proof["statistics"]["used"]]["val/dice"] >= 0.85
