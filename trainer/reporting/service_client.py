"""Requests of an attempt or export to the service whose answer it waits for, unlike the reporter's messages."""

from __future__ import annotations

import time
from collections.abc import Iterable

import httpx
from pydantic import BaseModel

from syncnorm.trainer.contract.protocol import ExportRequest, Launch


def post(
    launch: Launch | ExportRequest, path: str, body: BaseModel, pauses_s: Iterable[float], client: httpx.Client | None
) -> httpx.Response | None:
    """The answer, unless it is a server error; None if there was none after all these pauses."""
    url = f"{(launch.service_url or '').rstrip('/')}{path}"
    headers = {"Authorization": f"Bearer {launch.token}", "Content-Type": "application/json"}
    content = body.model_dump_json()
    with client or httpx.Client(timeout=10, trust_env=False) as http:
        for pause_s in (0.0, *pauses_s):
            time.sleep(pause_s)
            try:
                answer = http.post(url, content=content, headers=headers)
            except httpx.TransportError:
                continue
            if not answer.is_server_error:
                return answer
    return None
