"""The page's own modules, a model it can load, a catalogue with awkward titles, and the page in a browser."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmrec.data.catalogue import Catalogue as LLMRecCatalogue
from llmrec.data.demo import demo_items
from llmrec.hub.export import save_model
from modeling_llmrec import LLMRecModel, LLMRecProcessor
from tests.space.hostile import HOSTILE, HOSTILE_DOMAINS

SPACE = Path(__file__).resolve().parents[2] / "space"
sys.path.append(str(SPACE))

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

# The app with the workshop taken away, as on a Space.
WITHOUT_WORKSHOP = (
    "import runpy, sys\n"
    "for name in ('llmrec', 'modeling_llmrec', 'configuration_llmrec'): sys.modules[name] = None\n"
    "sys.argv = sys.argv[1:]\n"
    "runpy.run_path(sys.argv[0], run_name='__main__')\n"
)
CHROMIUM_ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()


@pytest.fixture(scope="session")
def space_model(minilm: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved, untuned MiniLM model."""
    folder = tmp_path_factory.mktemp("space") / "model"
    model = LLMRecModel.from_backbone(minilm)
    save_model(model, LLMRecProcessor.from_backbone(minilm, config=model.config), folder)
    return folder


@pytest.fixture(scope="session")
def items() -> LLMRecCatalogue:
    """The demo's shop and three hostile titles. Two items share a title."""
    frame = demo_items()
    titles = [*frame["title"].to_list(), *HOSTILE, frame["title"][0]]
    domains = [*frame["domain"].to_list(), *HOSTILE_DOMAINS, "Kitchen"]
    counts = np.random.default_rng(0).integers(1, 100, len(titles))
    return LLMRecCatalogue([f"i{row}" for row in range(len(titles))], titles, domains, counts)


@pytest.fixture(scope="session")
def space_catalogue(items: LLMRecCatalogue, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("items") / "catalogue.parquet"
    items.save(path)
    return path


@pytest.fixture(scope="session")
def ranker(space_model: Path, space_catalogue: Path) -> Any:
    """What the page ranks with, loaded as the page loads it."""
    from catalogue import read_catalogue
    from ranker import Ranker, load_model

    return Ranker(load_model(str(space_model)), read_catalogue(space_catalogue))


@pytest.fixture(scope="session")
def address(space_model: Path, space_catalogue: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page, served by a process that has nothing of the workshop."""
    pytest.importorskip("gradio", reason="gradio is not installed: pip install 'llmrec[space]'")
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", WITHOUT_WORKSHOP, str(SPACE / "app.py"), "--model", str(space_model)]
    command += ["--catalogue", str(space_catalogue), "--host", "127.0.0.1", "--port", str(port)]
    log = (folder / "log.txt").open("w")
    server = subprocess.Popen(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": str(SPACE)}, stdout=log, stderr=subprocess.STDOUT
    )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 300
        while not _answers(url):
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the page did not start:\n{(folder / 'log.txt').read_text()[-3000:]}")
            time.sleep(0.2)
        yield url
    finally:
        server.terminate()
        server.wait(20)
        log.close()


def _answers(url: str) -> bool:
    try:
        return bool(urllib.request.urlopen(url, timeout=5).status == 200)
    except OSError:
        return False


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=chromium, args=CHROMIUM_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any, address: str) -> Iterator[Callable[..., Any]]:
    """Opens the page in a given size and theme; afterwards no page may have complained, or asked another host."""
    contexts: list[Any] = []
    complaints: list[str] = []

    def watch(page: Any) -> None:
        page.on("console", lambda message: message.type in ("error", "warning") and complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("response", lambda answer: answer.status >= 400 and complaints.append(f"{answer.status} {answer.url}"))
        page.on(
            "request",
            lambda request: request.url.startswith((address, "data:", "blob:")) or complaints.append(request.url),
        )

    def open_one(query: str = "", *, width: int = 1280, height: int = 900, theme: str = "light") -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=theme, reduced_motion="reduce"
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        watch(page)
        page.goto(f"{address}/{query}")
        page.get_by_role("combobox", name="Your history").wait_for()
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert complaints == []
