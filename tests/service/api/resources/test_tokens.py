"""Tokens: what is refused when one is made, and what its holder is told when it no longer works."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from syncnorm.service.api import auth
from tests.helpers.service.api import api
from tests.helpers.service.world import World
from tests.service.api.test_api import problem

Running = tuple[TestClient, World]


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Running]:
    with api(tmp_path, auth=True) as pair:
        yield pair


@pytest.mark.parametrize(
    "when",
    ["2020-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00", "2100-01-01T00:00:00Z"],
)
def test_expiry_must_lie_ahead_and_not_too_far(guarded: Running, when: str) -> None:
    client, world = guarded

    refused = client.post("/v1/tokens", json={"owner": "ann", "expires_at": when})

    (error,) = problem(refused, 422, "invalid_request")["errors"]
    assert error["pointer"] == "/expires_at"
    assert "must lie in the future and at most 10 years ahead" in error["detail"]
    assert world.store.tokens.all() == []


@pytest.mark.parametrize("when", [0, 4e9, 1e300, True, "2027-01-31T00:00:00", ""])
def test_expiry_is_a_time_with_a_zone_and_nothing_else(guarded: Running, when: Any) -> None:
    client, world = guarded

    problem(client.post("/v1/tokens", json={"owner": "ann", "expires_at": when}), 422, "invalid_request")

    assert world.store.tokens.all() == []


def test_each_reason_is_told_to_the_holder_only(guarded: Running) -> None:
    client, world = guarded
    soon = (world.clock() + timedelta(seconds=60)).isoformat()
    expired = client.post("/v1/tokens", json={"owner": "ann", "expires_at": soon}).json()
    revoked = client.post("/v1/tokens", json={"owner": "ann"}).json()
    client.delete(f"/v1/tokens/{revoked['id']}")
    world.clock.advance(61)

    def said(header: str | None) -> str:
        headers = {"Authorization": header or ""}
        return str(problem(client.get("/v1/jobs", headers=headers), 401, "unauthorized")["detail"])

    def with_wrong_secret(token: dict[str, Any]) -> str:
        return said(f"Bearer sn_{token['id']}_{'x' * 43}")

    unknown = said("Bearer sn_0123456789abcdef_" + "x" * 43)
    assert said(f"Bearer {expired['token']}").startswith(f"This token expired on {soon[:10]} at ")
    assert said(f"Bearer {revoked['token']}").startswith("This token was revoked on ")
    assert with_wrong_secret(expired) == with_wrong_secret(revoked) == unknown
    assert "is unknown" in unknown
    missing = said(None)
    assert "SYNCNORM_TOKEN" in missing
    assert "admin.token" in missing


def test_unknown_id_and_wrong_secret_take_the_same_comparisons(
    guarded: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, _ = guarded
    known = client.post("/v1/tokens", json={"owner": "ann"}).json()["id"]
    compared: list[tuple[int, int]] = []
    real = auth.hmac.compare_digest
    monkeypatch.setattr(auth.hmac, "compare_digest", lambda a, b: (compared.append((len(a), len(b))), real(a, b))[1])

    for token_id in (known, "0" * 16):
        client.get("/v1/jobs", headers={"Authorization": f"Bearer sn_{token_id}_{'x' * 43}"})

    assert compared[: len(compared) // 2] == compared[len(compared) // 2 :]
    assert len(compared) == 4


@pytest.mark.parametrize(
    "header",
    [
        b"Bearer \xf1",
        b"Bearer sn_\xf1_\xff",
        b"\xff\xfe",
        b"Bearer ",
        b"Basic YTpi",
        b"Bearer sn__",
        b"Bearer sn_0_\xc3\xb1",
    ],
)
def test_any_bytes_in_the_header_are_401(guarded: Running, header: bytes) -> None:
    client, _ = guarded

    problem(client.get("/v1/jobs", headers={"Authorization": header}), 401, "unauthorized")
