"""The three sides on the three backbones, and single techniques: everything but the large shapes."""

from __future__ import annotations

import argparse
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .data import NEGATIVES, DataChoice, find_data, load_data
from .gate import start_server
from .machine import hardware, versions
from .sections import OURS, PAPER, ST, ST_BF16, Plan, Section, Wanted, backbone_sides, technique_sides
from .shapes import SHAPES, TINY_SHAPES, Shape, UnavailableError, make_backbone
from .summary import ratio, table

QUICK = {"minilm": (PAPER, ST, ST_BF16, OURS), "decoder": (PAPER, OURS)}
# In --quick (a) reads at least one slice a turn, and takes a second turn if less than this has passed by then: the
# whole stays under three minutes where a core computes 55 GFLOP/s.
QUICK_SECONDS, QUICK_SLICES = {"minilm": 5.0, "decoder": 8.0}, {"minilm": 8, "decoder": 4}
QUICK_SECOND_TURN = 130.0
FULL_ROUNDS = {"minilm": 3, "decoder": 2, "t5": 3}
TECHNIQUE_BACKBONES = ("minilm", "decoder")
# Below this share of the time on the processor something else was running.
UNDISTURBED = 0.9

LEGEND = """\
examples/s and tokens/s are medians over the turns of a side. fill: real tokens of the slots that are computed.
at mean size: examples/s of batches as large as the mean of the side's first 32, at the measured slots per second: a
batch or two may be lighter or heavier than most.
CPU: processor time of the wall time, over {threads} thread(s). neg.: candidates that an example is contrasted with.
peak: {memory}.
loss, top 1: after as many examples as `after` says, for the target among 11 candidates (10 drawn uniformly from its
domain) of the same validation users: softmax cross-entropy at the side's own scale (raw dot products in (a), cosines
times 20 in (b) and (c)), and how often the target scores highest, which no scale changes."""


def run(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Run the sections that the command line asks for; prints tables and returns what goes into the JSON file."""
    begin = time.perf_counter()
    names = args.only or (list(QUICK) if args.quick else list(FULL_ROUNDS))
    known = QUICK if args.quick else FULL_ROUNDS
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SystemExit(f"--only {unknown[0]}: the backbones of this mode are {', '.join(known)}")
    start_server()
    facts = hardware(args.device, args.threads)
    choice = find_data(args.data, args.shared, work)
    data = load_data(choice.folder)
    print(
        f"training, {'quick' if args.quick else 'full'}: batches of {args.batch_size or 96} examples, {choice.label}, "
        f"{args.threads} thread(s) a side, {facts['processor'] if args.device == 'cpu' else facts['gpu']}",
        flush=True,
    )
    shapes = TINY_SHAPES if args.tiny else SHAPES
    backbones: dict[str, str] = {}
    skipped: dict[str, str] = {}
    for name in names:
        try:
            backbones[name] = make_backbone(shapes[name], args.shared, data.catalogue.titles, work)
        except UnavailableError as error:
            skipped[name] = str(error)
            print(f"left out: {error}")
    labels = {name: shapes[name].label for name in backbones}
    mode = _run_quick if args.quick else _run_full
    sections, techniques = mode(args, backbones, shapes, choice, begin)
    memory = "allocated on the GPU" if args.device == "cuda" else "resident set of the side's process"
    print("\n" + LEGEND.format(memory=memory, threads=args.threads))
    print("\n".join(_notes(args, sections)))
    return {
        "mode": "quick" if args.quick else "full",
        "tiny": args.tiny,
        "data": {"label": choice.label, "hash": data.hash},
        "negatives_of_the_paper": NEGATIVES,
        "hardware": facts,
        "versions": versions(),
        "seconds": round(time.perf_counter() - begin, 1),
        "backbones": labels,
        "sections": sections,
        "techniques": techniques,
        "skipped": skipped,
        "summary_by_processor_time": summary(sections, "examples_per_cpu_second"),
        "summary_at_mean_size": summary(sections, "examples_per_second_at_mean_size"),
        "summary": summary(sections),
    }


def _run_quick(
    args: argparse.Namespace, backbones: dict[str, str], shapes: dict[str, Shape], choice: DataChoice, begin: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    """One step of every side; of (a)'s batch some slices only, before the others and, where time allows, after."""
    sections: dict[str, Section] = {}
    with ExitStack() as stack:
        for name, backbone in backbones.items():
            plan = _plan(args, name)
            wanted = backbone_sides(plan, shapes[name], backbone, choice.folder, QUICK[name])
            sections[name] = Section(wanted, plan, stack, _say)
        for section in sections.values():
            section.wait()
        _say(f"ready after {time.perf_counter() - begin:.0f} s")
        for section in sections.values():
            section.take_turns(1, 1)
        for section in sections.values():
            if time.perf_counter() - begin < QUICK_SECOND_TURN:
                section.take_turns(1, 1, sampled_only=True)
        results: dict[str, Any] = {
            name: {"plan": asdict(section.plan), "rows": section.finish()} for name, section in sections.items()
        }
    _say(f"done after {time.perf_counter() - begin:.0f} s")
    for name, result in results.items():
        print(f"\n{shapes[name].label}\n{table(result['rows'], PAPER)}")
    return results, {}


def _run_full(
    args: argparse.Namespace, backbones: dict[str, str], shapes: dict[str, Shape], choice: DataChoice, begin: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Backbone after backbone, the sides of each in turns; then its techniques."""
    sections, techniques = {}, {}
    for name, backbone in backbones.items():
        plan, shape = _plan(args, name), shapes[name]
        wanted = backbone_sides(plan, shape, backbone, choice.folder)
        sections[name] = _run_section(wanted, plan, shape.label, begin)
        if not args.no_techniques and name in TECHNIQUE_BACKBONES:
            plan = _plan(args, name, techniques=True)
            wanted = technique_sides(plan, shape, backbone, choice.folder)
            label = f"{shape.label}: one technique at a time, added to (a)"
            techniques[name] = _run_section(wanted, plan, label, begin)
    return sections, techniques


def _run_section(wanted: Wanted, plan: Plan, label: str, begin: float) -> dict[str, Any]:
    _say(f"\n{label}")
    with ExitStack() as stack:
        section = Section(wanted, plan, stack, _say)
        section.wait()
        section.take_turns(plan.rounds, plan.steps)
        rows = section.finish()
    _say(f"{table(rows, PAPER)}\n({time.perf_counter() - begin:.0f} s so far)")
    return {"plan": asdict(plan), "rows": rows}


def summary(sections: dict[str, Any], rate: str = "examples_per_second") -> dict[str, float | None]:
    """Ratios of a rate: ours by default over the fastest of the other side; None for what did not run."""

    def of(backbone: str, *sides: str) -> float | None:
        rows = {row["side"]: row for row in sections.get(backbone, {}).get("rows", [])}
        return ratio(rows.get(OURS), [rows.get(side) for side in sides], rate)

    return {
        "ours_vs_paper_decoder": of("decoder", PAPER),
        "ours_vs_paper_minilm": of("minilm", PAPER),
        "ours_vs_sentence_transformers_minilm": of("minilm", ST, ST_BF16),
    }


def _plan(args: argparse.Namespace, name: str, techniques: bool = False) -> Plan:
    common = {"seed": args.seed, "threads": args.threads, "device": args.device, "batch_size": args.batch_size or 96}
    if args.quick:
        seconds = args.paper_seconds or QUICK_SECONDS[name]
        return Plan(1, 1, seconds, heldout=0, slice_size=min(args.slice_size, QUICK_SLICES[name]), **common)
    # With parts of batches, and for techniques, the sides do not learn from equally many examples.
    heldout = 0 if techniques or args.paper_seconds else args.heldout
    seconds = args.technique_seconds if techniques else args.paper_seconds
    rounds = 1 if techniques else args.rounds or FULL_ROUNDS[name]
    return Plan(rounds, args.steps, seconds, heldout=heldout, slice_size=args.slice_size, **common)


def _notes(args: argparse.Namespace, sections: dict[str, Any]) -> list[str]:
    notes = [
        "(a) is computed some examples at a time, padded as its whole batch: its loss has no term across examples. Its "
        "peak memory is therefore that of such a slice."
    ]
    if args.quick or args.paper_seconds:
        notes.append("Of (a)'s batches only some slices were read; an optimizer step counts for their share of it.")
    rows = [row for section in sections.values() for row in section["rows"]]
    if args.device == "cpu" and any(row.get("cpu_share", 1) < UNDISTURBED for row in rows):
        notes.append(
            "Something else was running: a side had less than 0.9 of the processor time it could have used. The JSON "
            "file also has examples_per_cpu_second and summary_by_processor_time."
        )
    return notes


def _say(text: str) -> None:
    print(text, flush=True)
