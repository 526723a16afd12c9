"""A real Chromium without a screen, driven through its DevTools protocol over a pair of pipes."""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(
    PROGRAM is None, reason="no Chromium on this machine (Debian: apt install chromium)"
)
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
    *("--ignore-certificate-errors", "--disable-popup-blocking", "--remote-debugging-pipe"),
    # A guard of newer browsers alone, which asks before a page reaches loopback.
    "--disable-features=LocalNetworkAccessChecks,BlockInsecurePrivateNetworkRequests,PrivateNetworkAccessSendPreflights",
)
_DEADLINE_S = 60.0
_MOVE = """
import fcntl, os, sys
spare = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3]]
for number, wanted in zip(spare, (3, 4)):
    os.dup2(number, wanted)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Chromium takes commands on descriptor 3 and answers on 4, whatever numbers they have here."""


class Page:
    """A tab."""

    def __init__(self, browser: Browser, target: str, session: str) -> None:
        self._browser = browser
        self._target = target
        self._session = session

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self._browser.call(method, params, self._session)

    def open(self, url: str) -> None:
        """Go there as somebody who types the address, and wait until it is loaded."""
        self.call("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, script: str) -> Any:
        """The value of an expression in the page, or what a promise comes to. Raises: AssertionError if it throws."""
        done = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def wait_for(self, condition: str, timeout_s: float = _DEADLINE_S) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            # A page that is just leaving has no place to evaluate in.
            done = self.call("Runtime.evaluate", expression=f"Boolean({condition})", returnByValue=True)
            if done.get("result", {}).get("value"):
                return
            time.sleep(0.05)
        raise AssertionError(
            f"not within {timeout_s:g} s: {condition}; {self.run('document.documentElement.innerText')}"
        )

    def picture(self, width: int, height: int, *, dark: bool = False) -> bytes:
        """The whole page as a PNG, in a window of this size."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Emulation.setScrollbarsHidden", hidden=True)
        made = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        return base64.b64decode(made["data"])

    def close(self) -> None:
        self._browser.call("Target.closeTarget", {"targetId": self._target})


class Browser:
    """Commands out and answers in, one JSON document after another, each followed by a NUL."""

    def __init__(self, requests: int, answers: int) -> None:
        self._requests, self._answers = requests, answers
        self._numbers = itertools.count(1)
        self._read = b""

    def call(self, method: str, params: Mapping[str, Any], session: str | None = None) -> dict[str, Any]:
        """The answer; `{"error": …}` where Chromium could not do it."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        os.write(self._requests, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + _DEADLINE_S
        while time.monotonic() < deadline:
            if (answer := self._next(deadline)).get("id") == number:
                return dict(answer.get("result", {"error": answer.get("error")}))
        raise AssertionError(f"Chromium did not answer {method}")

    def _next(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._read:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))
            piece = os.read(self._answers, 2**20) if ready else b""
            assert piece, "Chromium is gone or silent"
            self._read += piece
        document, _, self._read = self._read.partition(b"\0")
        return dict(json.loads(document))

    @contextmanager
    def page(self, url: str = "about:blank") -> Iterator[Page]:
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        page = Page(self, target, session)
        try:
            if url != "about:blank":
                page.open(url)
            yield page
        finally:
            page.close()


@contextmanager
def browser(names: tuple[str, ...] = ()) -> Iterator[Browser]:
    """names: host names that are loopback for it. No other is found: it is offline."""
    assert PROGRAM is not None
    rules = ",".join(
        [*(f"MAP {name} 127.0.0.1" for name in names), "MAP * ~NOTFOUND", "EXCLUDE 127.0.0.1", "EXCLUDE localhost"]
    )
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as folder:
        (theirs_in, ours_out), (ours_in, theirs_out) = os.pipe(), os.pipe()
        command = [sys.executable, "-c", _MOVE, str(theirs_in), str(theirs_out), PROGRAM, *_FLAGS]
        process = subprocess.Popen(
            [*command, f"--user-data-dir={folder}", f"--host-resolver-rules={rules}", "about:blank"],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        try:
            yield Browser(ours_out, ours_in)
        finally:
            os.close(ours_out)  # it ends with its pipe
            os.close(ours_in)
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
