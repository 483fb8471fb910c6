"""Run in a process that cannot import the project: loads a folder, prints scores and vectors as JSON."""

import importlib.util
import json
import sys

import torch
from transformers import AutoConfig, AutoModel, AutoProcessor

for package in ("llmrec", "modeling_llmrec", "configuration_llmrec"):
    assert importlib.util.find_spec(package) is None, f"{package} is importable: this is no stranger"

results = []
for job in json.load(sys.stdin):
    config = AutoConfig.from_pretrained(job["folder"], trust_remote_code=True)
    model = AutoModel.from_pretrained(job["folder"], trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(job["folder"], trust_remote_code=True)
    with torch.no_grad():
        output = model(**processor(histories=job["histories"], items=job["items"]))
    results.append(
        {
            "model_type": config.model_type,
            "classes": [type(model).__name__, type(processor).__name__],
            "user_embeds": output.user_embeds.tolist(),
            "item_embeds": output.item_embeds.tolist(),
        }
    )
    if "resave" in job:
        model.save_pretrained(job["resave"])
        processor.save_pretrained(job["resave"])
print(json.dumps(results))
