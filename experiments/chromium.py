"""A page in headless Chromium, driven as a person would: by the DevTools protocol over a pipe."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --hide-scrollbars --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
).split()
PATIENCE = 60.0
"""Seconds that an answer may take."""
CODES = {"Enter": 13, "Home": 36, "End": 35, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39,
         "ArrowDown": 40, "Tab": 9}  # fmt: skip


def chromium() -> str:
    """The program's name. Raises FileNotFoundError where there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    raise FileNotFoundError("no Chromium found: install it, e.g. `apt-get install -y chromium`")


class Page:
    """One page in a browser of its own; `with Page() as page`.

    Args:
        flags: more of the program's.
        profile: a folder that keeps what pages store; a new one where it is None.
    """

    def __init__(self, *flags: str, profile: Path | None = None) -> None:
        self._temporary = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        folder = Path(self._temporary.name) if profile is None else profile
        there, self._out = os.pipe()
        self._in, back = os.pipe()
        command = [
            chromium(),
            *FLAGS,
            *flags,
            "--remote-debugging-pipe",
            f"--user-data-dir={folder}",
        ]
        self._process = subprocess.Popen(
            # The program reads commands from descriptor 3 and answers on 4.
            ["bash", "-c", f'exec "$@" 3<&{there} 4>&{back}', "bash", *command],
            pass_fds=(there, back), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(there)
        os.close(back)
        self._session: str | None = None
        self._rest, self._count = b"", 0
        self._events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Page:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._session = None
        try:
            self.call("Browser.close")
            self._process.wait(PATIENCE)
        finally:
            self._process.kill()
            self._process.wait()
            os.close(self._in)
            os.close(self._out)
            self._temporary.cleanup()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command of the protocol and wait for its answer."""
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") != self._count:
                self._events.append(answer)
                continue
            if "error" in answer:
                raise RuntimeError(f"{method}: {answer['error']['message']}")
            return answer["result"]

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._in], [], [], max(deadline - time.monotonic(), 0))
            read = os.read(self._in, 1 << 16) if ready else b""
            if not read:
                raise TimeoutError("Chromium does not answer, or has ended")
            self._rest += read
        text, _, self._rest = self._rest.partition(b"\0")
        return json.loads(text)

    def open(self, page: Path) -> None:
        """Show a file, and wait until it has loaded."""
        self._load("Page.navigate", url=page.resolve().as_uri())

    def reload(self) -> None:
        """As by F5."""
        self._load("Page.reload")

    def _load(self, method: str, **parameters: Any) -> None:
        self.js("window.before = true")
        self._events.clear()
        self.call(method, **parameters)
        deadline = time.monotonic() + PATIENCE
        while not self._is_there():
            if time.monotonic() > deadline:
                raise TimeoutError("the page does not load")
            time.sleep(0.02)

    def _is_there(self) -> bool:
        try:
            return self.js("!window.before && document.readyState === 'complete'")
        except RuntimeError:  # the page that was asked has gone meanwhile
            return False

    def js(self, expression: str) -> Any:
        """The value of an expression in the page; of a promise, when it is there."""
        result = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in result:
            raise RuntimeError(json.dumps(result["exceptionDetails"]))
        return result["result"].get("value")

    def press(self, *keys: str) -> None:
        """Press and let go of keys, as "r", "7" or "ArrowDown"."""
        for key in keys:
            code = ord(key.upper()) if len(key) == 1 and key.isalnum() else CODES.get(key, 0)
            own = {"key": key, "windowsVirtualKeyCode": code}
            own |= {"text": "\r"} if key == "Enter" else {"text": key} if len(key) == 1 else {}
            self.call("Input.dispatchKeyEvent", type="keyDown", **own)
            self.call("Input.dispatchKeyEvent", type="keyUp", **own)

    def click(self, selector: str) -> None:
        """Click in the middle of the first element that a selector finds."""
        x, y = self.js(
            f"(() => {{ const found = document.querySelector({json.dumps(selector)});"
            " found.scrollIntoView({block: 'center', behavior: 'instant'});"
            " const box = found.getBoundingClientRect();"
            " return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call(
                "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1
            )  # fmt: skip

    def download_to(self, folder: Path) -> None:
        """Where files are saved to from now on."""
        self.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(folder.resolve()))

    def saved(self, path: Path) -> Path:
        """`path`, as soon as it was saved."""
        deadline = time.monotonic() + PATIENCE
        while not (path.is_file() and path.stat().st_size):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{path} was not saved")
            time.sleep(0.02)
        return path

    def upload(self, selector: str, file: Path) -> None:
        """Give a file to an input of the page."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file.resolve())])

    def errors(self) -> list[str]:
        """What the console has said of errors since the page was opened."""
        self.js("0")  # what was said before this is there now
        found = []
        for one in self._events:
            kind, told = one.get("method"), one.get("params", {})
            if kind == "Runtime.exceptionThrown":
                found.append(json.dumps(told["exceptionDetails"]))
            if kind == "Log.entryAdded" and told["entry"]["level"] == "error":
                found.append(told["entry"]["text"])
        return found

    def picture(self, path: Path, width: int, height: int) -> None:
        """Save what a window of that many pixels shows."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height,
            deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        self.js("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))
