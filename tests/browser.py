"""A headless Chromium, spoken to through two pipes (the DevTools protocol, https://chromedevtools.github.io/devtools-protocol)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip
PATIENCE = 20.0  # seconds for what happens on a page


class Browser:
    """One page in one browser; `events` are the protocol's since the page was opened."""

    def __enter__(self) -> Browser:
        assert CHROMIUM is not None
        its_input, self._input = os.pipe()
        self._output, its_output = os.pipe()
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        start = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execvp(sys.argv[3], sys.argv[3:])"
        pipes = [str(its_input), str(its_output)]  # it reads the protocol from 3 and writes it to 4
        command = [sys.executable, "-c", start, *pipes, CHROMIUM, *FLAGS, f"--user-data-dir={self._profile.name}", "about:blank"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, pass_fds=(its_input, its_output), **quiet)
        for descriptor in (its_input, its_output):
            os.close(descriptor)
        self._buffer, self._calls, self._session = b"", 0, {}
        self.events: list[dict[str, Any]] = []
        try:
            self._attach()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _attach(self) -> None:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.terminate()
        self._process.wait(timeout=20)
        for descriptor in (self._input, self._output):
            os.close(descriptor)
        self._profile.cleanup()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a command."""
        self._calls += 1
        document = {"id": self._calls, "method": method, "params": parameters, **self._session}
        os.write(self._input, json.dumps(document).encode() + b"\0")
        while (message := self._next()).get("id") != self._calls:
            self.events.append(message)
        assert "error" not in message, message
        return message["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            chunk = os.read(self._output, 1 << 16)
            assert chunk, "the browser is gone"
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def open(self, page: Path | str, *, width: int, dark: bool = False) -> None:
        """Load a file or an address at a width in CSS pixels, for light or dark paper."""
        self.events.clear()
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 500)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=page if isinstance(page, str) else page.resolve().as_uri())
        while not self.seen("Page.loadEventFired"):
            self.events.append(self._next())

    def seen(self, *methods: str) -> list[dict[str, Any]]:
        """The parameters of the events of these kinds."""
        return [event["params"] for event in self.events if event.get("method") in methods]

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives on the page."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        return result["result"]["value"]

    def until(self, expression: str) -> Any:
        """What an expression gives as soon as that is something."""
        ends = time.monotonic() + PATIENCE
        while not (found := self.value(expression)):
            assert time.monotonic() < ends, f"{expression} does not come; the page says: {self.value('document.body.innerText')}"
            time.sleep(0.02)
        return found

    def press(self, key: str, code: int, text: str = "") -> None:
        """A key, as a hand presses it; `text`: what it types."""
        for kind in ("keyDown", "keyUp"):
            typed = {"text": text} if text and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **typed)

    def drop(self, selector: str, *files: Path) -> None:
        """Files from another window, as a hand drops them on the middle of an element."""
        box = f"document.querySelector('{selector}').getBoundingClientRect()"
        x, y = self.value(f"(() => {{ const box = {box}; return [box.x + box.width / 2, box.y + box.height / 2] }})()")
        data = {"items": [], "files": [str(file) for file in files], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)
