"""A page in headless Chromium, through its DevTools protocol: its text, its errors, its appearance."""

import base64
import contextlib
import io
import json
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from PIL import Image
from websockets.sync.client import ClientConnection, connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ("--headless=new", "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")


class Page:
    """One page; `errors` has its console errors, its uncaught exceptions, and what failed to load; `asked` has the
    addresses that it has requested."""

    def __init__(self, folder: Path, *, width: int = 1500, height: int = 1100) -> None:
        self._folder = folder
        self._size = f"--window-size={width},{height}"
        self.errors: list[str] = []
        self.asked: list[str] = []
        self._number = 0

    def __enter__(self) -> Self:
        command = [str(CHROMIUM), *FLAGS, self._size, "--remote-debugging-port=0", f"--user-data-dir={self._folder}"]
        self._browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port_file = self._folder / "DevToolsActivePort"
        while not port_file.exists() or not port_file.read_text().strip():
            assert self._browser.poll() is None, "Chromium has ended"
            time.sleep(0.1)
        port = port_file.read_text().split()[0]
        tab = httpx.put(f"http://127.0.0.1:{port}/json/new?about:blank", timeout=60).json()
        self._socket: ClientConnection = connect(tab["webSocketDebuggerUrl"], max_size=None)
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._socket.close()
        self._browser.terminate()
        self._browser.wait(timeout=30)

    def open(self, url: str, *texts: str, seconds: float = 60) -> str:
        """Opens an address and waits until all of the texts are visible; returns the visible text."""
        self._call("Page.navigate", url=url)
        return self.wait(*texts, seconds=seconds)

    def wait(self, *texts: str, seconds: float = 60) -> str:
        """Waits until all of the texts are visible; returns the visible text."""
        deadline = time.monotonic() + seconds
        while missing := [text for text in texts if text not in self.text()]:
            assert time.monotonic() < deadline, f"{missing} cannot be read; what can:\n{self.text()}"
            time.sleep(0.3)
        return self.text()

    def text(self) -> str:
        """The visible text, including the contents of fields."""
        fields = "[...document.querySelectorAll('input,textarea')].map(field => field.value).join('\\n')"
        return str(self.run(f"document.body ? document.body.innerText + '\\n' + {fields} : ''"))

    def click(self, name: str) -> None:
        """Clicks the element with exactly this name, such as a tab."""
        bears = f"element => element.innerText.trim() === {json.dumps(name)}"
        find = f"[...document.querySelectorAll('button,a,li,[role=tab]')].find({bears})"
        assert self.run(f"(found => found ? (found.click(), true) : false)({find})"), f"there is no {name} to click"

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        return self._call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def await_(self, script: str, seconds: float = 30) -> Any:
        """The value of an expression in the page, once it is true or a promise has it."""
        deadline = time.monotonic() + seconds
        while not (
            found := self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)["result"]
        ).get("value"):
            assert time.monotonic() < deadline, f"never true: {script}; errors: {self.errors}"
            time.sleep(0.05)
        return found["value"]

    def press(self, key: str) -> None:
        """Presses a key where the focus is."""
        text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        code = {"Enter": 13, "Escape": 27, "ArrowDown": 40, "ArrowUp": 38, "Tab": 9}.get(key, 0)
        self._call("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **text)
        self._call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def resize(self, width: int, height: int, *, dark: bool = False) -> None:
        """Gives the page another size, and the colors that a reader prefers."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path: Path) -> None:
        """A screenshot, as PNG."""
        path.write_bytes(self._picture())

    def colours(self) -> Mapping[str, int]:
        """Number of visible pixels of each color, as `#rrggbb`."""
        picture = Image.open(io.BytesIO(self._picture())).convert("RGB")
        counted = picture.getcolors(maxcolors=picture.width * picture.height) or []
        return {"#" + bytes(colour).hex(): count for count, colour in counted if isinstance(colour, tuple)}

    def _picture(self) -> bytes:
        return base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"])

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=120))
            if message.get("id") == self._number:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result
            if message.get("method") == "Network.requestWillBeSent":
                self.asked.append(message["params"]["request"]["url"])
            self.errors.extend(_complaints(message.get("method"), message.get("params", {})))


def _complaints(event: str | None, details: dict[str, Any]) -> Iterator[str]:
    with contextlib.suppress(KeyError):
        if event == "Runtime.consoleAPICalled" and details["type"] in ("error", "assert"):
            yield " ".join(str(part.get("value", part.get("description"))) for part in details["args"])
        elif event == "Runtime.exceptionThrown":
            yield str(
                details["exceptionDetails"].get("exception", {}).get("description", details["exceptionDetails"]["text"])
            )
        elif event == "Log.entryAdded" and details["entry"]["level"] == "error":
            yield f"{details['entry']['text']} {details['entry'].get('url', '')}"
