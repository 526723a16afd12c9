"""One composition of real containers for all tests here: built, started, and removed in the end."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from syncnorm.service.client.client import Client
from tests.helpers.deploy.composition import Composition, docker, why_no_engine

BASE_IMAGES = ("python:3.11-slim-bookworm", "postgres:15-bookworm")


@dataclass(frozen=True)
class Started:
    composition: Composition
    client: Client
    started_at: float
    """Monotonic time of `up`."""


def require_engine() -> None:
    """Skips where no containers can be run."""
    if reason := why_no_engine():
        pytest.skip(reason)
    for image in BASE_IMAGES:
        if not docker("image", "inspect", image, check=False).strip("[]\n") and not docker("pull", image, check=False):
            pytest.skip(f"{image} is not here and can't be pulled")


@pytest.fixture(scope="session")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    """The composition right after its first start, with two workers of one CPU each."""
    require_engine()
    composition = Composition(tmp_path_factory.mktemp("deploy"))
    composition.remove()
    try:
        composition.make_secrets()
        if "SYNCNORM_IMAGE" not in os.environ:  # an image of one's own is tested as it is
            composition.compose("build", "migrate", timeout_s=2400)
        started_at = time.monotonic()
        composition.up()
        composition.wait_until_ready()
        composition.wait_for_workers()
        with composition.client() as client:
            yield Started(composition, client, started_at)
    finally:
        composition.remove()


@pytest.fixture
def composition(started: Started) -> Composition:
    return started.composition


@pytest.fixture
def client(started: Started) -> Client:
    return started.client
