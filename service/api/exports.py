"""/v1/jobs/{id}/exports: what a finished job has given, with the digests by which its files are known."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from service.api.context import Ctx, Reader, visible_job

router = APIRouter(prefix="/v1/jobs/{job_id}/exports", tags=["jobs"])


class ExportView(BaseModel):
    """path: of the files among the run's artifacts. files: SHA-256 by name. certificate: how far the answers of the
    exported model are from the trained one's."""

    path: str
    uri: str
    registered: str | None
    passed: bool
    files: dict[str, str]
    certificate: dict[str, Any]


class ExportPage(BaseModel):
    items: list[ExportView]
    next_cursor: str | None = None


@router.get("")
def list_exports(job_id: str, ctx: Ctx, who: Reader) -> ExportPage:
    """Nothing before the job has succeeded."""
    model = visible_job(ctx, who, job_id).model
    if model is None:
        return ExportPage(items=[])
    proof = model["certificate"]
    view = ExportView(
        path="export",
        uri=model["uri"],
        registered=model["registered"],
        passed=proof.get("passed", True),
        files=proof.get("files", {}),
        certificate=proof,
    )
    return ExportPage(items=[view])
