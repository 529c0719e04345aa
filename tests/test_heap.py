"""That freed memory is kept, as a process of its own sees it."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from textsafe_gym.cli.heap import keep_freed_memory

def steps():
    for _ in range(3):
        torch.ones(2**24)  # 64 MiB, which glibc never keeps by itself

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    steps()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

steps()
plain = faults()
keep_freed_memory()
steps()
print(plain, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_freed_memory_is_not_given_back() -> None:
    ran = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    plain, kept = map(int, ran.stdout.split())
    assert plain > 10_000  # else the setting has no reason to be
    assert kept < 100
