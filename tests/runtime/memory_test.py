import os
import subprocess
import sys

import pytest

from lm.runtime import memory

_PROGRAM = """
import resource

import numpy as np

from lm.runtime import memory


def faults():
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  np.ones(64 << 20, np.uint8)
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


kept = memory.keep_freed()
faults()
print(kept, faults())
"""


@pytest.mark.process
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


@pytest.mark.parametrize(
  ('settings', 'threads'),
  [
    ({'JAX_NUM_CPU_DEVICES': '64'}, '256'),
    ({'XLA_FLAGS': '--xla_force_host_platform_device_count=64'}, '256'),
    ({'JAX_NUM_CPU_DEVICES': '64', 'NPROC': '7'}, '7'),
    ({'JAX_NUM_CPU_DEVICES': '1'}, None),
    ({}, None),
  ],
)
def test_simulated_devices_have_threads_to_wait_in(
  settings, threads, monkeypatch
):
  for name in ('JAX_NUM_CPU_DEVICES', 'XLA_FLAGS', 'NPROC'):
    monkeypatch.delenv(name, raising=False)
  for name, value in settings.items():
    monkeypatch.setenv(name, value)
  memory.give_threads()
  assert os.environ.get('NPROC') == threads
  monkeypatch.setenv('NPROC', '1')  # so that it is taken back
