"""What an error of fsspec's file systems means for the storage. Pure, and without importing any of them."""

from __future__ import annotations

import errno
from enum import Enum


class Fault(Enum):
    """The kind of an error."""

    MISSING = "missing"
    """The storage answers that there is no such file."""
    REFUSED = "refused"
    """It refuses, and would again: credentials, bucket, region."""
    AWAY = "away"
    """It does not answer now."""


_NO = {errno.EINVAL, errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ENAMETOOLONG, getattr(errno, "EREMCHG", None)}
# Of botocore, google.auth and azure: there is nothing to ask with, or what there is was refused.
_NO_CREDENTIALS = frozenset(
    {
        "NoCredentialsError",
        "PartialCredentialsError",
        "CredentialRetrievalError",
        "ProfileNotFound",
        "NoRegionError",
        "ParamValidationError",
        "DefaultCredentialsError",
        "RefreshError",
        "ClientAuthenticationError",
    }
)
_TEXT = 300
NO_BUCKET = "The specified bucket does not exist"
"""S3's message, also used for other storages, which have no sign of their own."""
_NOT_NOW = {408, 429}

_FIXES = {
    Fault.REFUSED: "Check the credentials on this host and what they allow (get, put, list, delete), the name of the "
    "bucket and its region (for s3 AWS_DEFAULT_REGION), then retry.",
    Fault.AWAY: "Check the network from this host to it (for s3 also AWS_ENDPOINT_URL), then retry.",
}


def fault_of(error: BaseException) -> Fault:
    """What `error`, raised by an fsspec file system, means for its storage."""
    if type(error) is RuntimeError and error.__cause__ is not None:  # adlfs, of a deletion
        return fault_of(error.__cause__)
    text = str(error)
    if isinstance(error, FileNotFoundError):
        # s3fs makes the same of a missing key and a missing bucket (s3fs 2026.9).
        return Fault.REFUSED if NO_BUCKET.lower() in text.lower() else Fault.MISSING
    return Fault.REFUSED if _is_refusal(error, text) else Fault.AWAY


def _is_refusal(error: BaseException, text: str) -> bool:
    names = {kind.__name__ for kind in type(error).__mro__}
    # gcsfs makes an OSError of 403 and a ValueError of a bad request (2026.10).
    if isinstance(error, PermissionError | ValueError) or names & _NO_CREDENTIALS or text.startswith("Forbidden"):
        return True
    if isinstance(error, OSError) and error.errno in _NO:
        return True
    status = _http_status(error)
    return 400 <= status < 500 and status not in _NOT_NOW


def _http_status(error: BaseException) -> int:
    """Of gcsfs (code) and azure (status_code); 0: none."""
    status = str(getattr(error, "code", None) or getattr(error, "status_code", None))
    return int(status) if status.isdigit() else 0


def explain(fault: Fault, root: str, what: str, error: BaseException, tried_s: float) -> str:
    """A sentence on what happened, and one on what to change."""
    said = f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0][:_TEXT]}"
    if fault is Fault.AWAY:
        how = f"did not answer for {tried_s:.0f} s" if tried_s >= 1 else "did not answer"
    else:
        how = "refused"
    return f"the storage {root} {how} to {what} ({said}). {_FIXES.get(fault, _FIXES[Fault.REFUSED])}"
