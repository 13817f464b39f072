"""A real Chromium without a window, told what to do over a pipe: its DevTools protocol.

Source: chromedevtools.github.io/devtools-protocol; a message is JSON and ends with a NUL.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

__all__ = ["Browser", "Page"]

_WAIT_S = 30.0


class Browser:
    """One Chromium with a profile of its own in ``folder``; it reaches loopback alone."""

    def __init__(self, folder: Path) -> None:
        program = shutil.which("chromium")
        if program is None:
            pytest.skip("no chromium: apt-get install chromium")
        (to_it, self._to), (self._back, its) = os.pipe(), os.pipe()
        to_it, its = _high(to_it), _high(its)
        command = [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        command += ["--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-pipe"]
        command += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"]
        command += [f"--user-data-dir={folder / 'profile'}", "about:blank"]

        self._log = (folder / "chromium.log").open("wb")
        environment = {**os.environ, "HOME": str(folder)}
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{to_it} 4>&{its}', "bash", *command],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            pass_fds=(to_it, its),
            env=environment,
            start_new_session=True,
        )
        os.close(to_it)
        os.close(its)
        self._number = 0
        self._data = b""
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str = "", **params: Any) -> dict[str, Any]:
        """Have it do something, and return what comes of it."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                result = answer["result"]
                assert isinstance(result, dict)
                return result
            self.events.append(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._data:
            data = os.read(self._back, 1 << 20)
            assert data, "chromium has ended"
            self._data += data
        one, _, self._data = self._data.partition(b"\0")
        content = json.loads(one)
        assert isinstance(content, dict)
        return content

    def page(self, width: int, height: int, scheme: str, is_phone: bool = False) -> Page:
        """A page of that size; ``scheme``: dark or light."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        page = Page(self, attached["sessionId"])
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": is_phone}
        page.call("Emulation.setDeviceMetricsOverride", **size)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        page.call("Emulation.setEmulatedMedia", features=[feature])
        return page

    def close(self) -> None:
        """End it, and all that it has started."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._to)
        os.close(self._back)
        self._log.close()


def _high(file: int) -> int:
    """The same file by a number that is neither 3 nor 4, which are others' there."""
    high = fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(file)
    return high


class Page:
    """One page of it."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Have it do something."""
        return self._browser.call(method, self._session, **params)

    def go(self, url: str) -> None:
        """Load a page."""
        self.call("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """What this JavaScript comes to."""
        params = {"returnByValue": True, "awaitPromise": True, "userGesture": True}
        result = self.call("Runtime.evaluate", expression=script, **params)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, script: str) -> None:
        """Wait until this JavaScript comes to something true."""
        deadline = time.monotonic() + _WAIT_S
        while not self.run(f"!!({script})"):
            assert time.monotonic() < deadline, f"waited for {script}; there is\n{self.text()}"
            time.sleep(0.05)

    def text(self) -> str:
        """All that can be read on it."""
        return str(self.run("document.body.innerText"))

    def press(self, key: str, code: int) -> None:
        """A key, as a user presses it."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code)

    def shot(self, path: Path) -> None:
        """A picture of all of it."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))

    def complaints(self) -> list[dict[str, Any]]:
        """What the page has against us: errors, and what a policy has blocked."""
        self.run("1")
        kinds = ("Runtime.exceptionThrown", "Log.entryAdded")
        return [
            each
            for each in self._browser.events
            if each.get("sessionId") == self._session and each["method"] in kinds
        ]

    def asked(self) -> set[str]:
        """Where it has asked for anything."""
        self.run("1")
        return {
            each["params"]["request"]["url"]
            for each in self._browser.events
            if each.get("sessionId") == self._session
            and each["method"] == "Network.requestWillBeSent"
        }
