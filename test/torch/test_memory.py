"""Memory: a training does not grow with its steps."""

import ctypes
import json
import os
import subprocess
import sys

import pytest

STEPS = """
import ctypes, json
import fspo_trainer.__main__  # before torch
import torch

names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"

class Counts(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

count = ctypes.CDLL(None).mallinfo2
count.restype = Counts
inner, head = torch.nn.Linear(576, 576), torch.nn.Linear(576, 4096)
sizes = []
for step in range(40):
    with torch.autocast("cpu", torch.bfloat16):
        head(inner(torch.ones(500 + step, 576))).float().logsumexp(1).sum().backward()
    sizes.append(count().uordblks)
print(json.dumps(sizes))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="this C library does not count what is in use")
def test_nothing_is_kept_for_each_number_of_tokens():
    env = {name: value for name, value in os.environ.items() if "CACHE_CAPACITY" not in name}
    env["GLIBC_TUNABLES"] = f"glibc.malloc.mmap_threshold={2**32}"  # all of it in one heap, which is what is counted
    ran = subprocess.run([sys.executable, "-c", STEPS], env=env, capture_output=True, text=True, check=True)
    sizes = json.loads(ran.stdout)
    assert sizes[-1] - sizes[9] < 5e6, [round(size / 1e6, 1) for size in sizes]
