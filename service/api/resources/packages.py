"""/v1/packages: user code, uploaded once under the digest of its content."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from typing import IO, Annotated, Any

from fastapi import APIRouter, Depends, Path, Request, Response
from starlette.concurrency import run_in_threadpool

from syncnorm.service.api.audit_trail import AuditTrail
from syncnorm.service.api.components import Components
from syncnorm.service.api.dependencies import Submitter, provide
from syncnorm.service.api.http.errors import ApiError
from syncnorm.service.api.http.route import Route
from syncnorm.service.api.views.view import View
from syncnorm.service.jobs.actors import Actor, NewAuditEntry
from syncnorm.service.storage.code_packages import CodePackages, PackageError, check, python_sources
from syncnorm.service.storage.package_hints import hints
from syncnorm.service.store.administration.audit import AuditTable

router = APIRouter(prefix="/v1/packages", tags=["packages"], route_class=Route)


@dataclass(frozen=True)
class _Uploads:
    """audit: for what was done; audit_trail: for what was so already, which is added up."""

    packages: CodePackages
    allow_code: bool
    audit: AuditTable
    audit_trail: AuditTrail


def _uploads(parts: Components) -> _Uploads:
    return _Uploads(parts.packages, parts.settings.allow_code, parts.store.audit, parts.audit_trail)


Uploads = Annotated[_Uploads, Depends(provide(_uploads))]
Sha256 = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the archive, in hex.")]
_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}},
    }
}


class PackageView(View):
    """An uploaded package."""

    package: str
    """What your spec names as `code.package`."""
    files: int
    """Files in the archive."""
    size_bytes: int
    """Size of the archive."""
    hints: list[str]
    """What is likely to go wrong with it, in sentences: modules that are not installed here, or that it hides."""


_KNOWN: dict[int | str, dict[str, Any]] = {200: {"description": "It was uploaded before", "model": PackageView}}


@router.put("/{sha256}", status_code=201, responses=_KNOWN, openapi_extra=_BODY)
async def put_package(
    sha256: Sha256, request: Request, response: Response, uploads: Uploads, who: Submitter
) -> PackageView:
    """Upload a zip of Python packages. Workers of jobs that name it have it on their path."""
    if not uploads.allow_code:
        raise ApiError(
            403,
            "code_not_allowed",
            "Uploaded code is switched off. An operator can allow it with SYNCNORM_ALLOW_CODE=on.",
        )
    digest, size = hashlib.sha256(), 0
    with tempfile.SpooledTemporaryFile(max_size=2**20) as archive:
        async for piece in request.stream():
            digest.update(piece)
            size += len(piece)
            await run_in_threadpool(archive.write, piece)
        if digest.hexdigest() != sha256:
            detail = f"The body must have the SHA-256 that the address names; it has {digest.hexdigest()}."
            raise ApiError(422, "wrong_digest", detail)
        files, is_new = await run_in_threadpool(_keep, uploads, f"sha256:{sha256}", archive, who.actor)
        found = await run_in_threadpool(lambda: hints(python_sources(archive)))
    if not is_new:
        uploads.audit_trail.add(NewAuditEntry(who.actor, "package.put", f"sha256:{sha256}", outcome="unchanged"))
    response.status_code = 201 if is_new else 200
    return PackageView(package=f"sha256:{sha256}", files=files, size_bytes=size, hints=found)


def _keep(uploads: _Uploads, package: str, archive: IO[bytes], by: Actor) -> tuple[int, bool]:
    """(number of files, whether it is new)."""
    try:
        files = check(archive)
    except PackageError as error:
        raise ApiError(422, "invalid_package", f"The package is not accepted: {error}.") from error
    is_new = not uploads.packages.has(package)
    if is_new:
        uploads.packages.put(package, archive)
        uploads.audit.add([NewAuditEntry(by, "package.put", package, after={"files": files})])
    return files, is_new
