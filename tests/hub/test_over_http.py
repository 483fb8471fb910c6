"""Published by our command, loaded by strangers: real clients over HTTP against the stand-in for the Hub.

Every family in every form, from the network, and from the cache without one at the published commit.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.hub.clients import run_client, succeeded
from tests.hub.loopback_hub import LoopbackHub, hub_environment
from tests.hub.saved_models import HISTORIES, ITEMS, save_as
from tests.modeling.families import FAMILIES, backbone_folder

pytestmark = pytest.mark.slow

FORMS = ("adapter", "multi", "merged", "full")
TOLERANCE = 1e-5
READ = {"do": "load", "histories": HISTORIES, "items": ITEMS}


@pytest.fixture(scope="module")
def shop() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture(scope="module")
def published(
    shop: LoopbackHub, minilm: str, shared_weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], dict]:
    """Every family in every form on the stand-in, with vectors made here, and what strangers got."""
    root = tmp_path_factory.mktemp("http")
    cases: dict[tuple[str, str], dict] = {}
    for family in FAMILIES:
        source = backbone_folder(family, minilm, shared_weights, root / "backbones")
        shop.seed(f"backbones/{family}", source)
        for form in FORMS:
            folder = root / f"{family}-{form}"
            vectors = save_as(family, form, source, folder)
            cases[family, form] = {"repo_id": f"org/{family}-{form}", "source": folder, "vectors": vectors}
    jobs = [
        {
            "do": "publish", "source": case["source"], "repo_id": case["repo_id"],
            "options": {"form": "merged" if form == "merged" else "auto", "verify": False, "quiet": True},
        }
        for (_, form), case in cases.items()
    ]  # fmt: skip
    answers = succeeded(run_client("publisher", jobs, hub_environment(shop, root / "publisher")))
    for case, answer in zip(cases.values(), answers, strict=True):
        case["report"] = answer

    def reading(case: dict, **options: object) -> dict:
        return {**READ, "repo_id": case["repo_id"], "adapters": list(case["vectors"]), "options": options}

    home = hub_environment(shop, root / "home")
    jobs = [{"do": "look", "repo_id": case["repo_id"]} for case in cases.values()]
    jobs += [reading(case) for case in cases.values()]
    answers = run_client("stranger", jobs, home)
    for case, seen, loaded in zip(cases.values(), answers[: len(cases)], answers[len(cases) :], strict=True):
        case["seen"], case["online"] = seen, loaded
    # Without a network, by the commit that was published.
    jobs = [reading(case, revision=case["report"]["commit"]) for case in cases.values()]
    with shop.offline():
        answers = run_client("stranger", jobs, home | {"HF_HUB_OFFLINE": "1"})
    for case, loaded in zip(cases.values(), answers, strict=True):
        case["offline"] = loaded
    return cases


def _largest_difference(case: dict, answer: dict) -> float:
    assert "error" not in answer, answer["error"]
    assert (answer["model_type"], answer["class"]) == ("llmrec", "LLMRecModel")
    assert list(answer["vectors"]) == list(case["vectors"])
    return max(
        float((torch.tensor(theirs) - ours).abs().max())
        for name, vectors in case["vectors"].items()
        for ours, theirs in zip(vectors, answer["vectors"][name], strict=True)
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_stranger_gets_the_same_scores_over_http(published: dict, family: str, form: str) -> None:
    case = published[family, form]
    assert _largest_difference(case, case["online"]) < TOLERANCE


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_cache_answers_without_a_network_at_the_pinned_commit(published: dict, family: str, form: str) -> None:
    case = published[family, form]
    assert _largest_difference(case, case["offline"]) < TOLERANCE


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_repository_shows(published: dict, family: str, form: str) -> None:
    case = published[family, form]
    seen = case["seen"]
    assert "error" not in seen, seen["error"]
    assert {"README.md", "config.json", "modeling_llmrec.py", "tokenizer.json"} <= set(seen["files"])
    assert case["repo_id"] in seen["listed"]
    adapters = {"adapter": ["default"], "multi": ["books", "groceries"]}.get(form, [])
    weights = [name for name in seen["files"] if name.endswith(".safetensors")]
    expected = [f"adapters/{name}/adapter_model.safetensors" for name in adapters] or ["model.safetensors"]
    assert weights == expected
    assert seen["card"]["base_model"] == f"backbones/{family}"
    assert seen["card"]["base_model_relation"] == ("adapter" if adapters else "finetune")
    if adapters:
        assert case["report"]["total_bytes"] < 10_000_000


def test_adapters_of_different_names_are_different(published: dict) -> None:
    vectors = published["bert", "multi"]["vectors"]
    assert (vectors["books"][0] - vectors["groceries"][0]).abs().max() > 1e-3


# -- what goes wrong -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def troubles(shop: LoopbackHub, published: dict, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """Damage of several kinds, and what a stranger is told, all in one process online and one offline."""
    root = tmp_path_factory.mktemp("troubles")
    jobs: dict[str, dict] = {}

    def job(name: str, repo_id: str, model_options: dict | None = None, **options: object) -> None:
        jobs[name] = {**READ, "repo_id": repo_id, "options": options, "model_options": model_options or {}}

    full, adapter = shop.files("org/opt-full"), shop.files("org/opt-adapter")
    shop.seed("org/secret", full, private=True)
    job("private", "org/secret", token=False)
    job("private with a token", "org/secret")
    job("unknown", "org/nowhere")

    shop.seed("org/branched", full)
    shop.repos["model", "org/branched"].branches["gone"] = "0" * 40
    job("vanished revision", "org/branched", revision="gone")

    # Code that doubles the vectors, in a second commit.
    first = shop.seed("org/code", full)
    code = full["heads.py"].decode()
    line = "return nn.functional.normalize(pooled, dim=-1) if self.normalize else pooled"
    assert code.count(line) == 1
    doubled = f"return 2 * ({line.removeprefix('return ')})"
    second = shop.seed("org/code", {"heads.py": code.replace(line, doubled).encode()})
    job("old code", "org/code", revision=first)
    job("new code", "org/code", revision=second)
    job("new weights, old code", "org/code", revision=second, code_revision=first)
    job("old weights, new code", "org/code", revision=first, code_revision=second)

    # The backbone is trained further, under an adapter that pins its commit, and one that does not.
    backbone = shop.files("backbones/opt")
    shop.seed("backbones/moving", backbone)
    commit = shop.history("backbones/moving")[0].oid
    weights = root / "model.safetensors"
    weights.write_bytes(backbone["model.safetensors"])
    save_file({name: tensor + 0.01 for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    config = json.loads(adapter["config.json"]) | {"backbone_name_or_path": "backbones/moving"}
    shop.seed("org/pinned", {**adapter, "config.json": json.dumps(config | {"backbone_revision": commit}).encode()})
    shop.seed("org/unpinned", {**adapter, "config.json": json.dumps(config | {"backbone_revision": None}).encode()})
    shop.seed("backbones/moving", {"model.safetensors": weights.read_bytes()})
    job("pinned backbone", "org/pinned")
    job("changed backbone", "org/unpinned")
    job("changed backbone, unchecked", "org/unpinned", {"check_backbone": False})
    job("changed backbone, the old one named", "org/unpinned", {"backbone": "backbones/opt"})

    # Into another cache, without its backbone.
    jobs["fetched alone"] = {"do": "fetch", "repo_id": "org/opt-adapter", "cache_dir": root / "half" / "hub"}
    environment = hub_environment(shop, root / "home")
    answers = dict(zip(jobs, run_client("stranger", list(jobs.values()), environment), strict=True))

    jobs = {}
    job("no backbone in the cache", "org/opt-adapter")
    with shop.offline():
        offline = hub_environment(shop, root / "half") | {"HF_HUB_OFFLINE": "1"}
        answers |= zip(jobs, run_client("stranger", list(jobs.values()), offline), strict=True)
    return answers


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("private", "not a valid model identifier|Repository Not Found|private"),
        ("unknown", "org/nowhere"),
        ("vanished revision", "gone"),
        ("changed backbone", "another backbone than 'backbones/moving'"),
        ("no backbone in the cache", "backbones/opt.*cannot be had"),
    ],
)
def test_trouble_has_a_clear_answer(troubles: dict, name: str, message: str) -> None:
    import re

    assert "error" in troubles[name], f"{name} went through"
    assert re.search(message, troubles[name]["error"][1], re.DOTALL), troubles[name]["error"]


def test_a_token_opens_a_private_repository(troubles: dict, published: dict) -> None:
    assert _largest_difference(published["opt", "full"], troubles["private with a token"]) < TOLERANCE


def test_the_code_that_runs_is_that_of_code_revision(troubles: dict, published: dict) -> None:
    case = published["opt", "full"]
    for name in ("old code", "new weights, old code"):
        assert _largest_difference(case, troubles[name]) < TOLERANCE
    doubled = {"vectors": {"": [2 * case["vectors"][""][0], 2 * case["vectors"][""][1], 4 * case["vectors"][""][2]]}}
    for name in ("new code", "old weights, new code"):
        assert _largest_difference(doubled, troubles[name]) < TOLERANCE


def test_a_pinned_backbone_stays_the_old_one(troubles: dict, published: dict) -> None:
    case = {"vectors": {"": published["opt", "adapter"]["vectors"]["default"]}}
    assert _largest_difference(case, troubles["pinned backbone"]) < TOLERANCE
    assert _largest_difference(case, troubles["changed backbone, the old one named"]) < TOLERANCE
    assert _largest_difference(case, troubles["changed backbone, unchecked"]) > 1e-3
