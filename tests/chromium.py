"""A headless Chromium for tests, driven over a pipe with the DevTools protocol: no port, no driver, no library."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

EXECUTABLE = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome", "chrome") if (path := shutil.which(name))), None
)

# The protocol is spoken on the file descriptors 3 and 4.
_LAUNCH = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)
_TIMEOUT_S = 30.0

_BETWEEN_PAGES = (
    "navigated or closed",
    "context was destroyed",
    "Cannot find context",
    "Cannot find default execution",
)


class BetweenPagesError(AssertionError):
    """What was asked of a page that had just given way to another."""


class Chromium:
    """One page of one browser. `problems` gathers console errors, exceptions and refused policies; `requests` all URLs.

    Args:
        profile: An empty folder for the browser's own files.
        size: Width and height of the window, in pixels.
        dark: Whether the page is told that the reader prefers dark colours.
    """

    def __init__(self, profile: Path, size: tuple[int, int] = (1280, 900), dark: bool = False) -> None:
        assert EXECUTABLE is not None
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (theirs_in, theirs_out)]
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        command = [EXECUTABLE, *flags, "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _LAUNCH, *map(str, ends), *command], pass_fds=ends, stderr=subprocess.DEVNULL
        )
        for end in (theirs_in, theirs_out, *ends):
            os.close(end)
        self._unread = b""
        self._n_calls = 0
        self._session: str | None = None
        self.problems: list[str] = []
        self.requests: list[str] = []
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(target for target in targets if target["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.resize(*size)

    def call(self, method: str, **params: Any) -> Any:
        """The result of one call of the protocol; what happens meanwhile is noted."""
        self._n_calls += 1
        message = {"id": self._n_calls, "method": method, "params": params}
        os.write(
            self._out, json.dumps(message | ({"sessionId": self._session} if self._session else {})).encode() + b"\0"
        )
        while True:
            answer = self._receive()
            if answer.get("id") == self._n_calls:
                if any(words in str(answer.get("error")) for words in _BETWEEN_PAGES):
                    raise BetweenPagesError(answer["error"])
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def open(self, path: Path, address: str = "") -> float:
        """Load a file; the seconds until the page has drawn itself."""
        # An address that differs only behind the "#" would not load the page again.
        self.call("Page.navigate", url="about:blank")
        self.wait("location.href === 'about:blank'")
        start = time.perf_counter()
        self.call("Page.navigate", url=path.resolve().as_uri() + address)
        self.wait("document.getElementById('main')?.dataset.view !== undefined")
        return time.perf_counter() - start

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression (or of the promise that it gives)."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, expression: str) -> None:
        """Return as soon as the expression is true; while one page gives way to the next, nothing is."""

        def is_true() -> bool:
            try:
                return bool(self.run(expression))
            except BetweenPagesError:
                return False

        self.until(is_true, expression)

    def until(self, holds: Callable[[], Any], what: str) -> None:
        end = time.perf_counter() + _TIMEOUT_S
        while not holds():
            assert time.perf_counter() < end, f"This did not come true: {what}"
            time.sleep(0.02)

    def press(self, key: str) -> None:
        """Press one key on the focused element: a character, or a name such as "Enter"."""
        codes = {"Enter": 13, "Escape": 27, "Tab": 9, "End": 35, "Home": 36}
        codes |= {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
        event: dict[str, Any] = {"key": key, "windowsVirtualKeyCode": codes.get(key, ord(key[0]))}
        if len(key) == 1 or key == "Enter":
            event["text"] = "\r" if key == "Enter" else key
        self.call("Input.dispatchKeyEvent", type="keyDown", **event)
        self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def point_at(self, selector: str, click: bool = False) -> None:
        """Move the pointer to the middle of an element, and click it if wished."""
        middle = """(node => {
            node.scrollIntoView({ block: "nearest" });
            const box = node.getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2];
        })"""
        x, y = self.run(f"{middle}(document.querySelector({json.dumps(selector)}))")
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased") if click else ():
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def resize(self, width: int, height: int) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        os.close(self._out)
        os.close(self._in)
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._in], [], [], _TIMEOUT_S)
            assert ready, "The browser does not answer."
            read = os.read(self._in, 1 << 20)
            assert read, "The browser has ended."
            self._unread += read
        message, _, self._unread = self._unread.partition(b"\0")
        event: dict[str, Any] = json.loads(message)
        self._note(event.get("method", ""), event.get("params", {}))
        return event

    def _note(self, method: str, params: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif (
            method == "Runtime.exceptionThrown"
            or (method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"))
            or (method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"))
        ):
            self.problems.append(json.dumps(params)[:600])
