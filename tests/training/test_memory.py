"""Large tensors come from memory that stays with the process, not from mappings made and cleared each time."""

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import sys, torch
from pathlib import Path
from llmrec.training.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()

def heap():
    line = next(line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith("[heap]"))
    return [int(edge, 16) for edge in line.split()[0].split("-")]

tensor = torch.ones(16 * 2**20)  # 64 MiB
start, end = heap()
inside = start <= tensor.data_ptr() < end
del tensor
print(inside, heap()[1] == end)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
@pytest.mark.parametrize(("how", "inside"), [("keep", "True"), ("as ever", "False")])
def test_large_tensors_are_made_of_memory_that_is_kept(how: str, inside: str) -> None:
    process = subprocess.run([sys.executable, "-c", SCRIPT, how], check=True, capture_output=True, text=True)
    assert process.stdout.split() == [inside, "True"]
