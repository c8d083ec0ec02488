"""A real browser for pages: Chromium without a window, driven over a pipe.

The DevTools protocol's messages are JSON objects that end in a zero byte, on file descriptors 3 and
4 of the browser; that needs no package and no port.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distill.reports.content import (
    Cluster,
    ClusterSection,
    Curves,
    MapSection,
    NeighborSection,
    Picture,
    Query,
    RunContent,
    Series,
    thumbnail_uri,
)

_TIMEOUT = 60.0  # seconds for one answer; two cores may be busy
_FLAGS = [
    "--headless",
    "--no-sandbox",  # tests may run as root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--remote-debugging-pipe",
]

# Contrast as WCAG 2 defines it, of every text against the nearest background that is not clear.
_CONTRAST = """(() => {
  const rgb = c => c.match(/[\\d.]+/g).map(Number);
  const lum = c => { const [r, g, b] = c.slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = e => { for (; e; e = e.parentElement) {
    const c = rgb(getComputedStyle(e).backgroundColor);
    if (c.length === 3 || c[3] > 0) return c; } return [255, 255, 255]; };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || ['TITLE', 'DESC', 'STYLE'].includes(
        e.tagName.toUpperCase())) continue;
    const style = getComputedStyle(e), svg = e instanceof SVGElement;
    const a = lum(rgb(svg ? style.fill : style.color)), b = lum(behind(e));
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.outerHTML.slice(0, 80)]);
  }
  return found.sort((x, y) => x[0] - y[0])[0];
})()"""


class Browser:
    """One tab of a headless Chromium.

    Attributes:
        problems: What the console, failed loads and exceptions said since the last `open`.
        requests: URLs that were asked for since then, data URIs left out.
    """

    def __init__(self, program: str, profile: Path) -> None:
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        command = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
        self._process = subprocess.Popen(
            ["bash", "-c", command, "bash", program, *_FLAGS, f"--user-data-dir={profile}"],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._number, self._buffer, self._events = 0, b"", set()
        self.problems: list[str] = []
        self.requests: list[str] = []
        self._session = None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def open(self, page: Path, *, width: int = 1280, dark: bool = False) -> None:
        """Load a page at a width in pixels, in the light or in the dark."""
        self.problems, self.requests = [], []
        phone = {"deviceScaleFactor": 1, "mobile": width < 600}
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=900, **phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self._events.discard("Page.loadEventFired")
        self.send("Page.navigate", url=page.as_uri())
        end = time.monotonic() + _TIMEOUT
        while "Page.loadEventFired" not in self._events:
            self._receive(end)

    def evaluate(self, script: str) -> Any:
        """Return what a script gives, as plain data."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str, code: int) -> None:
        """Press and release a key."""
        for kind in ("rawKeyDown", "keyUp"):
            self.send(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code
            )

    def screenshot(self, path: Path, *, clip: dict[str, float] | None = None) -> None:
        """Take a picture of the window, or of a part of the page."""
        part = {} if clip is None else {"clip": {"scale": 1, **clip}, "captureBeyondViewport": True}
        data = self.send("Page.captureScreenshot", format="png", **part)["data"]
        path.write_bytes(base64.b64decode(data))

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + _TIMEOUT
        while True:
            answer = self._receive(end)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def close(self) -> None:
        """End the browser."""
        self._process.kill()
        self._process.wait()
        os.close(self._write)
        os.close(self._read)

    def _receive(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0, end - time.monotonic()))
            assert ready, "Chromium does not answer"
            chunk = os.read(self._read, 1 << 20)
            assert chunk, "Chromium has ended"
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(line)
        self._note(message.get("method"), message.get("params", {}))
        return message

    def _note(self, method: str | None, parameters: dict[str, Any]) -> None:
        if method in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
            self.problems.append(json.dumps(parameters)[:500])
        elif method == "Network.requestWillBeSent":
            url = parameters["request"]["url"]
            if not url.startswith("data:"):
                self.requests.append(url)
        if method is not None:
            self._events.add(method)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Return a browser; the test is skipped where none is installed."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("no chromium on this machine (Debian: apt-get install chromium)")
    browser = Browser(program, tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture
def contrast() -> str:
    """Return a script that gives the lowest contrast of a page's texts, and where it is."""
    return _CONTRAST


EVIL = "<script>alert(1)</script>\"'&"


@pytest.fixture
def full_run() -> RunContent:
    """Return a run with every section, in which each string from data is hostile."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    uri = thumbnail_uri(Image.fromarray(pixels))
    right, wrong, plain = (Picture(uri, EVIL, is_right) for is_right in (True, False, None))
    clusters = [Cluster(number, 1234, EVIL, 0.75, [right, wrong]) for number in range(3)]
    short = replace(wrong, name="x")
    query = Query(plain, [right, right, right, short, wrong], [wrong] * 5)
    names = [f"{EVIL}{number}" for number in range(12)]
    labels = np.arange(48) % 12
    return RunContent(
        name=EVIL,
        facts={"Student": EVIL, EVIL: "x"},
        command=f"distill train --data {EVIL}",
        options={"data": EVIL, "epochs": "3"},
        metrics={"nn_accuracy": 0.5, "teacher_nn_accuracy": 0.75, "num_steps": 10, EVIL: 3.0},
        curves=[
            Curves("Loss", "step", "loss", [Series(EVIL, [1, 2, 3], [3.0, 2.0, 1.5])]),
            Curves(EVIL, EVIL, EVIL, [Series("a", [1, 2], [0.1, 0.2])], is_share=True),
        ],
        robustness=Curves(
            "Errors", "severity", "error", [Series(EVIL, [1, 2], [0.2, 0.4])] * 2, is_share=True
        ),
        clusters=ClusterSection(EVIL, clusters, clusters, clusters, np.eye(12), names, names),
        neighbors=NeighborSection(EVIL, [query] * 3, [query], EVIL),
        map=MapSection(EVIL, np.random.default_rng(0).random((48, 2)), labels, names),
    )
