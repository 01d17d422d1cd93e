"""How much arithmetic a token costs, and what share of a chip that is."""

import re

from lm import tree, types

# Peak dense bf16 FLOP/s of what jax calls one device, by its whole
# `device_kind`. Names carry form factors on purpose: an H100 PCIe or NVL, an
# H200 NVL and a MIG slice have other peaks than the SXM card, and match none.
# Sources: NVIDIA's data sheets (without sparsity) and Google Cloud's TPU pages.
_PEAKS = (
  (r'NVIDIA A100-(SXM4|PCIE)-40GB', 312e12),
  (r'NVIDIA A100(-SXM4-80GB| 80GB PCIe)', 312e12),
  (r'NVIDIA H100 80GB HBM3', 989e12),
  (r'NVIDIA H200', 989e12),
  (r'TPU v4', 275e12),
  (r'TPU v5 ?(lite|e)', 197e12),
  (r'TPU v5p?', 459e12),
  (r'TPU v6 ?(lite|e)', 918e12),
  # 2307e12 a chip, which jax shows as two devices, one a chiplet.
  (r'TPU7x', 1153.5e12),
)


def multiplied(params: types.Params) -> int:
  """Counts N, the parameters that take part in every token's arithmetic.

  That is all of them except lookups: learned positions, and the embedding
  table when there is a separate output matrix (`head/kernel`). A tied table is
  counted once, because it is multiplied once, as the output. Norm scales and
  biases stay in, well under 1 %. Experts count in full, used or not.

  Args:
    params: a decoder's parameters, arrays or shapes.
  """
  lookup = re.compile(r'(^|/)embed/positions$')
  if any(
    re.search(r'(^|/)head/kernel$', path) for path, _ in tree.paths(params)
  ):
    lookup = re.compile(r'(^|/)embed/(positions|table)$')
  return sum(
    leaf.size for path, leaf in tree.paths(params) if not lookup.search(path)
  )


def forward_flops_per_token(
  parameters: int, depth: int, length: int, width: int
) -> int:
  """Counts a forward pass: 2N + 4 * depth * length * width.

  A multiply and an add for each parameter, and for each position attended to
  in scores and in the weighted sum. Causal attention is counted in full, as is
  the custom, so kernels that skip the masked half report more than they do.

  Args:
    parameters: N, from `multiplied`.
    depth: attention layers.
    length: positions in the attention window.
    width: query heads times head width, in most models the model's width.

  Reference: Chowdhery et al. 2022, arXiv 2204.02311, appendix B.
  """
  return 2 * parameters + 4 * depth * length * width


def train_flops_per_token(
  parameters: int, depth: int, length: int, width: int
) -> int:
  """Counts forward and backward: 6N + 12 * depth * length * width.

  Recomputation under remat is not counted. Arguments as for
  `forward_flops_per_token`.
  """
  return 3 * forward_flops_per_token(parameters, depth, length, width)


def peak(device_kind: str) -> float:
  """Looks up the peak dense bf16 FLOP/s of one jax device.

  Args:
    device_kind: `jax.Device.device_kind`.

  Raises:
    ValueError: the chip is not in the table; a guess would be a wrong MFU.
  """
  for pattern, flops in _PEAKS:
    if re.fullmatch(pattern, device_kind):
      return flops
  raise ValueError(
    f'device {device_kind[:60]!r}: peak FLOP/s unknown, so no MFU; add its'
    ' dense bf16 figure to lm/flops.py'
  )


def mfu(tokens_per_second: float, flops_per_token: float, peak: float) -> float:
  """Computes model FLOPs utilization, the part of `peak` that is used.

  Args:
    tokens_per_second: of all devices together.
    flops_per_token: from `train_flops_per_token`.
    peak: FLOP/s of all devices together: their number times `peak(kind)`.
  """
  return tokens_per_second * flops_per_token / peak
