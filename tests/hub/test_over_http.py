"""Published by our command, loaded by strangers: real clients over HTTP against the stand-in for the Hub.

Every family in every form, from the network, and from the cache without one at the published commit.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
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


@dataclass
class Shop:
    """What was published, and what strangers got.

    Attributes:
        cases: family and form to the repository, the vectors made here, and the answers about it.
        troubles: what was tried with damaged or hidden repositories, to the answer.
    """

    cases: dict[tuple[str, str], dict] = field(default_factory=dict)
    troubles: dict[str, dict] = field(default_factory=dict)


@pytest.fixture(scope="module")
def shop(minilm: str, shared_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """Every family in every form on the stand-in, loaded by one process online, and by one from its cache."""
    root, shop = tmp_path_factory.mktemp("http"), Shop()
    with LoopbackHub() as hub:
        for family in FAMILIES:
            source = backbone_folder(family, minilm, shared_weights, root / "backbones")
            hub.seed(f"backbones/{family}", source)
            for form in FORMS:
                folder = root / f"{family}-{form}"
                case = {"repo_id": f"org/{family}-{form}", "source": folder}
                if form == "merged":  # what is merged is the adapter's folder
                    adapter = shop.cases[family, "adapter"]
                    case |= {"source": adapter["source"], "vectors": {"": adapter["vectors"]["default"]}}
                else:
                    case["vectors"] = save_as(family, form, source, folder)
                shop.cases[family, form] = case
        cases = list(shop.cases.values())
        publishing = [
            {
                "do": "publish", "source": case["source"], "repo_id": case["repo_id"],
                "options": {"form": "merged" if form == "merged" else "auto", "verify": False, "quiet": True},
            }
            for (_, form), case in shop.cases.items()
        ]  # fmt: skip
        answers = succeeded(run_client("publisher", publishing, hub_environment(hub, root / "publisher")))
        for case, answer in zip(cases, answers, strict=True):
            case["report"] = answer

        online, offline = _troubles(hub, root)
        home = hub_environment(hub, root / "home")
        jobs = [{"do": "look", "repo_id": case["repo_id"]} for case in cases]
        jobs += [_reading(case) for case in cases]
        answers = run_client("stranger", [*jobs, *online.values()], home)
        for case, seen, loaded in zip(cases, answers, answers[len(cases) :], strict=False):
            case["seen"], case["online"] = seen, loaded
        shop.troubles |= zip(online, answers[len(jobs) :], strict=True)

        # Without a network, by the commit that was published.
        jobs = [_reading(case, revision=case["report"]["commit"]) for case in cases]
        with hub.offline():
            answers = run_client("stranger", [*jobs, *offline.values()], home | {"HF_HUB_OFFLINE": "1"})
        for case, loaded in zip(cases, answers, strict=False):
            case["offline"] = loaded
        shop.troubles |= zip(offline, answers[len(jobs) :], strict=True)
        yield shop


def _reading(case: dict, **options: object) -> dict:
    return {**READ, "repo_id": case["repo_id"], "adapters": list(case["vectors"]), "options": options}


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
def test_a_stranger_gets_the_same_scores_over_http(shop: Shop, family: str, form: str) -> None:
    case = shop.cases[family, form]
    assert _largest_difference(case, case["online"]) < TOLERANCE


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_cache_answers_without_a_network_at_the_pinned_commit(shop: Shop, family: str, form: str) -> None:
    case = shop.cases[family, form]
    assert _largest_difference(case, case["offline"]) < TOLERANCE


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_repository_shows(shop: Shop, family: str, form: str) -> None:
    case = shop.cases[family, form]
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


def test_adapters_of_different_names_are_different(shop: Shop) -> None:
    vectors = shop.cases["bert", "multi"]["vectors"]
    assert (vectors["books"][0] - vectors["groceries"][0]).abs().max() > 1e-3


# -- what goes wrong -----------------------------------------------------------------------------------------------


def _troubles(hub: LoopbackHub, root: Path) -> tuple[dict[str, dict], dict[str, dict]]:
    """Repositories to fail on, and jobs that do, online and offline."""
    jobs: dict[str, dict] = {}

    def job(name: str, repo_id: str, model_options: dict | None = None, **options: object) -> None:
        jobs[name] = {**READ, "repo_id": repo_id, "options": options, "model_options": model_options or {}}

    full, adapter = hub.files("org/llama-full"), hub.files("org/llama-adapter")
    hub.seed("org/secret", full, private=True)
    job("private", "org/secret", token=False)
    job("private with a token", "org/secret")
    job("unknown", "org/nowhere")

    hub.seed("org/branched", full)
    hub.repos["model", "org/branched"].branches["gone"] = hub.history("org/branched")[0].oid
    del hub.repos["model", "org/branched"].branches["gone"]
    job("vanished revision", "org/branched", revision="gone")

    # Code that doubles the vectors, in a second commit.
    first = hub.seed("org/code", full)
    code = full["heads.py"].decode()
    line = "return nn.functional.normalize(pooled, dim=-1) if self.normalize else pooled"
    assert code.count(line) == 1
    doubled = f"return 2 * ({line.removeprefix('return ')})"
    second = hub.seed("org/code", {"heads.py": code.replace(line, doubled).encode()})
    job("old code", "org/code", revision=first)
    job("new code", "org/code", revision=second)
    job("new weights, old code", "org/code", revision=second, code_revision=first)
    job("old weights, new code", "org/code", revision=first, code_revision=second)

    # The backbone is trained further, under an adapter that pins its commit, and one that does not.
    backbone = hub.files("backbones/llama")
    hub.seed("backbones/moving", backbone)
    commit = hub.history("backbones/moving")[0].oid
    weights = root / "model.safetensors"
    weights.write_bytes(backbone["model.safetensors"])
    save_file({name: tensor + 0.01 for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    config = json.loads(adapter["config.json"]) | {"backbone_name_or_path": "backbones/moving"}
    hub.seed("org/pinned", {**adapter, "config.json": json.dumps(config | {"backbone_revision": commit}).encode()})
    hub.seed("org/unpinned", {**adapter, "config.json": json.dumps(config | {"backbone_revision": None}).encode()})
    hub.seed("backbones/moving", {"model.safetensors": weights.read_bytes()})
    job("pinned backbone", "org/pinned")
    job("changed backbone", "org/unpinned")
    job("changed backbone, unchecked", "org/unpinned", {"check_backbone": False})
    job("changed backbone, the old one named", "org/unpinned", {"backbone": "backbones/llama"})

    # Into another cache, without its backbone.
    jobs["fetched alone"] = {"do": "fetch", "repo_id": "org/llama-adapter", "cache_dir": root / "half"}
    online, jobs = jobs, {}
    job("no backbone in the cache", "org/llama-adapter", cache_dir=str(root / "half"))
    job("not in the cache", "couldn't find them in the cached files")
    return online, jobs


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("private", "not a valid model identifier|Repository Not Found|private"),
        ("unknown", "org/nowhere"),
        ("vanished revision", "gone"),
        ("changed backbone", "another backbone than 'backbones/moving'"),
        ("not in the cache", "couldn't find them in the cached files"),
        ("no backbone in the cache", "backbones/llama.*cannot be had"),
    ],
)
def test_trouble_has_a_clear_answer(shop: Shop, name: str, message: str) -> None:
    assert "error" in shop.troubles[name], f"{name} went through"
    assert re.search(message, shop.troubles[name]["error"][1], re.DOTALL), shop.troubles[name]["error"]


def test_a_token_opens_a_private_repository(shop: Shop) -> None:
    assert _largest_difference(shop.cases["llama", "full"], shop.troubles["private with a token"]) < TOLERANCE


def test_the_code_that_runs_is_that_of_code_revision(shop: Shop) -> None:
    case = shop.cases["llama", "full"]
    for name in ("old code", "new weights, old code"):
        assert _largest_difference(case, shop.troubles[name]) < TOLERANCE
    doubled = {"vectors": {"": [2 * case["vectors"][""][0], 2 * case["vectors"][""][1], 4 * case["vectors"][""][2]]}}
    for name in ("new code", "old weights, new code"):
        assert _largest_difference(doubled, shop.troubles[name]) < TOLERANCE


def test_a_pinned_backbone_stays_the_old_one(shop: Shop) -> None:
    case = {"vectors": {"": shop.cases["llama", "adapter"]["vectors"]["default"]}}
    assert _largest_difference(case, shop.troubles["pinned backbone"]) < TOLERANCE
    assert _largest_difference(case, shop.troubles["changed backbone, the old one named"]) < TOLERANCE
    assert _largest_difference(case, shop.troubles["changed backbone, unchecked"]) > 1e-3
