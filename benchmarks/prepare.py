"""How fast, and in how much memory, `llmrec prepare` prepares interactions that this script makes up.

    python benchmarks/prepare.py --interactions 10000000 --threads 2 --output prepare.json

The data has the raw format of Amazon Reviews 2018: per domain a ratings CSV and a gzip file of JSON lines.
The command runs in a process of its own, whose peak memory the operating system reports; making the data is
not part of the figures.
"""

from __future__ import annotations

import argparse
import gzip
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

DOMAINS = ("Arts", "Instruments", "Office", "Pantry", "Scientific")
EVENTS_PER_USER = 7
EVENTS_PER_ITEM = 30
FIRST_SECOND, LAST_SECOND = 1_000_000_000, 1_540_000_000
WORDS = "steel cotton blue large kit brush paper cable coffee organic wireless mini pro classic set".split()
DUPLICATE_SHARE = 0.01


def synthesise(folder: Path, interactions: int, seed: int) -> None:
    """Write the raw files of all domains; users are shared between them."""
    rng = np.random.default_rng(seed)
    users = max(1, interactions // EVENTS_PER_USER)
    for number, domain in enumerate(DOMAINS):
        rows = interactions // len(DOMAINS)
        items = max(1, rows // EVENTS_PER_ITEM)
        # Squares and cubes of uniform numbers: a few heavy users and popular items, a long tail of others.
        frame = pl.DataFrame(
            {
                "item": (items * rng.random(rows) ** 3).astype(np.int64) + number * 100_000_000,
                "user": (users * rng.random(rows) ** 2).astype(np.int64),
                "rating": rng.integers(1, 6, rows).astype(np.float32),
                "timestamp": rng.integers(FIRST_SECOND, LAST_SECOND, rows) // 86_400 * 86_400,
            }
        )
        repeats = int(rows * DUPLICATE_SHARE)
        frame = pl.concat([frame.head(rows - repeats), frame.head(repeats)])
        frame = frame.with_columns(
            pl.format("B{}", pl.col("item").cast(pl.String).str.zfill(9)),
            pl.format("A{}", pl.col("user").cast(pl.String).str.zfill(13)),
        )
        ratings, meta = folder / f"{domain}.csv", folder / f"meta_{domain}.json.gz"
        frame.write_csv(ratings, include_header=False)
        words = rng.choice(WORDS, size=(items, 8))
        with gzip.open(meta, "wt", encoding="utf-8", compresslevel=1) as stream:
            for item in range(items):
                title = f"{' '.join(words[item])} &amp; {item}"
                stream.write(json.dumps({"asin": f"B{item + number * 100_000_000:09d}", "title": title}) + "\n")


def measure(sources: list[str], output: Path, threads: int, options: list[str]) -> dict[str, Any]:
    """Run the command in a process of its own and measure it."""
    command = [
        sys.executable,
        "-m",
        "llmrec.cli",
        "prepare",
        "--format",
        "amazon-2018",
        "--output",
        str(output),
    ]
    command += [*options, *(argument for source in sources for argument in ("--source", source))]
    environment = {**os.environ, "POLARS_MAX_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
    start = time.perf_counter()
    process = subprocess.Popen(command, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(os.waitstatus_to_exitcode(status))
    # Kilobytes on Linux.
    return {"seconds": round(seconds, 2), "peak_rss_gib": round(usage.ru_maxrss / 2**20, 3)}


def main() -> None:
    """Make the data, measure, print the result as JSON and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interactions", type=int, default=10_000_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="JSON file for the result")
    parser.add_argument("--work", type=Path, help="folder for the made-up data (default: a temporary one)")
    parser.add_argument("options", nargs="*", help="after --: further options of llmrec prepare")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        # Made in a process of its own: a process inherits the peak memory of the one that starts it.
        maker = multiprocessing.get_context("spawn").Process(
            target=synthesise, args=(Path(folder), args.interactions, args.seed)
        )
        maker.start()
        maker.join()
        if maker.exitcode:
            raise SystemExit("the data could not be made")
        sources = [f"{domain}={folder}/{domain}.csv" for domain in DOMAINS]
        prepared = Path(folder) / "prepared"
        load = [round(value, 2) for value in os.getloadavg()]
        figures = measure(sources, prepared, args.threads, args.options)
        card = json.loads((prepared / "data_card.json").read_text(encoding="utf-8"))
    result = {
        "benchmark": "prepare",
        "command": ["python", "benchmarks/prepare.py", *sys.argv[1:]],
        "interactions": args.interactions,
        "threads": args.threads,
        "machine": {"architecture": platform.machine(), "cores": os.cpu_count(), "load_before": load},
        **figures,
        "interactions_per_second": round(args.interactions / figures["seconds"]),
        "steps": card["steps"],
        "hash": card["hash"],
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("polars", "numpy", "pyarrow", "datasets")},
        },
    }
    text = json.dumps(result, indent=2)
    print(text)
    if args.output is not None:
        args.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
