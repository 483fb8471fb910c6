"""Run in processes of their own, with their own environment: a stranger who loads, or this project's publisher.

    python -I hub_client.py stranger answers.json < jobs.json
    python hub_client.py publisher answers.json < jobs.json

A job that fails answers {"error": [type, message]}; the others go on.
"""

import contextlib
import io
import json
import sys
import traceback
from pathlib import Path

OWN_PACKAGES = ("llmrec", "modeling_llmrec", "configuration_llmrec", "tests")


class Blocker:
    """A stranger does not have this project, however it is installed here."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in OWN_PACKAGES:
            raise ModuleNotFoundError(f"{name} is not a stranger's", name=name)


def load(job: dict) -> dict:
    """Vectors by the Auto classes, of each adapter asked for."""
    import torch
    from transformers import AutoModel, AutoProcessor

    options = {"trust_remote_code": True, **job.get("options", {})}
    model = AutoModel.from_pretrained(job["repo_id"], **options, **job.get("model_options", {}))
    processor = AutoProcessor.from_pretrained(job["repo_id"], **options)
    batch = processor(histories=job["histories"], items=job["items"])
    vectors = {}
    for adapter in job.get("adapters") or [""]:
        if adapter:
            model.set_adapter(adapter)
        with torch.no_grad():
            output = model(**batch)
        vectors[adapter] = [output.user_embeds.tolist(), output.item_embeds.tolist(), output.scores.tolist()]
    return {"model_type": model.config.model_type, "class": type(model).__name__, "vectors": vectors}


def look(job: dict) -> dict:
    """What a repository says about itself."""
    from huggingface_hub import HfApi, ModelCard

    api, repo_id = HfApi(), job["repo_id"]
    return {
        "files": api.list_repo_files(repo_id),
        "listed": [model.id for model in api.list_models(author=repo_id.split("/")[0])],
        "card": ModelCard.load(repo_id).data.to_dict(),
    }


def fetch(job: dict) -> dict:
    """A repository into a cache, without loading anything that it refers to."""
    from huggingface_hub import snapshot_download

    return {"folder": snapshot_download(job["repo_id"], cache_dir=job["cache_dir"])}


def publish(job: dict) -> dict:
    """The function, with the job's arguments."""
    from llmrec.hub.publish import publish

    report = publish(job["source"], job["repo_id"], **job.get("options", {}))
    return {"commit": report.commit, "url": report.url, "form": report.form, "revision": report.revision,
            "changed": report.changed, "deleted": report.deleted, "difference": report.difference,
            "total_bytes": report.total_bytes}  # fmt: skip


def command(job: dict) -> dict:
    """The command line, in an environment of its own."""
    import os

    from llmrec.cli import run_reporting_errors
    from llmrec.hub.publish_command import main

    before, out, err = dict(os.environ), io.StringIO(), io.StringIO()
    for name, value in job.get("environment", {}).items():
        os.environ[name] = value or ""
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = run_reporting_errors("push_to_hub.py", lambda: main(job["arguments"]))
    finally:
        os.environ.clear()
        os.environ.update(before)
    return {"status": status, "out": out.getvalue(), "err": err.getvalue()}


DOES = {"load": load, "look": look, "fetch": fetch, "publish": publish, "command": command}

if __name__ == "__main__":
    if sys.argv[1] == "stranger":
        sys.meta_path.insert(0, Blocker)
    answers = []
    for job in json.load(sys.stdin):
        try:
            answers.append(DOES[job["do"]](job))
        except Exception as error:
            traceback.print_exc()
            answers.append({"error": [type(error).__name__, str(error)]})
    if sys.argv[1] == "stranger":
        assert not {name.split(".")[0] for name in sys.modules} & set(OWN_PACKAGES), "this was no stranger"
    Path(sys.argv[2]).write_text(json.dumps(answers))
