"""Pages in a real headless Chromium: screenshots, and what axe-core says of them.

`python tests/page/browser.py OUT PAGE.html …` (`make pages`) writes pictures of every page at 1400
and 400 px, light and dark, and its printed form, prints what axe-core finds, and ends with 1 if it
finds anything. Chromium is driven over its DevTools protocol; pages are opened from disk, and
whatever else they ask for is reported as well.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

ROOT = Path(__file__).parents[2]
AXE = ROOT / ".venv" / "axe" / "node_modules" / "axe-core" / "axe.min.js"  # the Makefile fetches it
NAMES = ("chromium", "chromium-browser", "google-chrome")
WIDTHS, SCHEMES = (1400, 400), ("light", "dark")
HEIGHTS = {1400: 1000, 400: 800}
PATIENCE_SECONDS = 120.0
RUN_AXE = """axe.run(document, {resultTypes: ["violations"]}).then((found) => JSON.stringify(
  found.violations.map((v) => [v.id, v.help, v.nodes.map((n) => n.html.slice(0, 160))])))"""


class Browser:
    """One page of a Chromium."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._numbers = socket, itertools.count(1)
        self.asked: list[str] = []  # addresses that pages asked for
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.faults: list[str] = []  # what went wrong in scripts

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Ask for something, and wait for the answer."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = self._receive()
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message['error']}"
                result: dict[str, Any] = message["result"]
                return result

    def open(self, page: Path) -> None:
        """Open a page from disk and wait until it is whole."""
        self.asked, self.faults = [], []
        self.call("Page.navigate", url=page.resolve().as_uri())
        while self._receive().get("method") != "Page.loadEventFired":
            pass

    def evaluate(self, text: str) -> Any:
        """The value of a script in the page."""
        found = self.call(
            "Runtime.evaluate", expression=text, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def look(self, width: int, scheme: str) -> None:
        """See the page as wide, in light or dark."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=HEIGHTS[width],
            deviceScaleFactor=1,
            mobile=False,
        )
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", features=[feature])

    def screenshot(self, path: Path, whole: bool = True) -> None:
        """The page as a picture, or its first screen."""
        options = {"captureBeyondViewport": True} if whole else {}
        if whole:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            options["clip"] = {"x": 0, "y": 0, "scale": 1} | {
                name: size[name] for name in ("width", "height")
            }
        found = self.call("Page.captureScreenshot", format="png", **options)
        path.write_bytes(base64.b64decode(found["data"]))

    def pdf(self, path: Path) -> None:
        """The page as it is printed."""
        found = self.call("Page.printToPDF", preferCSSPageSize=True, printBackground=False)
        path.write_bytes(base64.b64decode(found["data"]))

    def axe(self) -> list[str]:
        """What axe-core finds, a line a rule."""
        self.evaluate(AXE.read_text(encoding="utf-8"))
        found = json.loads(self.evaluate(RUN_AXE))
        return [f"{rule}: {words} ({len(at)}): {at[0]}" for rule, words, at in found]

    def _receive(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self._socket.recv(timeout=PATIENCE_SECONDS))
        method, params = message.get("method"), message.get("params", {})
        if method == "Network.requestWillBeSent":
            self.asked.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.faults.append(str(params["exceptionDetails"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.faults.append(params["entry"]["text"])
        return message


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """A Chromium with a profile of its own, ended afterwards."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        raise SystemExit(f"none of {', '.join(NAMES)} was found: install Chromium.")
    if not AXE.exists():
        raise SystemExit(f"{AXE} does not exist: `make pages` fetches it.")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        options += ["--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
        child = subprocess.Popen(
            [program, *options], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        try:
            with connect(_address(Path(profile)), max_size=None) as socket:
                yield Browser(socket)
        finally:
            child.terminate()
            child.wait(30)


def _address(profile: Path) -> str:
    """The web socket of the one page that is open."""
    import urllib.request

    written, deadline = profile / "DevToolsActivePort", time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError, StopIteration):
            port = int(written.read_text().splitlines()[0])
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
                pages = json.load(answer)
            return str(next(p for p in pages if p["type"] == "page")["webSocketDebuggerUrl"])
        time.sleep(0.1)
    raise SystemExit(f"Chromium did not come up in {PATIENCE_SECONDS:.0f} s.")


def faults_of(seen: Browser, page: Path, out: Path | None = None) -> list[str]:
    """What is wrong with a page, at every width and in both schemes; pictures go to `out`."""
    found: list[str] = []
    for width, scheme in itertools.product(WIDTHS, SCHEMES):
        where = f"{page.name} at {width} px, {scheme}"
        seen.look(width, scheme)
        seen.open(page)
        wide = seen.evaluate("document.documentElement.scrollWidth")
        if wide > width:
            found.append(f"{where}: the page itself is {wide} px wide")
        if out is not None:
            name = f"{name_of(page)}-{width}-{scheme}"
            seen.screenshot(out / f"{name}.png")
            seen.screenshot(out / f"{name}-first.png", whole=False)
        asked = [url for url in seen.asked if not url.startswith(page.resolve().as_uri())]
        found += [f"{where}: asks for {url}" for url in asked]
        found += [f"{where}: {fault}" for fault in (*seen.faults, *seen.axe())]
    if out is not None:
        seen.pdf(out / f"{name_of(page)}.pdf")
    return found


def name_of(page: Path) -> str:
    """The pictures' name: the page's, with the folders that tell it from others."""
    return "-".join(part.strip(".") for part in page.with_suffix("").parts[-3:])


def main(arguments: Sequence[str]) -> int:
    """Look at every page; 1 if anything is wrong with one of them."""
    out, *pages = map(Path, arguments)
    if not pages:
        raise SystemExit("there is no page to look at: `make run` makes one.")
    os.makedirs(out, exist_ok=True)
    with browser() as seen:
        found = [fault for page in pages for fault in faults_of(seen, page, out)]
    print("\n".join(found) or f"nothing is wrong with {len(pages)} pages; pictures are in {out}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
