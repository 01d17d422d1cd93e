import subprocess
import sys

import pytest

_PROGRAM = """
import resource

import numpy as np

from lm import memory


def faults():
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  np.ones(64 << 20, np.uint8)
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


kept = memory.keep_freed()
faults()
print(kept, faults())
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='a setting of glibc')
def test_freed_memory_is_used_again():
  out = subprocess.run(
    [sys.executable, '-c', _PROGRAM],
    env={'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    check=True,
  ).stdout
  kept, faults = out.split()
  assert kept == 'True'
  # 16,384 pages of 4 KiB, or 32 of 2 MiB, where the kernel gives them anew.
  assert int(faults) < 8
