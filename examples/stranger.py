"""Recommend with nothing of this project installed: the code travels with the weights.

python examples/stranger.py MODEL CATALOGUE.parquet "a title" "another title" …
"""

import argparse
import sys

import polars as pl
import torch
from transformers import AutoModel, AutoProcessor

# Whoever runs this inside the project has its packages: take them away, so that what is shown is what a stranger gets.
for package in ("llmrec", "modeling_llmrec", "configuration_llmrec"):
    sys.modules[package] = None  # type: ignore[assignment]

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("model", help="a saved model: a folder, or a repository on the Hub")
parser.add_argument("catalogue", help="Parquet file with the columns title and domain")
parser.add_argument("history", nargs="+", help="titles, oldest first")
parser.add_argument("-k", type=int, default=8, help="how many items (default: 8)")
arguments = parser.parse_args()

model = AutoModel.from_pretrained(arguments.model, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(arguments.model, trust_remote_code=True)
items = pl.read_parquet(arguments.catalogue).filter(~pl.col("title").is_in(arguments.history))

with torch.no_grad():
    batch = processor(histories=[arguments.history], items=items["title"].to_list())
    scores, order = model(**batch).scores[0].topk(min(arguments.k, len(items)))

print(f"Loaded {type(model).__name__} from {arguments.model}. After")
for title in arguments.history:
    print(f"    {title}")
print("it recommends")
for score, row in zip(scores.tolist(), order.tolist(), strict=True):
    print(f"    {score:.3f}  {items['domain'][row]:<8}  {items['title'][row]}")
