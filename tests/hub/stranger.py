"""A process that cannot import the project: loads folders with the Auto classes, and says in JSON what came of it."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGES = ("llmrec", "modeling_llmrec", "configuration_llmrec")


def ask_strangers(jobs: list[dict], elsewhere: Path, timeout: float = 300) -> list[dict]:
    """Do jobs in a fresh process, in another directory, with an empty Hugging Face home.

    Args:
        jobs: each has `folder`; `histories` and `items` to score; `arguments` of `AutoModel.from_pretrained`;
            `resave`, a folder to save to again; `fails`, whether an error is what is asked for.
        elsewhere: an empty folder.

    Returns:
        A result for each job: `user_embeds` and `item_embeds`, or `error` and `message`.
    """
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_HOME")}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(elsewhere / "hf"), "OMP_NUM_THREADS": "1"}
    # An editable installation puts the project on the path through site-packages; a stranger has the
    # dependencies only, so finders of our packages are taken out before anything else runs.
    script = (
        "import runpy, sys\n"
        "sys.meta_path = [f for f in sys.meta_path if 'editable' not in f'{f!r}'.lower()]\n"
        f"sys.path = [p for p in sys.path if p not in ('', {str(Path.cwd())!r})]\n"
        f"runpy.run_path({__file__!r}, run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps(jobs), capture_output=True, text=True, cwd=elsewhere, env=environment, timeout=timeout,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def _do(job: dict) -> dict[str, Any]:
    import torch
    from transformers import AutoConfig, AutoModel, AutoProcessor

    folder, arguments = job["folder"], {"trust_remote_code": True, **job.get("arguments", {})}
    config = AutoConfig.from_pretrained(folder, trust_remote_code=arguments["trust_remote_code"])
    model = AutoModel.from_pretrained(folder, **arguments)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    with torch.no_grad():
        output = model(**processor(histories=job["histories"], items=job["items"]))
    if "resave" in job:
        model.save_pretrained(job["resave"])
        processor.save_pretrained(job["resave"])
    return {
        "model_type": config.model_type,
        "classes": [type(model).__name__, type(processor).__name__],
        "user_embeds": output.user_embeds.tolist(),
        "item_embeds": output.item_embeds.tolist(),
    }


def _attempt(job: dict) -> dict[str, Any]:
    if not job.get("fails"):
        return _do(job)
    try:
        return _do(job)
    except Exception as error:
        return {"error": type(error).__name__, "message": str(error)}


if __name__ == "__main__":
    for package in PACKAGES:
        assert importlib.util.find_spec(package) is None, f"{package} is importable: this is no stranger"
    results = [_attempt(job) for job in json.load(sys.stdin)]
    print()  # a question of transformers may stand on this line
    print(json.dumps(results))
