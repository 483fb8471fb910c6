"""Train and evaluate a recommender: `accelerate launch train.py configs/demo.yaml [--flag value …]`."""

import sys

from llmrec.cli import run_reporting_errors
from llmrec.training.run import main

if __name__ == "__main__":
    sys.exit(run_reporting_errors("train.py", main))
