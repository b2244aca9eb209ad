"""The page's server: on this machine only, with all of the page's resources."""

from __future__ import annotations

import logging
import signal
import threading
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from bokeh.application import Application
from bokeh.application.handlers import FunctionHandler
from bokeh.server.server import BaseServer
from bokeh.server.tornado import BokehTornado
from bokeh.server.util import bind_sockets
from bokeh.settings import settings
from tornado.httpserver import HTTPServer
from tornado.ioloop import IOLoop

from . import ExploreError
from .page import application

ADDRESS = "127.0.0.1"


def run(port: int, open_browser: bool) -> None:
    """Serve until Ctrl-C; prints the address. ExploreError where the port cannot be had."""
    if not 0 <= port <= 65535:
        raise ExploreError(f"a port lies between 0, for a free one, and 65535, got {port}")
    try:
        sockets, port = bind_sockets(ADDRESS, port)
    except OSError as error:
        raise ExploreError(f"cannot listen on {ADDRESS}:{port}: {error.strerror}") from None
    settings.resources = "server"  # whatever the environment says: nothing is fetched from elsewhere
    # A page that is closed while it is redrawn is no news.
    logging.getLogger("bokeh.server.views.ws").setLevel(logging.ERROR)
    loop = IOLoop.current()
    # Only pages that this server sent may talk to it.
    origins = [f"{ADDRESS}:{port}", f"localhost:{port}"]
    pages = BokehTornado({"/": Application(FunctionHandler(application))}, extra_websocket_origins=origins)
    http = HTTPServer(pages)
    http.add_sockets(sockets)
    server = BaseServer(loop, pages, http)
    server.start()
    url = f"http://{ADDRESS}:{port}/"
    print(f"mhicl explore: {url} (Ctrl-C ends it)", flush=True)
    if open_browser:
        threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
    with _interrupts_stop(loop):
        loop.start()
    server.stop()
    http.stop()


@contextmanager
def _interrupts_stop(loop: IOLoop) -> Iterator[None]:
    """Ctrl-C ends the loop between two callbacks, rather than wherever it strikes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_signal: int, _frame: FrameType | None) -> None:
        loop.add_callback_from_signal(loop.stop)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
