"""The machines that runs are planned for, which need not be here."""

from collections.abc import Sequence
import contextlib
import math
import os
import re
import sys
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache

from lm import config, errors
from lm.planning import hardware

CUDA = "pip install 'jax[cuda13-local]' nvidia-cuda-nvcc nvidia-cudnn-cu13"


class Target(NamedTuple):
  """The machine that is planned for; `chip` is None of a CPU."""

  name: str
  chip: hardware.Chip | None
  devices: Sequence[Any]
  memory_bytes: int


def target(name: str, slices: int = 1) -> Target:
  """Describes a machine that need not be here.

  Args:
    name: such as 'v5p:8x8x4', see the file.
    slices: how many of it, with slow links between them.

  Raises:
    config.ConfigError: it is not known, or what compiles for it is missing.
  """
  kind, _, shape = name.partition(':')
  known = {chip.name: chip for chip in hardware.CHIPS}
  if kind == 'cpu' and shape.isdigit() and int(shape):
    count = int(shape) * slices
    devices = jax.devices('cpu')
    if len(devices) < count:
      raise config.ConfigError(
        f'target {name}: jax has {len(devices)} CPU devices already: set '
        f'JAX_NUM_CPU_DEVICES={count}'
      )
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    return Target(name, None, devices[:count], memory // count)
  if kind not in known or not re.fullmatch(r'\d+(x\d+)*', shape):
    raise config.ConfigError(
      f'target {name!r}: not a chip and a shape, such as v5p:8x8x4, h100:8 or '
      f'cpu:8{config.did_you_mean(kind, known)}'
    )
  chip = known[kind]
  describe = _gpu if chip.kind.startswith('NVIDIA') else _tpu
  devices = describe(name, chip, shape, slices)
  return Target(name, chip, devices, chip.memory_bytes)


def _tpu(name, chip, shape, slices):
  del chip
  # There is no TPU here to ask what it is, and none to wait for.
  for key, value in (
    ('TPU_SKIP_MDS_QUERY', '1'),
    ('ALLOW_MULTIPLE_LIBTPU_LOAD', '1'),
    ('TPU_ACCELERATOR_TYPE', 'v5p-8'),
    ('TPU_WORKER_HOSTNAMES', 'localhost'),
    ('TPU_MIN_LOG_LEVEL', '3'),
    ('TPU_STDERR_LOG_LEVEL', '3'),
  ):
    os.environ.setdefault(key, value)
  more = {'num_slices': slices} if slices > 1 else {}
  return _topology(
    name,
    errors.install('tpu'),
    platform='tpu',
    topology_name=name,
    **more,
  )


def _gpu(name, chip, shape, slices):
  count = math.prod(int(n) for n in shape.split('x')) * slices
  # What XLA must know of a card that is not here; both have one chip.
  card = f"""
    gpu_device_info {{
      threads_per_block_limit: 1024 threads_per_warp: 32
      shared_memory_per_block: 49152 shared_memory_per_core: 233472
      threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
      block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
      block_dim_limit_z: 65535 memory_bandwidth: {int(chip.memory_speed)}
      l2_cache_size: 52428800 clock_rate_ghz: 1.98
      device_memory_size: {chip.memory_bytes}
      shared_memory_per_block_optin: 232448
      cuda_compute_capability {{ major: 9 }}
      registers_per_core_limit: 65536 registers_per_block_limit: 65536
    }}
    platform_name: "CUDA"
    dnn_version_info {{ major: 9 minor: 7 }}
    runtime_version {{ major: 12 minor: 8 }}
    device_description_str: "NVIDIA {chip.name.upper()}"
  """
  return _topology(
    name,
    CUDA,
    platform='cuda',
    target_config=card,
    topology=f'1x{max(count // chip.host, 1)}x{min(count, chip.host)}',
  )


def _topology(name, install, **settings) -> Sequence[Any]:
  try:
    with _quiet():
      return topologies.get_topology_desc(**settings).devices
  except Exception as error:  # whatever a plug-in makes of what it is asked
    text = ' '.join(str(error).split())
    raise config.ConfigError(
      f'target {name}: cannot be compiled for here: {text[:90]}: {install}, or '
      'name another shape'
    ) from error


@contextlib.contextmanager
def uncached(machine: Target):
  """Keeps what no device here can load out of the compilation cache."""
  settings: Any = jax.config  # whose attributes no type names
  before = settings.jax_enable_compilation_cache
  if machine.chip is None or not before:
    yield
    return

  def use(wanted):
    jax.config.update('jax_enable_compilation_cache', wanted)
    compilation_cache.reset_cache()  # or it goes on as it began

  use(False)
  try:
    yield
  finally:
    use(True)


@contextlib.contextmanager
def _quiet():
  """Keeps what a library's C code has to say off the terminal."""
  sys.stderr.flush()
  kept = os.dup(2)
  with open(os.devnull, 'wb') as nowhere:
    os.dup2(nowhere.fileno(), 2)
    try:
      yield
    finally:
      os.dup2(kept, 2)
      os.close(kept)
