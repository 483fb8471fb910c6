"""Run in a process that cannot import the project: what `pipeline` and `SentenceTransformer` make of a folder."""

import importlib.util
import json
import sys
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoProcessor, pipeline

for package in ("llmrec", "modeling_llmrec", "configuration_llmrec"):
    assert importlib.util.find_spec(package) is None, f"{package} is importable: this is no stranger"


def largest(one: Any, other: Any) -> float:
    return float((torch.as_tensor(one) - torch.as_tensor(other)).abs().max())


results = []
for job in json.load(sys.stdin):
    folder, items, histories = job["folder"], job["items"], job["histories"]
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    with torch.no_grad():
        output = model(**processor(histories=histories, items=items))
    sentences = SentenceTransformer(folder, trust_remote_code=True, device="cpu")
    encoded_items = sentences.encode(items)
    encoded_histories = sentences.encode([{"text": history} for history in histories])
    recommend = pipeline("recommendation", model=folder, trust_remote_code=True, device="cpu", candidates=items)
    answers = recommend(histories, k=len(items), exclude_history=False)
    order = output.scores.argsort(dim=1, descending=True, stable=True).tolist()
    if "resave" in job:
        recommend.save_pretrained(job["resave"])
    results.append(
        {
            "dimension": [sentences.get_embedding_dimension(), output.item_embeds.shape[1]],
            "items": largest(encoded_items, output.item_embeds),
            "histories": largest(encoded_histories, output.user_embeds),
            "similarity": largest(sentences.similarity(encoded_histories, encoded_items), output.scores),
            "order": [[one["title"] for one in answer] for answer in answers] == [[items[i] for i in o] for o in order],
            "scores": max(
                abs(one["score"] - float(output.scores[row, items.index(one["title"])]))
                for row, answer in enumerate(answers)
                for one in answer
            ),
        }
    )
print(json.dumps(results))
