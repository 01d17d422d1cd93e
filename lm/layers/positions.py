"""Positions: rotations, sinusoids and relative buckets."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Rotation(NamedTuple):
  """Cosines and sines [B, L, 1, H / 2], float32, of `rope`'s angles."""

  cos: jax.Array
  sin: jax.Array


class Scaling(NamedTuple):
  """Slows rotations down, for texts longer than those trained on before.

  Attributes:
    factor: how many times longer; 1 changes nothing.
    kind: 'linear' divides all frequencies (position interpolation, Chen et al.
      2023, arXiv 2306.15595). 'ntk' raises their base, so that the lowest is
      divided and the highest stays (NTK-aware, Peng et al. 2023, arXiv
      2309.00071, section 3.1). 'llama3' leaves frequencies that turn more than
      `high` times in `length`, divides those below `low` turns, and goes from
      one to the other by their turns (Llama 3.1; the ramp of YaRN, section
      3.2). 'yarn' goes by their number, as the code of its authors does, and
      makes cosines and sines larger, which sharpens attention (section 3.3).
    length: of those texts; of 'llama3' and 'yarn'.
    low, high: turns.
  """

  factor: float
  kind: str = 'linear'
  length: float | None = None
  low: float = 1.0
  high: float = 4.0


def scaling(
  factor: float,
  kind: str = 'linear',
  length: float | None = None,
  low: float = 1.0,
  high: float | None = None,
) -> Scaling:
  """Makes a `Scaling`; `high` None is 32 for 'yarn', as in its paper, or 4.

  Raises:
    ValueError: for values that do not fit together.
  """
  high = (32.0 if kind == 'yarn' else 4.0) if high is None else high
  made = Scaling(factor, kind, length, low, high)
  if kind not in ('linear', 'ntk', 'llama3', 'yarn'):
    raise ValueError(
      f'rope_scaling: kind={kind!r:.40} is not one of linear, ntk, llama3, yarn'
    )
  if (kind in ('llama3', 'yarn')) != (length is not None):
    raise ValueError(
      f"rope_scaling: kind={kind!r} and length={length}: 'llama3' and 'yarn' "
      'have a length, the others none'
    )
  if not (factor > 0 and 0 < low < high and (length is None or length > 0)):
    raise ValueError(
      f'rope_scaling: {made._asdict()}: factor and length must be above 0, and '
      'low above 0 and below high'
    )
  return made


def rotation(
  positions_BL: jax.Array,
  width: int,
  base: float,
  scaling: Scaling | None = None,
) -> Rotation:
  """Computes the angles of `rope`, once for all layers.

  Args:
    positions_BL: of each token in its document.
    width: features that are rotated, an even number.
    base: of the frequencies.
    scaling: of the frequencies.

  Reference: Su et al. 2021, arXiv 2104.09864, section 3.2.2.
  """
  half = width // 2
  if scaling is not None and scaling.kind == 'ntk':
    # Of two features the one frequency is 1, whatever the base.
    base *= scaling.factor ** (width / max(width - 2, 1))
  frequencies = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
  gain = 1.0
  if scaling is not None and scaling.kind != 'ntk':
    kept = _kept(frequencies, base, scaling)
    frequencies *= 1 + (1 - kept) * (1 / scaling.factor - 1)
    if scaling.kind == 'yarn':
      gain = 1 + 0.1 * math.log(max(scaling.factor, 1))
  # Float32: an angle of 10,000 radians in bfloat16 is off by whole turns.
  angles_BL1h = (
    positions_BL[..., None, None].astype(jnp.float32)
    * (frequencies[None, None, None, :])
  )
  return Rotation(gain * jnp.cos(angles_BL1h), gain * jnp.sin(angles_BL1h))


def _kept(frequencies, base, scaling):
  """Says how much each frequency stays as it is, from 0 to 1."""
  if scaling.length is None:
    return 0.0
  if scaling.kind == 'llama3':
    turns = frequencies * (scaling.length / (2 * math.pi))
    return jnp.clip((turns - scaling.low) / (scaling.high - scaling.low), 0, 1)
  half = len(frequencies)

  def number(turns):
    """Which frequency turns that often."""
    return half * math.log(scaling.length / (2 * math.pi * turns), base)

  first = max(math.floor(number(scaling.high)), 0)
  last = min(math.ceil(number(scaling.low)), 2 * half - 1)
  # Where both are one, all up to it stay.
  steps = max(last - first, 1e-3)
  return 1 - jnp.clip((jnp.arange(half) - first) / steps, 0, 1)


def rope(x_BLNH: jax.Array, rotation: Rotation) -> jax.Array:
  """Rotates pairs of features by an angle that grows with the position.

  Pairs feature h with h + H/2, as GPT-NeoX and Llama weights expect; the paper
  pairs neighbours, which is the same up to a permutation of features. Features
  that the rotation is too narrow for pass as they are (partial RoPE, Black et
  al. 2022, arXiv 2204.06745, section 2.1).
  """
  half = rotation.cos.shape[-1]
  a, b, rest = jnp.split(x_BLNH.astype(jnp.float32), (half, 2 * half), axis=-1)
  cos, sin = rotation
  return jnp.concatenate(
    [a * cos - b * sin, b * cos + a * sin, rest], axis=-1
  ).astype(x_BLNH.dtype)


def sinusoids(positions_BL: jax.Array, width: int) -> jax.Array:
  """Gives each position a vector: float32 [B, L, D].

  Sines fill the first half of the features and cosines the second; the paper
  puts them in turn, which is the same up to a permutation of features.

  Reference: Vaswani et al. 2017, arXiv 1706.03762, section 3.5.
  """
  half = width // 2
  rates = 10_000.0 ** (-np.arange(half, dtype=np.float32) / half)
  angles_BLh = positions_BL[..., None].astype(jnp.float32) * rates[None, None]
  return jnp.concatenate([jnp.sin(angles_BLh), jnp.cos(angles_BLh)], axis=-1)


def buckets(
  positions_BL: jax.Array,
  positions_BS: jax.Array,
  *,
  count: int,
  max_distance: int,
  bidirectional: bool,
) -> jax.Array:
  """Sorts pairs of positions into buckets by their distance: int32 [B, L, S].

  Half of the buckets hold one distance each, the others grow logarithmically
  up to `reach`; all that is farther shares the last. Looking both ways, the
  upper half of the buckets is for what lies to the right.

  Args:
    positions_BL: of the queries.
    positions_BS: of the keys.
    count: R, an even number.
    max_distance: distance from which on all is one bucket.
    bidirectional: False sees only what is left of the query; the rest is at 0.

  Reference: Raffel et al. 2020, arXiv 1910.10683, section 2.1.
  """
  distance_BLS = positions_BL[:, :, None] - positions_BS[:, None, :]
  offset_BLS = jnp.zeros_like(distance_BLS)
  if bidirectional:
    count //= 2
    offset_BLS = jnp.where(distance_BLS < 0, count, 0)
    distance_BLS = jnp.abs(distance_BLS)
  distance_BLS = jnp.maximum(distance_BLS, 0)
  exact = count // 2
  # On the host in double, so that no device rounds a border another way.
  far = np.arange(max_distance + 1)
  grown = np.log(np.maximum(far, exact) / exact) / np.log(max_distance / exact)
  table = np.where(
    far < exact, far, np.minimum(exact + grown * (count - exact), count - 1)
  ).astype(np.int32)
  return (
    offset_BLS + jnp.asarray(table)[jnp.minimum(distance_BLS, max_distance)]
  )
