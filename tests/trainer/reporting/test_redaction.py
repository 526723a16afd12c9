"""What a process prints arrives without its secrets, however it is printed and by whom."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.helpers.paths import ROOT

SECRET = "s3cret-wörd"
BEGIN = f"""
import ctypes, os, subprocess, sys, time
from syncnorm.trainer.reporting.redaction import redacted_output
SECRET = {SECRET!r}
with redacted_output([SECRET, "-----BEGIN\\nabcdef\\n-----END"]):
"""


def printed(code: str) -> tuple[str, str]:
    """What arrives where a process prints to, of one that runs `code` with its output redacted."""
    program = BEGIN + "".join(f"    {line}\n" for line in code.splitlines()) + 'print("afterwards", SECRET)\n'
    environment = {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, env=environment, check=True, timeout=60)
    return done.stdout.decode(errors="surrogateescape"), done.stderr.decode()


@pytest.mark.parametrize(
    "code",
    [
        "print(SECRET)",
        "print(SECRET, file=sys.__stdout__, flush=True)",
        "os.write(1, SECRET.encode())",
        "os.write(1, SECRET.encode()[:4]); time.sleep(0.05); os.write(1, SECRET.encode()[4:] + b'\\n')",
        "ctypes.CDLL(None).puts(SECRET.encode()); ctypes.CDLL(None).fflush(None)",
        "subprocess.run([sys.executable, '-c', 'print(input())'], input=SECRET, text=True)",
        "for n in range(30): os.write(1, b'x' * (65540 + n) + SECRET.encode() + b'x' * 70_000)",
        "print('abcdef')",
    ],
)
def test_secret_does_not_arrive(code: str) -> None:
    out, err = printed(code)

    assert "***" in out
    assert out.endswith(f"afterwards {SECRET}\n")
    assert SECRET not in out.removesuffix(f"afterwards {SECRET}\n")
    assert "abcdef" not in out
    assert err == ""


def test_log_records_are_made_without_the_secret() -> None:
    lines = [
        "import io, logging",
        "heard = io.StringIO()",
        "logging.getLogger().addHandler(logging.StreamHandler(heard))",
    ]
    lines += ["try: raise ValueError(SECRET)", "except ValueError: logging.exception('with %s', SECRET)"]
    lines += ["print(SECRET not in heard.getvalue(), heard.getvalue().count('***'))"]

    out, _ = printed("\n".join(lines))

    assert out.startswith("True 2\n")  # the message and the exception


def test_everything_else_arrives_as_it_was_printed() -> None:
    out, err = printed(r"os.write(1, b'\xff\x00 10 %\r20 %\r\n' + b'long ' * 50_000); os.write(2, b'error')")

    expected = b"\xff\x00 10 %\r20 %\r\n" + b"long " * 50_000 + f"afterwards {SECRET}\n".encode()
    assert out.encode(errors="surrogateescape") == expected
    assert err == "error"
