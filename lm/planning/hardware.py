"""Data sheets of devices: arithmetic, memory, links.

Figures are peaks of data sheets: NVIDIA's (dense, without sparsity), Google
Cloud's TPU pages, and for TPU links the one-way figures of Austin et al. 2025,
"How to Scale Your Model", chapter 2. No program reaches them all at once; what
ours do is `reached`, where one could be measured.
"""

import re
from typing import NamedTuple


class Chip(NamedTuple):
  """One jax device.

  Attributes:
    name: as in a target, such as 'v5p'.
    kind: regex of the whole `jax.Device.device_kind`. Names carry form factors
      on purpose: an H100 PCIe or NVL, an H200 NVL and a MIG slice have other
      peaks than the SXM card, and match none.
    flops: dense bf16 FLOP/s, with sums in float32.
    memory_bytes: of HBM.
    memory_speed: bytes/s between HBM and the cores.
    link_speed: bytes/s that a device can send in a ring to both neighbours, on
      one axis of a torus or through a switch.
    network_speed: bytes/s a device, to other slices or other hosts.
    host: devices of one host.
    reached: how much of the peak of what bounds a step, products or memory, a
      training step comes to. Of an H200 it is 47, 50, 49 and 52 % for dense
      decoders of 124M, 355M, 774M and 1.5B in bf16 (BENCHMARKS.md, 2026-11-27);
      1 where nobody has measured.
  """

  name: str
  kind: str
  flops: float
  memory_bytes: int
  memory_speed: float
  link_speed: float
  network_speed: float
  host: int
  reached: float = 1.0


_GB, _GiB = 10**9, 1 << 30
CHIPS = (
  Chip(
    'a100-40gb',
    r'NVIDIA A100-(SXM4|PCIE)-40GB',
    312e12,
    40 * _GiB,
    1555e9,
    300e9,
    25e9,
    8,
  ),
  Chip(
    'a100-80gb',
    r'NVIDIA A100(-SXM4-80GB| 80GB PCIe)',
    312e12,
    80 * _GiB,
    2039e9,
    300e9,
    25e9,
    8,
  ),
  Chip(
    'h100',
    r'NVIDIA H100 80GB HBM3',
    989e12,
    80 * _GiB,
    3352e9,
    450e9,
    50e9,
    8,
  ),
  # Cards without links of their own meet over PCIe: 4.0 has 32e9 bytes/s each
  # way, 3.0 half. Networks are those of Google Cloud's largest machines with
  # them, 100 Gbit/s; of the RTX 4090, one of 10 Gbit/s.
  Chip('l4', r'NVIDIA L4', 121e12, 24 * _GB, 300e9, 32e9, 1.56e9, 8),
  # Its products are of float16: it has no units for bf16.
  Chip('t4', r'(NVIDIA|Tesla) T4', 65e12, 16 * _GB, 320e9, 16e9, 3.1e9, 4),
  # With sums in float32, as training has them.
  Chip(
    'rtx4090',
    r'NVIDIA GeForce RTX 4090',
    165.2e12,
    24 * _GiB,
    1008e9,
    32e9,
    0.16e9,
    8,
  ),
  Chip('h200', r'NVIDIA H200', 989e12, 141 * _GB, 4800e9, 450e9, 50e9, 8, 0.49),
  Chip('v4', r'TPU v4', 275e12, 32 * _GiB, 1228e9, 90e9, 6.25e9, 4),
  Chip('v5e', r'TPU v5 ?(lite|e)', 197e12, 16 * _GiB, 819e9, 90e9, 6.25e9, 8),
  Chip('v5p', r'TPU v5p?', 459e12, 95 * _GiB, 2765e9, 180e9, 6.25e9, 4),
  Chip('v6e', r'TPU v6 ?(lite|e)', 918e12, 32 * _GiB, 1640e9, 180e9, 12.5e9, 8),
  # 2307e12 a chip, which jax shows as two devices, one a chiplet.
  Chip('tpu7x', r'TPU7x', 1153.5e12, 96 * _GiB, 3690e9, 180e9, 12.5e9, 8),
)


def find(device_kind: str) -> Chip:
  """Looks a device up by its `jax.Device.device_kind`.

  Raises:
    ValueError: it is not in the table; a guess would make wrong figures.
  """
  for chip in CHIPS:
    if re.fullmatch(chip.kind, device_kind):
      return chip
  raise ValueError(
    f'device {device_kind[:60]!r}: peak FLOP/s unknown, so no MFU; add its'
    ' data sheet to lm/planning/hardware.py'
  )
