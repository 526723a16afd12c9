"""Compiles kernels.c at first use and loads it. Returns None where there is no compiler; PyTorch computes then."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

logger = logging.getLogger(__name__)

_FILES = ("kernels.c", "kernels_of_type.c", "sample_tables.c", "sample_kernels.c")
_SOURCES = [Path(__file__).with_name(name) for name in _FILES]
_FLAGS = ["-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-shared", "-fPIC"]


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels. SYNCNORM_KERNELS=0 switches them off."""
    if os.environ.get("SYNCNORM_KERNELS", "1") == "0":
        return None
    try:
        return _declare(ctypes.CDLL(str(_compiled())))
    except (OSError, subprocess.SubprocessError, _NoCompilerError) as error:
        logger.warning("normalization runs without compiled kernels, which is slower: %s", error)
        return None


class _NoCompilerError(Exception):
    pass


def _compiled() -> Path:
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise _NoCompilerError("no C compiler (cc, gcc or clang) on the path")
    folder = cache_folder()
    target = folder / f"kernels-{_fingerprint(compiler)}.so"
    if not target.exists():
        # Every worker may compile at the same time; the rename makes one of the results the one.
        handle, partial = tempfile.mkstemp(dir=folder, suffix=".tmp")
        os.close(handle)
        try:
            command = [compiler, *_FLAGS, "-o", partial, str(_SOURCES[0]), "-lm"]
            subprocess.run(command, check=True, capture_output=True, timeout=120)
            Path(partial).replace(target)
        finally:
            Path(partial).unlink(missing_ok=True)
    return target


def cache_folder() -> Path:
    """A folder that only this user can write, for what lies in it is run; in /tmp where home is read-only."""
    base = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    for folder in (Path(base) / "syncnorm", Path(tempfile.gettempdir()) / f"syncnorm-{os.getuid()}"):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            continue
        facts = folder.stat(follow_symlinks=False)
        if facts.st_uid == os.getuid() and not facts.st_mode & 0o022 and os.access(folder, os.W_OK):
            return folder
    raise OSError("neither the cache folder nor the temporary folder can hold compiled kernels for this user alone")


def _fingerprint(compiler: str) -> str:
    """Of everything the machine code depends on; a home folder may be shared by unlike machines."""
    parts = [path.read_bytes() for path in _SOURCES]
    parts += [" ".join([compiler, *_FLAGS]).encode(), platform.machine().encode(), _cpu_flags().encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _cpu_flags() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.lower().startswith(("flags", "features"))), "")


def _declare(lib: ctypes.CDLL) -> ctypes.CDLL:
    p, n, d, u, i = ctypes.c_void_p, ctypes.c_long, ctypes.c_double, ctypes.c_uint64, ctypes.c_int
    sizes = [n, n, n, i, i]
    arguments = {
        "publish": [p, n, n, u],
        "published": [p, n, n],
        "exchange_row": [p, p, p, n],
        "await_all": [p],
    }
    for suffix in ("f32", "f64", "bf16"):
        arguments[f"measure_{suffix}"] = [p, *sizes, p]
        arguments[f"gradient_sums_{suffix}"] = [p, p, *sizes, p, p]
        arguments[f"group_forward_{suffix}"] = [p, p, n, n, n, n, i, d, p, p, i, p]
        arguments[f"group_backward_{suffix}"] = [p, p, p, n, n, n, n, i, p, p, i, p, p]
        arguments[f"finish_forward_{suffix}"] = [p, p, *sizes, p, n, n, p, d, p, p, i, d, p, p, i, p, p]
        arguments[f"finish_backward_{suffix}"] = [p, p, p, *sizes, p, p, p, n, n, p, d, p, i, p, p]
    for name, types in arguments.items():
        function = getattr(lib, name)
        function.argtypes, function.restype = types, None
    lib.published.restype = u
    lib.exchange_row.restype = lib.await_all.restype = n
    return lib
