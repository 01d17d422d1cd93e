"""Names what Google Cloud needs to be told of a TPU slice.

lm.planning.tpu_slices knows the slices themselves, in the spellings that the
launchers and lm.plan take alike.
"""

import re
from typing import NamedTuple

from lm import config
from lm.planning import tpu_slices


class _Kind(NamedTuple):
  """One generation.

  Attributes:
    runtime: the software that a TPU VM starts with.
    accelerator: GKE's name.
    cpus: that a pod asks for a chip: half of a chip's share of its host, as the
      machine types of GKE have it, since the system and the driver of a bucket
      need some. A host of GKE has no other pods.
    memory_gb: the same of memory.
  """

  runtime: str
  accelerator: str
  cpus: int
  memory_gb: int


_KINDS = {
  'v4': _Kind('tpu-ubuntu2204-base', 'tpu-v4-podslice', 30, 50),
  'v5e': _Kind('v2-alpha-tpuv5-lite', 'tpu-v5-lite-podslice', 12, 24),
  'v5p': _Kind('v2-alpha-tpuv5', 'tpu-v5p-slice', 26, 56),
  'v6e': _Kind('v2-alpha-tpuv6e', 'tpu-v6e-slice', 11, 85),
}


class Slice(NamedTuple):
  """The slice that a name stands for.

  Attributes:
    type: gcloud's accelerator type.
    chips: of the whole slice; a jax device each.
    hosts: machines, with `chips // hosts` chips each.
    topology: chips along each axis.
    target: the same for lm.plan.
    runtime: the software that a TPU VM starts with.
    accelerator: GKE's name of the generation.
    cpus: that a pod asks for, of each host.
    memory_gb: the same of memory.
  """

  type: str
  chips: int
  hosts: int
  topology: str
  target: str
  runtime: str
  accelerator: str
  cpus: int
  memory_gb: int


def find(name: str) -> Slice:
  """Looks a slice up by its name.

  Raises:
    config.ConfigError: there is no such slice.
  """
  found = tpu_slices.BY_NAME.get(name)
  if found is None:
    word = re.split('[-:]', name)[0]
    near = [x for x in tpu_slices.BY_NAME if re.split('[-:]', x)[0] == word]
    hint = config.did_you_mean(name, near or _KINDS)
    raise config.ConfigError(f'--type={name[:40]}: no such TPU slice{hint}')
  kind = _KINDS[found.kind]
  chips = found.chips // found.hosts  # of a host
  return Slice(
    found.type,
    found.chips,
    found.hosts,
    found.shape,
    found.target,
    kind.runtime,
    kind.accelerator,
    kind.cpus * chips,
    kind.memory_gb * chips,
  )
