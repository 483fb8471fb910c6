"""How the cost of training grows with users, lengths of histories, the catalogue, and processes: four sizes each.

    python benchmarks/scaling.py                     # some minutes; writes benchmarks/results/scaling.json
    python benchmarks/scaling.py --only users ranks

A small causal backbone with random weights and made-up shops: the shapes of the curves are the result, not the times.
Each run is a process of its own, in which two steps warm up and the median of the others counts.

- users: more users, everything else the same.
- history: each user has L + 2 events, two of them held out, and histories of up to L items are read; prefixes read
  once, and one by one.
- catalogue: negatives from the batch alone, with 1,024 more from a cached matrix of the catalogue, and with all of it.
- ranks: a batch of 96 examples over several processes that exchange item vectors; with more processes than cores this
  shows what the exchange costs, not what more machines would gain.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
SIZES = {
    "users": [2_000, 8_000, 32_000, 128_000],
    "history": [5, 10, 20, 40],
    "catalogue": [1_000, 4_000, 16_000, 64_000],
    "ranks": [1, 2, 3, 4],
}
TINY_SIZES = {"users": [100, 200], "history": [3, 6], "catalogue": [200, 400], "ranks": [1, 2]}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "users": {"default": {}},
    "history": {"prefixes shared": {}, "one by one": {"share_prefixes": False}},
    "catalogue": {
        "batch alone": {},
        "1,024 of the catalogue": {"catalogue_negatives": 1024},
        "whole catalogue": {"catalogue_negatives": -1},
    },
    "ranks": {"default": {}},
}
USERS, EVENTS, ITEMS, TITLE_TOKENS = 4_000, 8, 2_000, 12
BATCH_SIZE, TINY_BATCH_SIZE = 96, 24


def jobs(dimension: str, size: int, tiny: bool) -> tuple[dict[str, int], int, int]:
    """The shop of one size of a dimension, the examples of a batch on each process, and the processes."""
    batch_size = TINY_BATCH_SIZE if tiny else BATCH_SIZE
    shop = {"users": 200 if tiny else USERS, "events": EVENTS, "items": 200 if tiny else ITEMS}
    if dimension == "users":
        return shop | {"users": size}, batch_size, 1
    if dimension == "catalogue":
        return shop | {"items": size}, batch_size, 1
    if dimension == "history":
        return shop | {"events": size + 2, "users": 100 if tiny else 1_000}, batch_size, 1
    return shop, batch_size // size, size


def run(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Measure all sizes asked for; prints a line each."""
    from scaling_parts.measure import measure
    from scaling_parts.shop import make_backbone, make_shop
    from training_sides.machine import hardware, versions

    sizes = TINY_SIZES if args.tiny else SIZES
    facts = hardware("cpu", args.threads)
    longest = (max(sizes["history"]) + 1) * TITLE_TOKENS
    backbone = make_backbone(work, 32 if args.tiny else 128, 2, longest + 16)
    result: dict[str, Any] = {name: [] for name in args.only}
    print(f"{'':48}{'s/step':>9}{'ex./s':>9}{'tokens/ex.':>12}{'loader s':>10}{'first s':>9}{'setup s':>9}{'GiB':>7}")
    for dimension in args.only:
        for size in sizes[dimension]:
            shop, batch_size, ranks = jobs(dimension, size, args.tiny)
            data = make_shop(work, **shop)
            for variant, settings in VARIANTS[dimension].items():
                limit = size if dimension == "history" else 10
                job = {
                    "backbone": backbone,
                    "data": str(data),
                    "batch_size": batch_size,
                    "threads": args.threads,
                    "steps": args.steps,
                    "settings": settings,
                    "model_settings": {"max_history_items": limit, "max_title_tokens": TITLE_TOKENS},
                }
                row = {"size": size, "variant": variant, "ranks": ranks, "shop": shop} | measure(job, work, ranks)
                result[dimension].append(row)
                print(
                    f"{dimension + ' ' + format(size, ','):<22}{variant:<26}{row['seconds_per_step']:9.3f}"
                    f"{row['examples_per_second']:9.1f}{row['tokens_per_example']:12.1f}"
                    f"{row['loader_seconds_per_batch']:10.4f}{row['first_step_seconds']:9.2f}"
                    f"{row['setup_seconds']:9.2f}{row['peak_memory_gib']:7.2f}",
                    flush=True,
                )
    return {
        "benchmark": "scaling",
        "command": ["python", "benchmarks/scaling.py", *sys.argv[1:]],
        "hardware": facts,
        "versions": versions(),
        "batch_size": TINY_BATCH_SIZE if args.tiny else BATCH_SIZE,
        "steps": args.steps,
        "dimensions": result,
    }


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SIZES), default=list(SIZES), help="dimensions (default: all)")
    parser.add_argument("--steps", type=int, default=12, help="timed steps of each run (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each process (default: %(default)s)")
    parser.add_argument("--tiny", action="store_true", help="two tiny sizes each, for a test of the command itself")
    parser.add_argument("--output", type=Path, help="JSON file (default: benchmarks/results/scaling.json)")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": str(args.threads), "MKL_NUM_THREADS": str(args.threads)}
    os.environ |= {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if args.worker is not None:
        from scaling_parts.measure import work

        work(json.loads(args.worker.read_text(encoding="utf-8")))
        return
    with tempfile.TemporaryDirectory(prefix="llmrec-scaling-") as folder:
        result = run(args, Path(folder))
    output = args.output or (None if args.tiny else RESULTS / "scaling.json")
    if output is not None:
        output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        print(f"wrote {output}")


if __name__ == "__main__":
    main()
