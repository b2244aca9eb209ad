"""Headless Chromium for tests of pages: what it asked for, what it logged, and what is inside of Bokeh's widgets.

Tests that use it are skipped where there is none, unless MHICL_BROWSER=required.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)
_PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
_WITHOUT_NETWORK = {"data", "blob", "about", "chrome"}


def need_browser() -> tuple[str, str]:
    """Paths of Chromium and its driver; skips the test, with the reason, where something is missing."""
    program = next(filter(None, map(shutil.which, _PROGRAMS)), None)
    driver = shutil.which("chromedriver")
    missing = [name for name, path in (("chromium", program), ("chromedriver", driver)) if path is None]
    try:
        import selenium  # noqa: F401
    except ModuleNotFoundError:
        missing.append("selenium")
    if missing:
        reason = f"no headless browser: {' and '.join(missing)} not found"
        if os.environ.get("MHICL_BROWSER") == "required":
            pytest.fail(f"{reason}, and MHICL_BROWSER=required")
        pytest.skip(reason)
    assert program is not None
    assert driver is not None
    return program, driver


class Browser:
    """A tab. `driver` is selenium's; `run` runs a function body in the page with what it returns."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        self.driver.get(url)

    def resize(self, width: int, height: int) -> None:
        """Give the page, without the window around it, this size."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def run(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)

    def wait(self, condition: Callable[[], Any], what: str, seconds: float = 60) -> Any:
        """The condition's first true value; fails with `what`, and the page's log, where there is none in time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if value := condition():
                return value
            time.sleep(0.05)
        raise AssertionError(f"waited {seconds:g} s for {what}; the page logged {self.complaints()}")

    def requests(self) -> list[str]:
        """Addresses that were asked for since the last call, over HTTP or websockets."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        found = []
        for event in events:
            if event["method"] == "Network.requestWillBeSent":
                found.append(event["params"]["request"]["url"])
            elif event["method"] == "Network.webSocketCreated":
                found.append(event["params"]["url"])
        return found

    def complaints(self) -> list[str]:
        """Warnings and errors of the page since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] not in ("INFO", "DEBUG")]

    def screenshot(self, file: Path) -> Path:
        assert self.driver.save_screenshot(str(file))
        return file


def outside(addresses: list[str], host: str) -> list[str]:
    """Those of the addresses that lead to a network, other than to `host`."""
    parts = [(address, urlsplit(address)) for address in addresses]
    return [address for address, url in parts if url.scheme not in _WITHOUT_NETWORK and url.hostname != host]


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A browser with a fresh profile in `profile`, its page 1280 × 800; see `need_browser`."""
    program, driver_path = need_browser()
    # Selenium must look for nothing, and tell nobody.
    os.environ.update(SE_OFFLINE="true", SE_AVOID_STATS="true")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(driver_path))
    try:
        driver.set_page_load_timeout(60)
        browser = Browser(driver)
        browser.resize(1280, 800)
        yield browser
    finally:
        driver.quit()
