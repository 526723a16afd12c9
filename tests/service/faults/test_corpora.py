"""Names, archives, addresses and job files that mean harm, made by combining all ways known (T15).

Each is refused or harmless: nothing is written outside, and none takes a second or 100 MB.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from syncnorm.service.cli.job_files.job_file import SpecFileError, load
from syncnorm.service.storage.code_packages import PackageError, check
from syncnorm.trainer.storage.data_urls import problem
from syncnorm.trainer.user_code.package import unpack
from tests.service.storage.test_code_packages import BAD as BAD_ARCHIVES
from tests.service.storage.test_code_packages import archive, raw_name
from tests.trainer.storage.test_data_urls import ALLOWED
from tests.trainer.storage.test_data_urls import BAD as BAD_URLS

UPS = (*("../", "..\\", "./../", "a/../../", "....//", "..;/", "%2e%2e/", "..%2f", "..%5c", "%252e%252e/", "．．/"),)
FRONTS = ("", "/", "//", "\\\\host\\share\\", "C:\\", "C:/", "file://", "~/", "~root/", "./")
TARGETS = ("etc/cron.d/x", "out.py", "CON", "aux.py", ".ssh/authorized_keys", "x\x00.py", "a\nb", "a:b", "é\u202e.py")
HOSTS = ("127.0.0.1", "localhost", "[::1]", "0", "0.0.0.0", "169.254.169.254", "10.0.0.7", "2130706433", "0x7f.1")
FORMS = (
    *("http://{}/x", "https://{}/sets/x", "http://{}:9000/x", "https://data.example.org@{}/sets/x"),
    *("https://{}/data.example.org/sets/x", "https://data.example.org#@{}/sets", "https://data.example.org\\@{}/sets"),
    *("HTTP://{}/x", "simplecache::http://{}/x", "https://data.example.org/sets/../../{}/x"),
    *("ftp://{}/x", "s3://bucket/x::http://{}/"),
)
YAMLS = (
    *("a: &a [x]\nb: *a\n", "a: !!python/object/apply:os.system ['id']\n", "a: !!python/name:os.system\n"),
    *(
        "a: !!binary |\n  //79\n",
        "- a\n",
        "42\n",
        "",
        "a: [\n",
        "a: {b\n",
        "\tname: x\n",
        "a: b: c\n",
        "%YAML 9.9\n---\n",
    ),
    *("a: !include /etc/passwd\n", "a: !!set {x}\n", "<<: {a: 1}\n", "a: 1\na: 2\n", "? [a]\n: 1\n", "--- \n---\n"),
    *("\x00", "a: \x07\n", "\ufeffa: 1\n", "a: " + "[" * 3000, "a: " + "{a: " * 3000, "x" * 70_000, "a: " + "1" * 5000),
    *("a: .inf\n", "a: .nan\n", "a: 0o17\n", "a: 2001-01-01\n", "a: !!timestamp 9999-99-99\n", "a: |\n  x\n b\n"),
)


@contextmanager
def cheap(what: str) -> Iterator[None]:
    """Fails where the block takes a second or 100 MB."""
    tracemalloc.reset_peak()
    began = time.process_time()
    yield
    assert time.process_time() - began < 1, what
    assert tracemalloc.get_traced_memory()[1] < 100 * 2**20, what


@pytest.fixture(autouse=True)
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def names() -> list[str]:
    return [
        front + up * depth + target
        for (front, up, target), depth in zip(
            itertools.product(FRONTS, ("", *UPS), TARGETS), itertools.cycle((1, 2, 9)), strict=False
        )
    ]


def _try(content: bytes, into: Path) -> bool:
    """Whether an archive was taken; then it is unpacked as a driver does."""
    try:
        check(io.BytesIO(content))
    except PackageError:
        return False
    package = into / "package.zip"
    package.write_bytes(content)
    unpack(str(package), f"sha256:{hashlib.sha256(content).hexdigest()}", into / "inside" / "code")
    return True


def everything(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file() or path.is_symlink()}


@pytest.mark.chaos
def test_no_name_leads_outside(tmp_path: Path) -> None:
    tried = names()
    taken = 0
    for name in tried:
        for make in (lambda name=name: archive((name, b"x")), lambda name=name: raw_name(name.encode())):
            with cheap(name), suppress(ValueError, UnicodeError):  # zipfile does not write every name
                taken += _try(make(), tmp_path)
    outside = {path for path in everything(tmp_path) if not path.is_relative_to(tmp_path / "inside" / "code")}

    assert len(tried) >= 200
    assert 0 < taken < len(tried)
    assert outside == {tmp_path / "package.zip"}


@pytest.mark.chaos
def test_no_archive_does_harm(tmp_path: Path) -> None:
    makes: list[tuple[str, Callable[[], bytes]]] = [(name, make) for name, (make, _) in BAD_ARCHIVES.items()]
    makes += [(f"in a folder: {name}", lambda make=make: archive(("a.zip", make()))) for name, make in makes]  # type: ignore[misc]
    makes += [(f"bomb of {power}", lambda power=power: _bomb(power)) for power in range(10, 28)]  # type: ignore[misc]
    taken = []
    for name, make in makes:
        content = make()
        with cheap(name):
            if _try(content, tmp_path):
                taken.append(name)

    assert len(makes) >= 60
    assert not [name for name in taken if name in BAD_ARCHIVES]
    assert "bomb of 27" not in taken
    assert everything(tmp_path / "inside") == everything(tmp_path / "inside" / "code")


def _bomb(power: int) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("zeros", bytes(2**power))
    return made.getvalue()


@pytest.mark.chaos
def test_no_address_gets_past_the_allowed_ones() -> None:
    tried = [*BAD_URLS, *(form.format(host) for form in FORMS for host in HOSTS)]
    allowed = {"http://10.0.0.7:9000/x", "HTTP://10.0.0.7:9000/x"}

    for url in tried:
        with cheap(url):
            assert problem(url, ALLOWED) is not None or url in allowed, url

    assert len(tried) >= 100


@pytest.mark.chaos
def test_no_job_file_does_harm(tmp_path: Path) -> None:
    for number, text in enumerate(YAMLS):
        path = tmp_path / f"{number}.yaml"
        path.write_text(text)
        with cheap(text[:40]), suppress(SpecFileError):
            assert isinstance(load(path, []), dict)

    assert len(YAMLS) >= 30
