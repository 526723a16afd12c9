"""Addresses of data: what lies under an allowed prefix, and everything that only looks so."""

from __future__ import annotations

from pathlib import Path

import pytest

from syncnorm.trainer.storage.data_urls import DEFAULT, problem
from tests.helpers.service.api import SPEC, api

ALLOWED = (*DEFAULT, "https://data.example.org/sets", "http://10.0.0.7:9000")
GOOD = (
    *("s3://bucket/key", "gs://bucket/a/b", "az://container/x", "https://data.example.org/sets"),
    *("https://data.example.org/sets/a.parquet", "https://DATA.example.org/sets/b", "http://10.0.0.7:9000/x"),
)
BAD = (
    *(
        "http://169.254.169.254/latest/meta-data",
        "http://localhost:8265/api/jobs/",
        "http://127.0.0.1/",
        "http://[::1]/",
    ),
    *(
        "http://0x7f000001/",
        "http://2130706433/",
        "http://10.0.0.7:9001/x",
        "http://10.0.0.7/x",
        "ftp://data.example.org/sets",
    ),
    *("file:///etc/passwd", "file://localhost/etc/passwd", "local:///etc/passwd", "data://x", "jar://x", "memory://x"),
    *("https://data.example.org.evil.example/sets/x", "https://evil.example/https://data.example.org/sets"),
    *("https://data.example.org@evil.example/sets/x", "https://user:pw@data.example.org/sets/x"),
    *("https://data.example.org/setsx", "https://data.example.org/", "https://data.example.org/sets/../private"),
    *("https://data.example.org/sets/%2e%2e/private", "https://data.example.org\\@evil.example/sets"),
    *("https://data.example.org/sets/x?next=http://169.254.169.254", "https://data.example.org/sets/x#y"),
    *("simplecache::http://169.254.169.254/", "zip://a.csv::file:///etc/passwd", "s3://bucket/x::file:///etc/passwd"),
    *(
        "s3://",
        "s3:///x",
        "S4://bucket/x",
        "https://data.example.org:444/sets/x",
        "https://data.example.org:99999/sets",
    ),
    *(
        "https://dаta.example.org/sets/x",
        "https://data.example.org/sets/\nx",
        "s3://buc ket/x",
        "://x",
        "https://[x/sets",
    ),
    *("http://metadata.google.internal/computeMetadata/v1/", "gopher://10.0.0.7:9000/_x", "http://10.0.0.7:9000@evil/"),
)


@pytest.mark.parametrize("url", GOOD)
def test_address_under_an_allowed_prefix_is_taken(url: str) -> None:
    assert problem(url, ALLOWED) is None


@pytest.mark.parametrize("url", BAD)
def test_every_other_address_is_refused(url: str) -> None:
    assert problem(url, ALLOWED) is not None


def test_spec_is_held_to_it_where_code_is_not_allowed(tmp_path: Path) -> None:
    data = {"name": "image_folder", "batch_size": 2, "init_args": {"root": "http://169.254.169.254/x"}}
    with api(tmp_path, allow_code=False) as (client, _):
        refused = client.post("/v1/jobs", json=SPEC | {"data": data})
        taken = client.post("/v1/jobs", json=SPEC | {"data": data | {"init_args": {"root": "s3://bucket/x"}}})

    assert (refused.status_code, taken.status_code) == (422, 201)
    assert refused.json()["errors"][0]["pointer"] == "/data/init_args/root"
