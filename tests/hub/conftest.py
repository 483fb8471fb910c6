from collections.abc import Iterator

import pytest
from huggingface_hub import HfApi, constants

from tests.hub.loopback_hub import LoopbackHub


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    """An empty stand-in for the Hub, of this test's own; clients talk to it with `loopback_hub.hub_environment`."""
    with LoopbackHub() as running:
        yield running


@pytest.fixture
def client(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> HfApi:
    """The real client of this process, turned to `hub`. Tests that load models do so in processes of their own: they
    keep caches, and read more than this at import."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    template = f"{hub.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    return HfApi()
