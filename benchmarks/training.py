"""What training costs: the authors' recipe (a), sentence-transformers' trainer (b), and this project's (c).

    python benchmarks/training.py --quick            # under three minutes on two slow cores; last line: JSON
    python benchmarks/training.py                    # everything on the processor, whole batches
    python benchmarks/training.py --gpu              # OPT-1.3B and OPT-6.7B shapes with LoRA in bf16

Each side runs in a process of its own, and they take turns. A first pass over a few examples is not timed. Writes
a table to standard output, and JSON where --output says.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--quick", action="store_true", help="parts of (a)'s batches, one step of the others")
    mode.add_argument("--gpu", action="store_true", help="large shapes with LoRA in bf16 on a CUDA GPU")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, for a test of the command itself")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="backbones: minilm decoder t5, opt-1.3b opt-6.7b")
    parser.add_argument("--data", type=Path, help="prepared data (default: Food and Kitchen in SHARED, else the demo)")
    parser.add_argument(
        "--shared", type=Path, default=Path(os.environ.get("LLMREC_SHARED", REPOSITORY.parent / "shared")),
        help="folder with data/food_kitchen/ and weights/tokenizers/ (default: $LLMREC_SHARED, else ../shared)",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, default=1, help="threads of each side (default: %(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of the sections without --gpu")
    parser.add_argument("--batch-size", type=int, help="examples of a batch (default: 96; --gpu: 512)")
    parser.add_argument("--rounds", type=int, help="turns of each side (default: 3, for the decoder 2)")
    parser.add_argument("--steps", type=int, default=1, help="steps of a turn (default: %(default)s)")
    parser.add_argument("--slice-size", type=int, default=8, help="examples of (a) that are computed at a time")
    parser.add_argument("--paper-seconds", type=float, help="stop (a) within its batch after these seconds of a turn")
    parser.add_argument(
        "--technique-seconds", type=float, default=60.0,
        help="the same for single techniques, which are never given whole batches (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--heldout", type=int, default=64, help="validation users asked at the end (default: 64)")
    parser.add_argument("--no-techniques", action="store_true", help="leave out the figures of single techniques")
    parser.add_argument("--pass-tokens", type=int, help="--gpu: max_pass_tokens, for gradient caching")
    parser.add_argument("--checkpointing", action="store_true", help="--gpu: activation checkpointing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="JSON file (default: benchmarks/results/training[_gpu].json)")
    return parser


def main() -> None:
    """Run what the command line asks for."""
    args = parser().parse_args()
    # Read when the libraries are imported, by this process and by those of the sides.
    os.environ |= {"OMP_NUM_THREADS": str(args.threads), "MKL_NUM_THREADS": str(args.threads)}
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}
    from training_sides import cpu_run, gpu_run

    with tempfile.TemporaryDirectory(prefix="llmrec-benchmark-") as folder:
        result = gpu_run.run(args, Path(folder)) if args.gpu else cpu_run.run(args, Path(folder))
    result = {"benchmark": "training", "command": ["python", "benchmarks/training.py", *sys.argv[1:]], **result}
    output = args.output
    if output is None and not (args.quick or args.tiny):
        output = RESULTS / ("training_gpu.json" if args.gpu else "training.json")
    if output is not None:
        output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        print(f"wrote {output}")
    print(json.dumps(result["summary"]))


if __name__ == "__main__":
    main()
