"""Compiles and loads the nodes in C++: forward and backward of a normalization without Python in between.

Compiling them against torch's headers takes 10 to 20 s of one core, too long for a job's first step. So a process that
finds none has them compiled in the background, at the lowest priority, and goes on without. The next process loads
them. `python -m syncnorm.norm.native.extension` compiles them at once into the package, as the image does.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.machinery
import importlib.util
import logging
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from syncnorm.norm.native import compilation
from syncnorm.norm.native.build import cache_folder, library

logger = logging.getLogger(__name__)

exchange_clock = ctypes.c_void_p(None)
"""Where the nodes add the seconds of their exchanges: to a double at this address. None: nobody measures."""


@dataclass(frozen=True)
class Extension:
    """A module in C++. name: that of the module; sources: the first is compiled and includes the others."""

    name: str
    sources: tuple[str, ...]

    def paths(self) -> list[Path]:
        return [Path(__file__).with_name(source) for source in self.sources]


NODES = Extension("syncnorm_node", ("node.cpp", "tensors.cpp", "sample_node.cpp", "sync_node.cpp"))
CUDA_NODE = Extension("syncnorm_cuda_node", ("cuda_node.cpp", "tensors.cpp", "launches.cpp"))
"""For tensors on a GPU: see norm/backends/triton_launches.py. It compiles against every build of torch."""

# No -march: the kernels do the work, and the image that is built on one machine runs on others.
_FLAGS = ["-std=c++20", "-O1", "-w", "-fPIC", "-shared", "-fvisibility=hidden"]
_LIBRARIES = ["-ltorch_python", "-ltorch_cpu", "-lc10"]


def is_possible() -> bool:
    """Whether this machine can compile the nodes: it has the kernels in C, a C++ compiler, and all headers."""
    return library() is not None and _compiler() is not None and _missing_header() is None


@functools.cache
def node() -> Any:
    """The module of node.cpp, or None: not yet compiled, impossible here, or switched off by SYNCNORM_NODE=0."""
    kernels = library()
    if kernels is None or os.environ.get("SYNCNORM_NODE", "1") == "0":
        return None
    return load(NODES, lambda module: module.bind(kernels._handle, ctypes.addressof(exchange_clock)))


def load(extension: Extension, bind: Callable[[Any], None]) -> Any:
    """The compiled module, after `bind` has prepared it; None: not yet compiled, or impossible here."""
    compiler, missing = _compiler(), _missing_header()
    if compiler is None or missing is not None:
        return None
    try:
        found = _find(extension, compiler)
        if found is None:
            _compile_for_the_next_process(extension, compiler, cache_folder())
            return None
        module = _load(extension, found)
        bind(module)
        return module
    except (OSError, ImportError, RuntimeError) as error:
        warn(error)
        return None


def compile_now(folder: Path | None = None, extension: Extension = NODES) -> Path:
    """Compile `extension` and wait for it. folder: where to; by default the cache.

    Raises: RuntimeError with the compiler's words.
    """
    compiler, missing = _compiler(), _missing_header()
    if compiler is None or missing is not None:
        raise RuntimeError(f"compiling the nodes needs a C++ compiler and {missing or 'headers'}: install g++.")
    target = (folder or cache_folder()) / _file_name(compiler, extension)
    target.with_suffix(compilation.FAILED).unlink(missing_ok=True)
    compilation.compile_once(target, _command(compiler, extension), wait=True)
    if not target.exists():
        raise RuntimeError(compilation.failure(target) or f"{target} was not compiled")
    return target


def _find(extension: Extension, compiler: str) -> Path | None:
    """The compiled module for this torch: in the package, where an image has it, or in the cache."""
    name = _file_name(compiler, extension)
    return next((path for path in (Path(__file__).with_name(name), cache_folder() / name) if path.exists()), None)


def _load(extension: Extension, path: Path) -> Any:
    loader = importlib.machinery.ExtensionFileLoader(extension.name, str(path))
    specification = importlib.util.spec_from_loader(extension.name, loader)
    assert specification is not None
    module = importlib.util.module_from_spec(specification)
    loader.exec_module(module)
    return module


def _compile_for_the_next_process(extension: Extension, compiler: str, folder: Path) -> None:
    target = folder / _file_name(compiler, extension)
    if (reason := compilation.failure(target)) is not None:
        raise RuntimeError(reason)
    script = [sys.executable, "-I", compilation.__file__, str(target), *_command(compiler, extension)]
    threading.Thread(target=_report, args=(script, target), name="syncnorm-compilation", daemon=True).start()


def _report(script: list[str], target: Path) -> None:
    """Wait for the compiler in a thread of its own; the process may end before, the compiler then goes on alone."""
    subprocess.run(script, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if (reason := compilation.failure(target)) is not None:
        warn(reason)


def warn(reason: object) -> None:
    """Say that a node is not used, and why."""
    logger.warning("normalization runs without its nodes in C++, which is slower for small tensors: %s", reason)


def _compiler() -> str | None:
    return os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")


def _missing_header() -> Path | None:
    headers = (
        Path(sysconfig.get_path("include")) / "Python.h",
        _torch() / "include/torch/csrc/autograd/custom_function.h",
    )
    return next((header for header in headers if not header.exists()), None)


def _torch() -> Path:
    return Path(torch.__file__).parent


def _command(compiler: str, extension: Extension) -> list[str]:
    include = _torch() / "include"
    folders = [include, include / "torch/csrc/api/include", Path(sysconfig.get_path("include"))]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    flags = [*_FLAGS, abi, *(f"-I{folder}" for folder in folders)]
    return [compiler, *flags, str(extension.paths()[0]), f"-L{_torch() / 'lib'}", *_LIBRARIES]


def _file_name(compiler: str, extension: Extension = NODES) -> str:
    """By everything the machine code depends on. A home folder may be shared by unlike machines."""
    parts = [path.read_bytes() for path in extension.paths()]
    versions = (torch.__version__, torch.version.git_version, torch.compiled_with_cxx11_abi())
    facts = (*versions, compiler, *_FLAGS, sysconfig.get_config_var("SOABI"), platform.machine())
    parts += [str(fact).encode() for fact in facts]
    digest = hashlib.sha256(b"\0".join(parts)).hexdigest()
    return f"{extension.paths()[0].stem}-{digest[:16]}.so"


if __name__ == "__main__":
    for each in (NODES, CUDA_NODE) if torch.version.cuda else (NODES,):
        print(compile_now(Path(__file__).parent, each))
