"""A page in a headless Chromium: what its console says, what it asks for, how wide it is, how it looks.

Spoken to through pipes (``--remote-debugging-pipe``), in Chrome's DevTools Protocol: JSON, ended by a zero.

    python browser.py PAGE.html [PICTURE.png [WIDTH [light|dark]]]   # exit status 1: something is wrong
"""

from __future__ import annotations

import base64
import json
import os
import select
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_DEFAULTS = ("", "", "1100", "light")
SECONDS = 60.0  # for all of a page


class Seen(NamedTuple):
    """A page that was opened."""

    said: list[str]  #: messages of the console, warnings and exceptions, of any level
    asked: list[str]  #: addresses that were asked for besides the page
    width: int  #: of the whole document, in pixels of CSS
    text: str  #: as a reader sees it
    picture: bytes  #: PNG of all of it


def found() -> str | None:
    """Where Chromium is."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def look(page: Path, width: int = 1100, theme: str = "light") -> Seen:
    """Open a page in a window so wide, with the reader's theme ("light", "dark")."""
    with _browser() as call:
        events: list[dict[str, Any]] = []
        target = call("Target.createTarget", {"url": "about:blank"}, "", events)["targetId"]
        attached = call("Target.attachToTarget", {"targetId": target, "flatten": True}, "", events)
        session = attached["sessionId"]

        def ask(method: str, **parameters: Any) -> Any:
            return call(method, parameters, session, events)

        for domain in ("Page", "Log", "Runtime", "Network"):
            ask(f"{domain}.enable")
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        ask("Emulation.setDeviceMetricsOverride", **size)
        features = [{"name": "prefers-color-scheme", "value": theme}]
        ask("Emulation.setEmulatedMedia", features=features)
        ask("Page.navigate", url=page.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in events):
            ask("Runtime.evaluate", expression="0")
            time.sleep(0.05)

        def value(expression: str) -> Any:
            return ask("Runtime.evaluate", expression=expression)["result"]["value"]

        wide = value("document.documentElement.scrollWidth")
        text = value("document.body.innerText")
        picture = ask("Page.captureScreenshot", captureBeyondViewport=True, format="png")["data"]
    own = page.resolve().as_uri()
    asked = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    asked = [url for url in asked if url != own and not url.startswith("data:")]
    return Seen(list(_said(events)), asked, wide, text, base64.b64decode(picture))


def _said(events: list[dict[str, Any]]) -> Iterator[str]:
    for event in events:
        parameters = event.get("params", {})
        if event["method"] == "Log.entryAdded":
            yield f"{parameters['entry']['level']}: {parameters['entry']['text']}"
        elif event["method"] == "Runtime.exceptionThrown":
            yield f"exception: {parameters['exceptionDetails']['text']}"
        elif event["method"] == "Runtime.consoleAPICalled":
            yield f"{parameters['type']}: {[each.get('value') for each in parameters['args']]}"


@contextmanager
def _browser() -> Iterator[Callable[..., Any]]:
    """A browser that ends with the block; what it gives calls a method, and collects events meanwhile."""
    program = found()
    if program is None:
        raise FileNotFoundError(f"none of {', '.join(NAMES)} is installed (Debian's package is chromium)")
    to_it, from_us = os.pipe()
    from_it, to_us = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--disable-background-networking", "--hide-scrollbars", f"--user-data-dir={profile}",
        ]  # fmt: skip
        # The protocol is spoken on the descriptors 3 and 4.
        shell = f"exec {shlex.join([program, *options])} --remote-debugging-pipe 3<&{to_it} 4>&{to_us}"
        started = subprocess.Popen(
            ["bash", "-c", shell],
            pass_fds=(to_it, to_us),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_it)
        os.close(to_us)
        end, number, pending = time.monotonic() + SECONDS, 0, b""

        def call(method: str, parameters: dict[str, Any], session: str, events: list[dict[str, Any]]) -> Any:
            nonlocal number, pending
            number += 1
            message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
            if session:
                message["sessionId"] = session
            os.write(from_us, json.dumps(message).encode() + b"\0")
            while True:
                while b"\0" in pending:
                    first, _, pending = pending.partition(b"\0")
                    answer = json.loads(first)
                    if answer.get("id") != number:
                        events.append(answer)
                    elif "error" in answer:
                        raise RuntimeError(f"{method}: {answer['error']}")
                    else:
                        return answer["result"]
                ready, _, _ = select.select([from_it], [], [], max(0.0, end - time.monotonic()))
                got = os.read(from_it, 1 << 20) if ready else b""
                if not got:
                    raise TimeoutError(f"{program} did not answer {method} within {SECONDS:.0f} s, or ended")
                pending += got

        try:
            yield call
        finally:
            with suppress(OSError, RuntimeError, TimeoutError):
                call("Browser.close", {}, "", [])
            os.close(from_us)
            os.close(from_it)
            try:
                started.wait(10)
            except subprocess.TimeoutExpired:
                started.kill()
                started.wait()


def main(arguments: list[str]) -> int:
    """Look at a page, and print what is wrong with it."""
    page, picture, width, theme = (
        given or default for given, default in zip(arguments + [""] * 4, _DEFAULTS, strict=False)
    )
    seen = look(Path(page), int(width), theme)
    if picture:
        Path(picture).write_bytes(seen.picture)
    wrong = [f"the console: {each}" for each in seen.said]
    wrong += [f"it asked for {each}" for each in seen.asked]
    if seen.width > int(width):
        wrong.append(f"it is {seen.width} pixels wide, the window {width}")
    print("\n".join([f"{page}: {each}" for each in wrong]) or f"{page}: nothing is wrong with it")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
