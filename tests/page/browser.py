"""A real browser: Chromium without a window, if this machine has one."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

CHROMIUM: Final = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
needs_browser = pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed")
SECONDS: Final = 100.0  # on a busy machine

# The key, the text that it writes, and Windows' code of it.
_KEYS: Final = {"Tab": ("", 9), "Enter": ("\r", 13), "Space": (" ", 32)}
_SHIFT: Final = 8


def dom_of(address: str, *, milliseconds: int = 1_000) -> str:
    """The page's document after that much of the page's own time, as HTML."""
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run(
            [
                *_command(profile),
                *("--enable-logging=stderr", "--dump-dom"),
                *(f"--virtual-time-budget={milliseconds}", address),
            ],
            capture_output=True,
            timeout=SECONDS,
            check=True,
        )
    output = done.stderr.decode(errors="replace")
    violations = [line for line in output.splitlines() if "CONSOLE" in line]
    assert violations == [], "the page has complained"
    return done.stdout.decode()


def _command(profile: str) -> list[str]:
    return [
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu"),
        *("--no-first-run", f"--user-data-dir={profile}"),
    ]


class Tab:
    """A page that is used over the DevTools protocol, as a person uses it with a keyboard."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands = commands
        self._answers = answers
        self._unread = b""
        self._number = 0
        self._session: dict[str, str] = {}
        self._complaints: list[Any] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a command of the protocol."""
        self._number += 1
        command = {"id": self._number, "method": method, "params": parameters, **self._session}
        os.write(self._commands, json.dumps(command).encode() + b"\0")
        while (message := self._read()).get("id") != self._number:
            if message["method"] in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self._complaints.append(message["params"])
        assert "error" not in message, message
        return dict(message["result"])

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            assert select.select([self._answers], [], [], SECONDS)[0], "the browser does not answer"
            more = os.read(self._answers, 1 << 16)
            assert more, "the browser has ended"
            self._unread += more
        message, _, self._unread = self._unread.partition(b"\0")
        return dict(json.loads(message))

    def show(self, *, width: int = 1_000, height: int = 700, scheme: str = "light") -> None:
        """Give the window this size and colour scheme."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.send("Emulation.setEmulatedMedia", features=[feature])

    def visit(self, address: str) -> None:
        """Open the address, and wait until the page is drawn."""
        self.send("Page.navigate", url=address)
        self.wait_for("document.readyState === 'complete' && document.querySelector('main *')")

    def value(self, script: str) -> Any:
        """The value of an expression in the page."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait_for(self, condition: str) -> None:
        """Wait until the expression is true in the page."""
        until = time.monotonic() + SECONDS
        while not self.value(f"Boolean({condition})"):
            assert time.monotonic() < until, f"never true: {condition}"
            time.sleep(0.02)

    def press(self, key: str, *, shift: bool = False) -> None:
        """Press a key and release it."""
        self.press_down(key, shift=shift)
        self.let_go(key)

    def press_down(self, key: str, *, shift: bool = False) -> None:
        """Press a key."""
        self._key("keyDown", key, text=_KEYS[key][0], modifiers=_SHIFT if shift else 0)

    def let_go(self, key: str) -> None:
        """Release a key."""
        self._key("keyUp", key)

    def _key(self, what: str, key: str, **more: Any) -> None:
        name, code = (_KEYS[key][0] if key == "Space" else key), _KEYS[key][1]
        self.send(
            "Input.dispatchKeyEvent",
            **{"type": what, "key": name, "code": key, "windowsVirtualKeyCode": code, **more},
        )

    def complaints(self) -> list[Any]:
        """What the page has thrown or logged."""
        self.value("0")  # what came before it is read
        return self._complaints


@contextmanager
def tab() -> Iterator[Tab]:
    """A page in a browser of its own."""
    with tempfile.TemporaryDirectory() as profile:
        from_us, commands = os.pipe()
        answers, to_us = os.pipe()
        # Chromium reads commands from descriptor 3 and writes answers to 4.
        shell = f'exec "$0" "$@" 3<&{from_us} 4>&{to_us}'
        browser = subprocess.Popen(
            ["bash", "-c", shell, *_command(profile), "--remote-debugging-pipe"],
            pass_fds=(from_us, to_us),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(from_us)
        os.close(to_us)
        try:
            one = Tab(commands, answers)
            yield one
            assert one.complaints() == [], "the page has complained"
        finally:
            os.close(commands)  # it ends then
            browser.wait(SECONDS)
            os.close(answers)
