"""/v1/jobs/{id}/files: the files that a job has published, as a list and one by one."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain
from typing import Annotated, Any
from urllib.parse import quote

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.responses import StreamingResponse

from syncnorm.service.api.components import Components
from syncnorm.service.api.dependencies import Reader, provide, visible_job
from syncnorm.service.api.http.byte_ranges import ByteRange, UnsatisfiableError, requested
from syncnorm.service.api.http.errors import ApiError, not_found, refused
from syncnorm.service.api.http.etags import is_known
from syncnorm.service.api.http.pagination import Cursor, decode, encode, list_id
from syncnorm.service.api.http.route import Route
from syncnorm.service.api.views.view import View
from syncnorm.service.jobs.job import Job
from syncnorm.service.storage.job_files import JobFile, JobFiles, Section, sections
from syncnorm.service.store.tables.exports import ExportTable
from syncnorm.service.store.tables.history import HistoryTable
from syncnorm.service.store.tables.jobs import JobTable

router = APIRouter(prefix="/v1/jobs/{job_id}/files", tags=["jobs"], route_class=Route)
_BINARY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The whole file.", "content": _BINARY},
    206: {"description": "The part that Range asks for.", "content": _BINARY},
    **refused(416),
}


@dataclass(frozen=True)
class _Files:
    jobs: JobTable
    history: HistoryTable
    exports: ExportTable
    storage: JobFiles
    limiter: CapacityLimiter

    def places(self, job: Job) -> list[Section]:
        return sections(job, self.history.checkpoints(job.id), self.exports.of_job(job.id))


def _files(parts: Components) -> _Files:
    store = parts.store
    return _Files(store.jobs, store.history, store.exports, parts.files, parts.downloads)


Files = Annotated[_Files, Depends(provide(_files))]


class FileKind(StrEnum):
    """What a file holds."""

    WEIGHTS = "weights"
    """The trained weights, in the model with its converted normalization."""
    PLAIN_WEIGHTS = "plain_weights"
    """The same for the original classes."""
    DESCRIPTION = "description"
    """Which model the weights belong to, and what it needs."""
    CERTIFICATE = "certificate"
    """How far the answers of each exported form are from the trained model's."""
    ONNX = "onnx"
    """The model for ONNX Runtime."""
    PT2 = "pt2"
    """The model for torch.export.load."""
    CHECKPOINT = "checkpoint"
    """Part of a checkpoint."""
    SPEC = "spec"
    """The spec of the job."""
    PLAN = "plan"
    """Its plan."""
    STATISTICS = "statistics"
    """Statistics of normalization layers."""
    PICTURE = "picture"
    """A picture."""
    OTHER = "other"
    """Anything else."""


_BY_NAME = {
    "weights.safetensors": FileKind.WEIGHTS,
    "plain.safetensors": FileKind.PLAIN_WEIGHTS,
    "model.json": FileKind.DESCRIPTION,
    "certificate.json": FileKind.CERTIFICATE,
    "spec.yaml": FileKind.SPEC,
    "plan.json": FileKind.PLAN,
}
_BY_END = {".onnx": FileKind.ONNX, ".pt2": FileKind.PT2, ".png": FileKind.PICTURE}


class FileView(View):
    """A file that a job has published."""

    path: str
    """Its path among the files of the job, as you ask for it."""
    kind: FileKind
    """What it holds."""
    size_bytes: int
    """Its size."""
    digest: str
    """SHA-256 of its content, in hex. Also its ETag."""


class FilePage(View):
    """A page of files."""

    items: list[FileView]
    """The files, by path."""
    next_cursor: str | None
    """Send it as `cursor` to get the next page. null: this is the last page."""


@router.get("")
def list_files(
    *,
    job_id: str,
    files: Files,
    who: Reader,
    prefix: Annotated[
        str, Query(max_length=400, description="Only files whose path begins with this, as export/.")
    ] = "",
    limit: Annotated[int, Query(ge=1, le=1000, description="Files on a page.")] = 200,
    cursor: Cursor = None,
) -> FilePage:
    """The files of a job: `export/…` once it is over, `exports/{name}/…` of later exports, `checkpoints/{step}/…`, and
    what it recorded, such as `spec.yaml`, `plan.json` and `norm/…`.

    Checkpoints and records of a running job are there as soon as they are complete.
    """
    job = visible_job(files.jobs, who, job_id)
    listing = list_id("files", job=job_id, prefix=prefix)
    after = decode(listing, cursor, str)[0] if cursor is not None else ""
    found = [one for one in files.storage.all(files.places(job)) if one.path.startswith(prefix) and one.path > after]
    page = found[:limit]
    return FilePage(
        items=list(_views(page, files.storage)),
        next_cursor=encode(listing, page[-1].path) if len(found) > limit else None,
    )


def _views(found: Iterable[JobFile], storage: JobFiles) -> Iterator[FileView]:
    for file in found:
        with suppress(FileNotFoundError):  # deleted meanwhile, as checkpoints are
            size, digest = file.entry.size_bytes, storage.digest(file)
            yield FileView(path=file.path, kind=kind_of(file.path), size_bytes=size, digest=digest)


def kind_of(path: str) -> FileKind:
    """What the file of this path holds."""
    folder, _, name = path.rpartition("/")
    top = path.partition("/")[0]
    if top == "checkpoints":
        return FileKind.CHECKPOINT
    if name in _BY_NAME and (not folder or top in ("export", "exports")):
        return _BY_NAME[name]
    if folder == "norm/statistics":
        return FileKind.STATISTICS
    return next((kind for end, kind in _BY_END.items() if name.endswith(end)), FileKind.OTHER)


@router.get("/{path:path}", response_class=Response, responses=_RESPONSES)
def get_file(
    *,
    job_id: str,
    path: Annotated[str, Path(max_length=1000, description="Path of the file, as the list has it.")],
    request: Request,
    files: Files,
    who: Reader,
    byte_range: Annotated[
        str | None, Header(alias="Range", description="One part, such as bytes=1000-. Several are answered with all.")
    ] = None,
    if_range: Annotated[
        str | None, Header(alias="If-Range", description="An ETag: Range counts only while the file has it.")
    ] = None,
) -> Response:
    """A file of a job, or a part of it. Continue a broken download with Range and If-Range."""
    job = visible_job(files.jobs, who, job_id)
    found = files.storage.find(files.places(job), path)
    if found is None:
        raise not_found("file", path)
    digest, size = _known_digest(files.storage, found), found.entry.size_bytes
    tag = f'"{digest}"'
    headers = {
        "ETag": tag,
        "Accept-Ranges": "bytes",
        "Content-Disposition": _disposition(path),
        "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(digest)).decode()}:",
    }
    if is_known(request, tag):
        return Response(status_code=304, headers={"ETag": tag})
    try:
        part = requested(byte_range, if_range, tag, size)
    except UnsatisfiableError as error:
        extent = {"Content-Range": f"bytes */{size}"}
        raise ApiError(416, "range_not_satisfiable", str(error), headers=extent) from error
    if part is not None:
        headers["Content-Range"] = f"bytes {part.start}-{part.end - 1}/{size}"
    return _streamed(files, found, part, headers)


def _known_digest(storage: JobFiles, file: JobFile) -> str:
    try:
        return storage.digest(file)
    except FileNotFoundError as error:  # deleted meanwhile, as checkpoints are
        raise not_found("file", file.path) from error


def _streamed(files: _Files, file: JobFile, part: ByteRange | None, headers: dict[str, str]) -> Response:
    """The first piece is read before anything is answered: if the storage is away, the answer can still say so."""
    start, end = (part.start, part.end) if part else (0, file.entry.size_bytes)
    pieces = files.storage.pieces(file, start, end)
    try:
        first = next(pieces, b"")
    except FileNotFoundError as error:
        raise not_found("file", file.path) from error
    return StreamingResponse(
        _in_threads(chain((first,), pieces), files.limiter),
        206 if part else 200,
        headers | {"Content-Length": str(end - start)},
        "application/octet-stream",
    )


async def _in_threads(pieces: Iterator[bytes], limiter: CapacityLimiter) -> AsyncIterator[bytes]:
    while (piece := await to_thread.run_sync(next, pieces, None, limiter=limiter)) is not None:
        yield piece


def _disposition(path: str) -> str:
    """Saved, never shown: it may be a page that a job has written (RFC 6266)."""
    name = path.rpartition("/")[2]
    return f"attachment; filename*=UTF-8''{quote(name, safe='')}"
