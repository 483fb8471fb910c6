"""Freed memory is kept: tensors that come and go are not mapped, page by page, each time."""

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys, torch
from llmrec.training.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
faults = []
for _ in range(4):
    tensors = [torch.ones(16 * 2**20) for _ in range(3)]  # 64 MiB each
    del tensors
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(faults[3] - faults[1])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_large_tensors_are_made_of_memory_that_was_freed() -> None:
    faults = {
        how: int(subprocess.run([sys.executable, "-c", SCRIPT, how], check=True, capture_output=True, text=True).stdout)
        for how in ("keep", "as ever")
    }
    assert faults["keep"] < 0.1 * faults["as ever"]
