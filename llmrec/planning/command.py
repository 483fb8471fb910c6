"""`llmrec plan CONFIG.yaml`: what a training will cost, before it starts."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmrec.planning.hardware import Device

BATCHES = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `llmrec plan`."""
    _add_options(parser)
    parser.add_argument(
        "arguments",
        nargs=argparse.REMAINDER,
        metavar="CONFIG.yaml [--flag value …]",
        help="as for train.py: a YAML file, then flags that override it; options of the plan may stand among them",
    )


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gpu", help="estimate hours on this GPU (H100, A100-80G, L40S, …); none for this processor")
    parser.add_argument("--gpus", type=int, help="number of them, data parallel (default: 1)")
    parser.add_argument("--utilisation", type=float, help="share of the peak that is reached (default: 0.4)")
    parser.add_argument("--measure", action="store_true", help="measure this processor for two seconds")
    parser.add_argument("--batches", type=int, help=f"batches to count tokens on; 0 for all (default: {BATCHES})")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def run(args: argparse.Namespace) -> int:
    """Print the plan."""
    import json

    from llmrec.planning.hardware import find_gpu
    from llmrec.planning.plan import make_plan
    from llmrec.planning.report import as_text
    from llmrec.training.parsing import parse_arguments

    # What stands behind the YAML file was not looked at yet: options of the plan are told from flags of the training.
    inner = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    _add_options(inner)
    options, rest = inner.parse_known_args(args.arguments)
    for name, value in vars(options).items():
        if value is None or value is False:
            setattr(options, name, getattr(args, name))
    if not rest:
        raise ValueError("name the YAML file of a run, for example `llmrec plan configs/demo.yaml`")
    utilisation = 0.4 if options.utilisation is None else options.utilisation
    devices = 1 if options.gpus is None else options.gpus
    batches = BATCHES if options.batches is None else options.batches
    if not 0 < utilisation <= 1:
        raise ValueError(f"--utilisation {utilisation} must be above 0 and at most 1")
    if devices < 1 or batches < 0:
        raise ValueError("--gpus must be at least 1, --batches at least 0")
    gpu = find_gpu(options.gpu) if options.gpu else None
    if options.measure and gpu is not None:
        raise ValueError(f"--measure measures this machine's processor, not {gpu.name}: use one of --gpu and --measure")
    model_arguments, data_arguments, arguments = parse_arguments(rest)
    device = gpu or (_this_processor(arguments.resolved_precision) if options.measure else None)
    plan = make_plan(
        model_arguments, data_arguments, arguments, device, on_gpu=gpu is not None, devices=devices,
        utilisation=utilisation, max_batches=batches or None, progress=not options.json,
    )  # fmt: skip
    print(json.dumps(plan.as_dict(), indent=2) if options.json else as_text(plan))
    return 0


def _this_processor(precision: str) -> Device:
    import torch

    from llmrec.planning.hardware import Device, measure_rate

    rate = measure_rate(torch.bfloat16 if precision == "bf16" else torch.float32)
    threads = torch.get_num_threads()
    return Device(f"this processor ({threads} thread{'s' if threads > 1 else ''})", rate, rate, 0.0, 0.0)
