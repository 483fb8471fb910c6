from collections.abc import Callable
from pathlib import Path

import pytest

from tests.modeling.families import FAMILIES, backbone_folder


@pytest.fixture(scope="session")
def backbone(minilm: str, shared_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Family name to a folder with its backbone, each made once."""
    scratch = tmp_path_factory.mktemp("backbones")
    made: dict[str, str] = {}

    def get(family: str) -> str:
        if family not in made:
            made[family] = backbone_folder(family, minilm, shared_weights, scratch)
        return made[family]

    return get


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param
