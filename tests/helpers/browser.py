"""Drive a headless Chromium from Debian's packages, and read its requests and errors."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
_PACKAGES = ("chromium", "chromium-driver")


def find_programs() -> tuple[str, str]:
    """Return the paths of chromium and chromedriver; install them if possible, else skip the test."""
    if not _found() and os.geteuid() == 0 and shutil.which("apt-get"):
        for command in (
            ["apt-get", "update", "-qq"],
            ["apt-get", "install", "-y", "--no-install-recommends", *_PACKAGES],
        ):
            subprocess.run(command, capture_output=True, timeout=500, check=False)
    found = _found()
    if found is None:
        pytest.skip(f"needs a browser: apt-get install {' '.join(_PACKAGES)}")
    return found


def _found() -> tuple[str, str] | None:
    programs = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    return programs if all(programs) else None


@contextmanager
def open_browser(profile: Path) -> Iterator[Browser]:
    """Start a browser with a fresh profile and close it again."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install -e '.[dev]'")
    chromium, chromedriver = find_programs()
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*_FLAGS, f"--user-data-dir={profile}", "--window-size=1200,1000"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=chromedriver))
    try:
        yield Browser(driver)
    finally:
        driver.quit()


class Browser:
    """Load pages and query them."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def show(self, page: Path, *, fragment: str = "") -> None:
        """Load a page, and discard earlier log entries."""
        self.driver.get("about:blank")
        self.errors(), self.requests()
        self.driver.get(page.as_uri() + fragment)

    def errors(self) -> list[str]:
        """Return the messages of the console since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Return the URLs requested since the last call, without data: URLs."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        return [url for url in asked if not url.startswith(("data:", "about:"))]

    def ask(self, script: str, *arguments: Any) -> Any:
        """Return the value of a JavaScript expression."""
        return self.driver.execute_script(f"return {script}", *arguments)

    def texts(self, selector: str) -> list[str]:
        """Return the text of every visible element, including those scrolled out of sight."""
        script = "[...document.querySelectorAll(arguments[0])].filter(e => e.checkVisibility()).map(e => e.textContent)"
        return [" ".join(text.split()) for text in self.ask(script, selector)]

    def press(self, selector: str, keys: Sequence[str]) -> None:
        """Focus an element and press keys."""
        from selenium.webdriver.common.action_chains import ActionChains

        self.driver.execute_script("document.querySelector(arguments[0]).focus()", selector)
        ActionChains(self.driver).send_keys(*keys).perform()

    def emulate(self, *, width: int = 1200, is_dark: bool = False) -> None:
        """Emulate a screen of a width in pixels, and a preference for light or dark."""
        screen = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        colour = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [colour]})
