"""The page of sliders in a real browser: nothing comes from outside, and moving a control redraws it."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, chromium, need_browser, outside

pytest.importorskip("bokeh", reason="the page needs Bokeh")

ROOT = Path(__file__).resolve().parent.parent
COMMAND = [sys.executable, "-m", "mhicl_fast", "explore", "--no-browser"]

MODEL = "const model = Bokeh.documents[0].get_model_by_name(arguments[0]);"
INSIDE = "const inside = Bokeh.index.find_one(model).shadow_el.querySelectorAll(arguments[1])[arguments[2] ?? 0];"


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[subprocess.Popen[str], str]]:
    environment = os.environ | {"BOKEH_RESOURCES": "cdn", "OPENBLAS_NUM_THREADS": "1"}  # the former must not count
    process = subprocess.Popen(
        COMMAND, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        match = re.search(r"http://127\.0\.0\.1:\d+/", line)
        assert match, (line, process.poll())
        yield process, match[0]
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def tab(server: tuple[subprocess.Popen[str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    need_browser()
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        browser.open(server[1])
        wait_for_page(browser)
        yield browser


def wait_for_page(browser: Browser) -> None:
    browser.wait(lambda: browser.run("return window.Bokeh?.documents[0]?.is_idle"), "the page")


def value(browser: Browser, name: str, field: str) -> Any:
    return browser.run(MODEL + "return model[arguments[1]];", name, field)


def losses(browser: Browser) -> list[float]:
    return browser.run(MODEL + "return Array.from(model.data.loss);", "loss")


def pixels(browser: Browser, name: str) -> str:
    """What a figure's canvases show."""
    code = """
    const canvases = Bokeh.index.find_one(model).canvas_view.shadow_el.querySelectorAll("canvas");
    return Array.from(canvases).map((canvas) => canvas.toDataURL()).join();
    """
    return browser.run(MODEL + code, name)


def status(browser: Browser) -> str:
    """The status line's text as the browser shows it."""
    return browser.run(MODEL + "return Bokeh.index.find_one(model).shadow_el.textContent;", "status")


class Redraw:
    """Waits, at the end of a with block, until the page was redrawn because of what the block did."""

    def __init__(self, browser: Browser) -> None:
        self.browser = browser

    def __enter__(self) -> None:
        self.before = value(self.browser, "status", "tags")[0]

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.browser.wait(lambda: drawn_since(self.browser, self.before), "the page to be redrawn")


def drawn_since(browser: Browser, count: int) -> bool:
    """Whether settings were drawn since `count` of them were, and none waits."""
    busy = browser.run("return document.body.classList.contains('busy')")
    return not busy and value(browser, "status", "tags")[0] > count


def press(browser: Browser, name: str, key: str, times: int = 1) -> None:
    """Press an arrow key on a slider's handle."""
    from selenium.webdriver.common.keys import Keys

    handle = browser.run(MODEL + INSIDE + "return inside;", name, ".noUi-handle")
    handle.send_keys(getattr(Keys, key) * times)


def choose(browser: Browser, name: str, index: int) -> None:
    """Click a button of a group."""
    browser.run(MODEL + INSIDE + "return inside;", name, ".bk-btn", index).click()


DEFAULTS = {
    "n_tasks": 3, "n_heads": 3, "n_covariates": 10, "context_length": "1000", "noise_std": "0.1", "start": "random",
    "start_size": "0.01", "seed": 0, "flow": 0, "order": 0,
}  # fmt: skip


@pytest.fixture
def default(tab: Browser) -> Browser:
    """The tab with every control where it is at first."""
    code = """
    const moved = Object.entries(arguments[0]).filter(([name, to]) => {
        const model = Bokeh.documents[0].get_model_by_name(name);
        const field = "active" in model ? "active" : "value";
        const differs = model[field] != to;
        model[field] = to;
        return differs;
    });
    return moved.length;
    """
    before = value(tab, "status", "tags")[0]
    if tab.run(code, DEFAULTS):
        tab.wait(lambda: drawn_since(tab, before), "the default page")
    tab.complaints()
    return tab


def test_nothing_comes_from_outside(default: Browser, tmp_path: Path) -> None:
    from matplotlib.image import imread

    asked = default.requests()
    assert outside(asked, "127.0.0.1") == []
    assert any(address.startswith("ws://") for address in asked)
    assert any("bokeh-widgets" in address for address in asked)
    assert default.complaints() == []
    assert "taken by a head of its own" in status(default)
    picture = imread(default.screenshot(tmp_path / "page.png"))
    assert picture.shape[:2] == (800, 1280)
    assert 0.01 < (picture[..., :3].min(-1) < 0.6).mean() < 0.3  # ink


def test_a_slider_redraws(default: Browser) -> None:
    curve, painted, text = losses(default), pixels(default, "loss_figure"), status(default)
    with Redraw(default):
        press(default, "n_tasks", "ARROW_LEFT")
    assert value(default, "n_tasks", "value") == 2
    assert losses(default)[0] < curve[0]
    assert "0.55" in status(default) != text  # two thirds of the loss of three tasks
    default.wait(lambda: pixels(default, "loss_figure") != painted, "new pixels")
    assert value(default, "share_1", "visible")
    assert not value(default, "share_2", "visible")
    with Redraw(default):
        press(default, "context_length", "ARROW_LEFT")  # a slider of round numbers
    assert value(default, "context_length", "value") == "700"
    assert default.complaints() == []


def test_flow_and_order(default: Browser) -> None:
    with Redraw(default):
        choose(default, "flow", 1)
    assert "escapes" in status(default)
    assert losses(default)[-1] < 0.5
    assert browser_events(default) == ["escape"]
    with Redraw(default):
        choose(default, "flow", 2)
    assert value(default, "imbalance", "visible")
    assert "escapes" in status(default)
    with Redraw(default):
        choose(default, "flow", 0)
    assert browser_events(default) == []
    assert losses(default)[-1] == pytest.approx(0.8247, abs=2e-3)
    with Redraw(default):
        choose(default, "order", 1)
    assert losses(default)[-1] == pytest.approx(0.985, abs=2e-3)
    with Redraw(default):
        press(default, "context_length", "ARROW_LEFT", 6)
    assert "is an expansion for context lengths in the hundreds" in status(default)
    assert default.complaints() == []


def browser_events(browser: Browser) -> list[str]:
    return browser.run(MODEL + "return Array.from(model.data.text);", "events")


def test_what_cannot_be_solved_is_said_and_forgotten(default: Browser) -> None:
    with Redraw(default):
        choose(default, "order", 1)
    with Redraw(default):
        press(default, "start_size", "END")
    curve = losses(default)
    with Redraw(default):
        press(default, "n_covariates", "HOME")
    assert "This setting has no solution" in status(default)
    assert "does not exist where 2 ω² ≥ 1" in status(default)
    opacity = MODEL + "return getComputedStyle(Bokeh.index.find_one(model).el).opacity;"
    assert float(default.run(opacity, "pictures")) < 0.5  # the last good picture, marked as such
    assert losses(default) == curve
    with Redraw(default):
        choose(default, "order", 0)
    assert "no solution" not in status(default)
    assert float(default.run(opacity, "pictures")) == 1
    assert losses(default) != curve
    assert default.complaints() == []


def test_many_moves_are_drawn_together(default: Browser) -> None:
    before = value(default, "status", "tags")[0]
    press(default, "seed", "ARROW_RIGHT", 40)
    default.wait(lambda: "seed=40," in value(default, "call", "text"), "the last seed")
    time.sleep(1)
    assert value(default, "status", "tags")[0] - before < 20


def test_nothing_overflows(default: Browser) -> None:
    with Redraw(default):
        default.run(MODEL + "model.value = 6;", "n_tasks")
    inside = MODEL + "return Bokeh.index.find_one(model).frame.bbox.width;"

    def fits(width: int) -> bool:
        widths = [default.run(inside, f"{row}_{task}") for row in ("share", "omega") for task in range(6)]
        return (
            default.run("return document.documentElement.scrollWidth") <= width
            and min(widths) > 50
            and max(widths) - min(widths) < 3  # columns of one width, the first one's axis notwithstanding
            and default.run(inside, "loss_figure") > 250
        )

    try:
        for width, height in ((1280, 800), (1000, 700), (600, 900)):
            default.resize(width, height)
            default.wait(lambda width=width: fits(width), f"a page that fits {width} pixels", 10)
    finally:
        default.resize(1280, 800)
    assert default.complaints() == []


def test_two_tabs_are_apart(default: Browser, server: tuple[subprocess.Popen[str], str]) -> None:
    first = default.driver.current_window_handle
    default.driver.switch_to.new_window("tab")
    try:
        default.open(server[1])
        wait_for_page(default)
        with Redraw(default):
            press(default, "n_heads", "ARROW_RIGHT")
        assert value(default, "n_heads", "value") == 4
    finally:
        default.driver.close()
        default.driver.switch_to.window(first)
    assert value(default, "n_heads", "value") == 3


def test_only_this_machine_and_this_page(server: tuple[subprocess.Popen[str], str]) -> None:
    """Bound to 127.0.0.1 alone; pages of other origins get no websocket."""
    port = int(server[1].rstrip("/").rpartition(":")[2])
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.2", port), timeout=2):
        pass
    headers = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
               "Sec-WebSocket-Key": "x3JJHMbDL1EzLkh9GBhXDw=="}  # fmt: skip
    answers = []
    for origin in ("http://example.org", server[1].rstrip("/")):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/ws", headers=headers | {"Origin": origin})
        answers.append(connection.getresponse().status)
        connection.close()
    assert answers == [403, 101]


def test_ctrl_c_is_quiet() -> None:
    process = subprocess.Popen(COMMAND, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        url = line.split()[2]
        urllib.request.urlopen(url, timeout=60).read()  # a session is under way
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (0, "", "")
