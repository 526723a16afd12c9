"""What an error of one of fsspec's file systems says about the storage. Pure, and without importing any of them."""

from __future__ import annotations

import errno
from enum import Enum


class Fault(Enum):
    """What is the matter."""

    MISSING = "missing"
    """The storage answers that there is no such file."""
    REFUSED = "refused"
    """It answers no, and would again: credentials, bucket, region."""
    AWAY = "away"
    """It does not answer, or not now."""


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

_FIXES = {
    Fault.REFUSED: "Check the credentials on this host and what they allow (get, put, list, delete), the name of the "
    "bucket and its region (for s3 AWS_DEFAULT_REGION), then retry.",
    Fault.AWAY: "Check the network from this host to it (for s3 also AWS_ENDPOINT_URL), then retry.",
}


def fault_of(error: BaseException) -> Fault:
    """What `error`, raised by an fsspec file system, says of its storage."""
    text = str(error)
    if isinstance(error, FileNotFoundError):
        # s3fs makes the same of a missing key and a missing bucket (s3fs 2026.9).
        return Fault.REFUSED if "bucket does not exist" in text else Fault.MISSING
    names = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, PermissionError) or names & _NO_CREDENTIALS:
        return Fault.REFUSED
    if getattr(error, "code", None) in (401, 403) or text.startswith("Forbidden"):  # gcsfs
        return Fault.REFUSED
    if isinstance(error, ValueError) or (isinstance(error, OSError) and error.errno in _NO):  # gcsfs: a bad request
        return Fault.REFUSED
    return Fault.AWAY


def explain(fault: Fault, root: str, what: str, error: BaseException, tried_s: float) -> str:
    """A sentence on what happened, and one on what to change."""
    said = f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0][:_TEXT]}"
    if fault is Fault.AWAY:
        how = f"did not answer for {tried_s:.0f} s" if tried_s >= 1 else "did not answer"
    else:
        how = "refused"
    return f"the storage {root} {how} to {what} ({said}). {_FIXES.get(fault, _FIXES[Fault.REFUSED])}"
