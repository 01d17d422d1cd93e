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
from lm.planning import hardware, tpu_slices

CUDA = "pip install 'jax[cuda13-local]' nvidia-cuda-nvcc nvidia-cudnn-cu13"


class _Card(NamedTuple):
  """A GPU as its programs see it, from NVIDIA's white papers and the table of
  compute capabilities in the CUDA programming guide.

  Attributes:
    major, minor: compute capability.
    cores: streaming multiprocessors.
    fpus: float32 units of each.
    threads: that each can hold.
    shared_memory_bytes: of each.
    most_shared_bytes: of it that one block can have.
    cache_bytes: of the L2 cache.
    clock_ghz: boost clock.
  """

  major: int
  minor: int
  cores: int
  fpus: int
  threads: int
  shared_memory_bytes: int
  most_shared_bytes: int
  cache_bytes: int
  clock_ghz: float


_KiB, _MiB = 1 << 10, 1 << 20
_A100 = _Card(8, 0, 108, 64, 2048, 164 * _KiB, 163 * _KiB, 40 * _MiB, 1.41)
_H100 = _Card(9, 0, 132, 128, 2048, 228 * _KiB, 227 * _KiB, 50 * _MiB, 1.98)
_CARDS = {
  'a100-40gb': _A100,
  'a100-80gb': _A100,
  'h100': _H100,
  'h200': _H100,
  'l4': _Card(8, 9, 58, 128, 1536, 100 * _KiB, 99 * _KiB, 48 * _MiB, 2.04),
  't4': _Card(7, 5, 40, 64, 1024, 64 * _KiB, 64 * _KiB, 4 * _MiB, 1.59),
  'rtx4090': _Card(
    8, 9, 128, 128, 1536, 100 * _KiB, 99 * _KiB, 72 * _MiB, 2.52
  ),
}


class Target(NamedTuple):
  """The machine that is planned for; `chip` is None of a CPU."""

  name: str
  chip: hardware.Chip | None
  devices: Sequence[Any]
  memory_bytes: int


def target(name: str, slices: int = 1) -> Target:
  """Describes a machine that need not be here.

  Args:
    name: such as 'v5p:8x8x4' or 'v5litepod-8', see `tpu_slices`.
    slices: how many of it, with slow links between them.

  Raises:
    config.ConfigError: it is not known, or what compiles for it is missing.
  """
  if name in tpu_slices.BY_NAME:  # as Google Cloud spells it
    name = tpu_slices.BY_NAME[name].target
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
  describe = _gpu if chip.name in _CARDS else _tpu
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
  gpu = _CARDS[chip.name]
  # What XLA must know of a card that is not here.
  card = f"""
    gpu_device_info {{
      threads_per_block_limit: 1024 threads_per_warp: 32
      shared_memory_per_block: 49152
      shared_memory_per_core: {gpu.shared_memory_bytes}
      threads_per_core_limit: {gpu.threads} core_count: {gpu.cores}
      fpus_per_core: {gpu.fpus}
      block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
      block_dim_limit_z: 65535 memory_bandwidth: {int(chip.memory_speed)}
      l2_cache_size: {gpu.cache_bytes} clock_rate_ghz: {gpu.clock_ghz}
      device_memory_size: {chip.memory_bytes}
      shared_memory_per_block_optin: {gpu.most_shared_bytes}
      cuda_compute_capability {{ major: {gpu.major} minor: {gpu.minor} }}
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
