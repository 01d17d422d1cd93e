"""TPU slices by name: chips, hosts and shape, as Google Cloud's tables say.

`v5litepod-8` (or `v5e-8`) and `v6e-8` count chips. `v4-8` and `v5p-8` count
cores, two a chip: v5p-512 is 256 chips, 4x8x8, on 64 hosts.
"""

from typing import NamedTuple

from lm import config

_FLAT = {
  1: '1x1',
  4: '2x2',
  8: '2x4',
  16: '4x4',
  32: '4x8',
  64: '8x8',
  128: '8x16',
  256: '16x16',
}
_DEEP = {
  4: '2x2x1',
  8: '2x2x2',
  16: '2x2x4',
  32: '2x4x4',
  64: '4x4x4',
  128: '4x4x8',
  256: '4x8x8',
  512: '8x8x8',
  1024: '8x8x16',
  1536: '8x12x16',
  2048: '8x16x16',
  3072: '12x16x16',
  4096: '16x16x16',
  6144: '16x16x24',
}


class _Kind(NamedTuple):
  """One generation: how gcloud and GKE call it, and its shapes by chips."""

  prefix: str
  cores: int  # that a name counts for a chip
  runtime: str
  accelerator: str
  shapes: dict[int, str]
  # What a pod asks for a chip: half of a chip's share of its host, as the
  # machine types of GKE have it, since the system and a bucket's driver need
  # some. A host of GKE has no other pods.
  cpus: int
  memory_gb: int


_KINDS = {
  'v4': _Kind('v4', 2, 'tpu-ubuntu2204-base', 'tpu-v4-podslice', _DEEP, 30, 50),
  'v5e': _Kind(
    'v5litepod', 1, 'v2-alpha-tpuv5-lite', 'tpu-v5-lite-podslice', _FLAT, 12, 24
  ),
  'v5p': _Kind('v5p', 2, 'v2-alpha-tpuv5', 'tpu-v5p-slice', _DEEP, 26, 56),
  'v6e': _Kind('v6e', 1, 'v2-alpha-tpuv6e', 'tpu-v6e-slice', _FLAT, 11, 85),
}


class Slice(NamedTuple):
  """The slice or slices that one name stands for.

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
  names = {
    f'{word}-{kind.cores * chips}': (generation, kind, chips)
    for generation, kind in _KINDS.items()
    for word in (generation, kind.prefix)
    for chips in kind.shapes
  }
  if name not in names:
    word = name.partition('-')[0]
    near = [x for x in names if x.partition('-')[0] == word] or _KINDS
    hint = config.did_you_mean(name, near)
    raise config.ConfigError(f'--type={name[:40]}: no such TPU slice{hint}')
  generation, kind, chips = names[name]
  flat = kind.shapes is _FLAT
  # Up to 8 chips of the flat kinds share a machine; all others have 4 each.
  hosts = 1 if flat and chips <= 8 else max(1, chips // 4)
  return Slice(
    f'{kind.prefix}-{kind.cores * chips}',
    chips,
    hosts,
    kind.shapes[chips],
    f'{generation}:{kind.shapes[chips]}',
    kind.runtime,
    kind.accelerator,
    kind.cpus * (chips // hosts),
    kind.memory_gb * (chips // hosts),
  )
