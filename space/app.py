"""The page: choose titles, see what should come next and why.

    python space/app.py --model runs/demo/model --catalogue runs/demo-prepared

On a Space the same settings are variables: LLMREC_MODEL, LLMREC_CATALOGUE, LLMREC_REVISION, LLMREC_BACKBONE.
"""

import argparse
import os
import sys
import time

from catalogue import CatalogueError, find_catalogue, read_catalogue

# Read when gradio is imported: it would report each start to its makers otherwise.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Serve the recommendation page.")
    parser.add_argument(
        "--model", default=os.environ.get("LLMREC_MODEL"), help="folder or Hub id of a published model (LLMREC_MODEL)"
    )
    parser.add_argument(
        "--catalogue", default=os.environ.get("LLMREC_CATALOGUE"),
        help="items to recommend: a Parquet file with the columns title and domain, a prepared folder, or the Hub id "
        "of a dataset (LLMREC_CATALOGUE); by default the index/ beside the model",
    )  # fmt: skip
    parser.add_argument(
        "--revision", default=os.environ.get("LLMREC_REVISION"),
        help="revision of the model's repository; pins its code too (LLMREC_REVISION)",
    )  # fmt: skip
    parser.add_argument(
        "--backbone", default=os.environ.get("LLMREC_BACKBONE"),
        help="for adapters: where to take their backbone from instead of the Hub (LLMREC_BACKBONE)",
    )  # fmt: skip
    parser.add_argument("--host", help="address to listen at (127.0.0.1, on a Space all)")
    parser.add_argument("--port", type=int, help="port to listen at (the first free one from 7860)")
    parsed = parser.parse_args(arguments)
    if not parsed.model:
        parser.error("name a model: --model runs/demo/model, or the variable LLMREC_MODEL")
    return parsed


def show_progress(done: int, of: int) -> None:
    """One line that counts up on a terminal; in a log, one line at the end."""
    if sys.stderr.isatty() or done == of:
        print(f"\rEncoding the catalogue: {done:,} of {of:,} titles", end="\n" if done == of else "", file=sys.stderr)


def main() -> int:
    arguments = parse_arguments()
    began = time.perf_counter()
    print(f"Loading {arguments.model} …", flush=True)
    try:
        file, vectors = find_catalogue(arguments.catalogue, arguments.model, arguments.revision)
        items = read_catalogue(file)
        # These bring torch and gradio, which take their time: what is wrong with the catalogue is said before.
        from page import build, launch_options
        from ranker import Ranker, load_model

        loaded = load_model(arguments.model, revision=arguments.revision, backbone=arguments.backbone)
        ranker = Ranker(loaded, items, vectors=vectors, progress=show_progress, say=print)
    except (CatalogueError, OSError, ValueError) as error:
        print(f"The page cannot start. {error}", file=sys.stderr)
        return 1
    print(f"Ready to rank {len(items):,} items after {time.perf_counter() - began:.1f} s.", flush=True)
    blocks = build(ranker, arguments.model)
    blocks.launch(server_name=arguments.host, server_port=arguments.port, **launch_options())
    return 0


if __name__ == "__main__":
    sys.exit(main())
