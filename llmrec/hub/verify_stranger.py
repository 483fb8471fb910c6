"""Run by `verify` in a process of its own: loads a repository as a stranger does, and writes down its scores.

It must not import anything of this project, and makes sure that nothing else does.
"""

import json
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path

OWN_PACKAGES = ("llmrec", "modeling_llmrec", "configuration_llmrec")


class Blocker(MetaPathFinder):
    """Makes this project's packages unknown, however they are installed."""

    def find_spec(self, name, path=None, target=None):  # type: ignore[no-untyped-def]
        if name.split(".")[0] in OWN_PACKAGES:
            raise ModuleNotFoundError(f"No module named {name!r} (a stranger does not have it)", name=name)
        return None


def scores(job: dict) -> dict:
    """Scores of each adapter, or of the model, for the histories and items of the job."""
    import torch
    from transformers import AutoModel, AutoProcessor

    where = {"revision": job["revision"], "trust_remote_code": True}
    model = AutoModel.from_pretrained(job["repo_id"], **where)
    processor = AutoProcessor.from_pretrained(job["repo_id"], **where)
    batch = processor(histories=job["histories"], items=job["items"])
    found = {}
    for adapter in job["adapters"] or [None]:
        if adapter is not None:
            model.set_adapter(adapter)
        with torch.no_grad():
            found[adapter or ""] = model(**batch).scores.tolist()
    return {
        "scores": found,
        "model": type(model).__module__ + "." + type(model).__name__,
        "default_adapter": model.config.default_adapter,
        "own_modules": sorted(name for name in sys.modules if name.split(".")[0] in OWN_PACKAGES),
    }


if __name__ == "__main__":
    sys.meta_path.insert(0, Blocker())
    answer = scores(json.load(sys.stdin))
    Path(sys.argv[1]).write_text(json.dumps(answer), encoding="utf-8")
