"""Publish a trained model: `python push_to_hub.py runs/food_kitchen org/llmrec-minilm-food-kitchen [--dry-run]`."""

import sys

from llmrec.cli import run_reporting_errors
from llmrec.hub.publish_command import main

if __name__ == "__main__":
    # Whatever a user can set right ends with 1; a wrong argument with 2, as argparse has it.
    sys.exit(min(1, run_reporting_errors("push_to_hub.py", main)))
