"""Positions in a text: rotations (RoPE), sinusoids and relative buckets.

h numbers pairs of features: half of the features that are rotated.
"""

from collections.abc import Mapping, Sequence
from functools import partial
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm.layers import parts
from lm.layers import relative as relative_lib


class Rotation(NamedTuple):
  """Cosines and sines of the angles that `rope` uses.

  Attributes:
    cos, sin: float32 [B, L, 1, h].
  """

  cos: jax.Array
  sin: jax.Array


class Scaling(NamedTuple):
  """Slows rotations down, for texts longer than those trained on before.

  Attributes:
    factor: how many times longer the texts are; 1 changes nothing.
    kind: how frequencies change.
      'linear' divides all of them by `factor` (position interpolation, Chen et
        al. 2023, arXiv 2306.15595).
      'ntk' raises their base, so that the lowest frequency is divided by
        `factor` and the highest stays (NTK-aware scaling, Peng et al. 2023,
        arXiv 2309.00071, section 3.1).
      'llama3' keeps frequencies that turn more than `high` times in `length`,
        divides those that turn less than `low` times, and interpolates between
        the two by the number of turns (Llama 3.1; the ramp of YaRN, section
        3.2).
      'yarn' interpolates by the index of the frequency, as its authors' code
        does. It also makes cosines and sines larger, which sharpens attention
        (section 3.3).
      'factors' divides each frequency by a number of its own too.
    length: tokens of the texts trained on before, for 'llama3' and 'yarn'.
    low, high: numbers of turns in `length`.
    factors: of 'factors', the highest frequency first.
  """

  factor: float
  kind: str = 'linear'
  length: float | None = None
  low: float = 1.0
  high: float = 4.0
  factors: tuple[float, ...] | None = None


def make_scaling(
  factor: float,
  kind: str = 'linear',
  length: float | None = None,
  low: float = 1.0,
  high: float | None = None,
  factors: Sequence[float] | None = None,
) -> Scaling:
  """Makes a checked `Scaling` from what a config says.

  Args:
    factor, kind, length, low, factors: see `Scaling`.
    high: None is 32 for 'yarn', as in its paper, and 4 otherwise.

  Raises:
    ValueError: the values do not fit together.
  """
  high = (32.0 if kind == 'yarn' else 4.0) if high is None else high
  own = None if factors is None else tuple(factors)
  result = Scaling(factor, kind, length, low, high, own)
  if kind not in ('linear', 'ntk', 'llama3', 'yarn', 'factors'):
    raise ValueError(
      f'scaling: kind={kind!r:.40} is not one of linear, ntk, llama3, yarn, '
      'factors'
    )
  if (kind == 'factors') != (own is not None) or not all(
    isinstance(x, int | float) and 0 < x < math.inf for x in own or ()
  ):
    raise ValueError(
      "scaling: kind='factors', and no other, has factors, all above 0"
    )
  if (kind in ('llama3', 'yarn')) != (length is not None):
    raise ValueError(
      f"scaling: kind={kind!r} and length={length}: 'llama3' and 'yarn' "
      'have a length, the others none'
    )
  if not (factor > 0 and 0 < low < high and (length is None or length > 0)):
    raise ValueError(
      f'scaling: {result._asdict()}: factor and length must be above 0, '
      'and low above 0 and below high'
    )
  return result


class Rotary(NamedTuple):
  """Rotations of queries and keys; see `rotary`."""

  base: float
  fraction: float
  scaling: Scaling | None

  def features(self, head_width: int) -> int:
    """Counts the features of a head that are rotated.

    Raises:
      ValueError: they are no pairs.
    """
    rotated = round(head_width * self.fraction)
    if rotated % 2 or not 0 < rotated <= head_width:
      raise ValueError(
        f'head_width={head_width} * fraction={self.fraction} must be even, '
        'above 0 and at most head_width for rotary positions'
      )
    return rotated

  def of(self, positions_BL: jax.Array, head_width: int) -> Rotation:
    """Computes the angles of a text, once for all layers."""
    rotated = self.features(head_width)
    return rotation(positions_BL, rotated, self.base, self.scaling)


def rotary(
  *,
  base: float = 10_000.0,
  fraction: float = 1.0,
  scaling: Mapping[str, Any] | None = None,
) -> Rotary:
  """Describes rotary positions of an attention.

  Args:
    base: of the frequencies, see `rotation`.
    fraction: share of a head's features that is rotated.
    scaling: arguments of `make_scaling`; None leaves the frequencies.

  Raises:
    ValueError: for values that do not fit together.
  """
  if not base > 0:
    raise ValueError(f'base={base} must be above 0')
  if scaling is None:
    return Rotary(base, fraction, None)
  unknown = scaling.keys() - set(Scaling._fields)
  if unknown or 'factor' not in scaling:
    raise ValueError(
      f'scaling={dict(scaling)} must have a factor, and else only kind, '
      'length, low, high and factors'
    )
  return Rotary(base, fraction, make_scaling(**scaling))


class Relative(NamedTuple):
  """A bias of scores for each bucket of distances; see `relative`."""

  buckets: int
  max_distance: int

  def common(self, heads: int, bidirectional: bool) -> parts.Common:
    """Describes the module that all layers share."""
    build = partial(
      relative_lib.RelativeBias,
      buckets=self.buckets,
      max_distance=self.max_distance,
      heads=heads,
      bidirectional=bidirectional,
    )
    rows = (parts.Row(r'table$', (None, 'heads')),)
    return parts.Common('relative', build, rows)


def relative(*, buckets: int = 32, max_distance: int = 128) -> Relative:
  """Describes T5's relative positions of an attention: one bias for all layers.

  Args:
    buckets: how many distances are told apart, a multiple of 4.
    max_distance: positions; from this distance on all is one bucket.

  Raises:
    ValueError: for values that do not fit together.
  """
  if buckets < 4 or buckets % 4:
    raise ValueError(f'buckets={buckets} must be a multiple of 4')
  if max_distance <= buckets // 2:
    raise ValueError(
      f'max_distance={max_distance} must be above buckets / 2 = {buckets // 2}'
    )
  return Relative(buckets, max_distance)


def rotation(
  positions_BL: jax.Array,
  width: int,
  base: float,
  scaling: Scaling | None = None,
) -> Rotation:
  """Computes the angles of `rope`, once for all layers.

  Args:
    positions_BL: position of each token in its document.
    width: how many features are rotated, an even number.
    base: the frequencies are base^(-h / half) radians a token.
    scaling: None leaves the frequencies as they are.

  Reference: Su et al. 2021, arXiv 2104.09864, section 3.2.2.
  """
  half = width // 2
  if scaling is not None and scaling.kind == 'ntk':
    # So that base^(-(width - 2) / width), the lowest frequency, is divided by
    # exactly `factor`. Two features have one frequency, which is always 1.
    base *= scaling.factor ** (width / max(width - 2, 1))
  frequencies = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
  gain = 1.0
  if scaling is not None and scaling.kind != 'ntk':
    kept = _kept(frequencies, base, scaling)
    if scaling.factors is not None:
      if len(scaling.factors) != half:
        raise ValueError(
          f'scaling: {len(scaling.factors)} factors, and there are {half} '
          'frequencies'
        )
      frequencies /= jnp.array(scaling.factors, jnp.float32)
    # Interpolates between 1 (kept) and 1 / factor.
    frequencies *= 1 + (1 - kept) * (1 / scaling.factor - 1)
    if scaling.kind == 'yarn':
      # On the cosines and sines of queries and keys alike, so that scores grow
      # by its square: 1 / temperature in the paper.
      gain = 1 + 0.1 * math.log(max(scaling.factor, 1))
  # Float32: an angle of 10,000 radians in bfloat16 is off by whole turns.
  angles_BL1h = (
    positions_BL[..., None, None].astype(jnp.float32)
    * (frequencies[None, None, None, :])
  )
  return Rotation(gain * jnp.cos(angles_BL1h), gain * jnp.sin(angles_BL1h))


def _kept(frequencies, base, scaling):
  """Returns how far each frequency stays as it is, from 0 to 1: [h]."""
  if scaling.length is None:
    return 0.0
  if scaling.kind == 'llama3':
    turns = frequencies * (scaling.length / (2 * math.pi))
    return jnp.clip((turns - scaling.low) / (scaling.high - scaling.low), 0, 1)
  half = len(frequencies)

  def number(turns):
    """Returns the index of the frequency that turns that often."""
    return half * math.log(scaling.length / (2 * math.pi * turns), base)

  first = max(math.floor(number(scaling.high)), 0)
  last = min(math.ceil(number(scaling.low)), 2 * half - 1)
  # Where both are the same, all frequencies up to that one stay.
  steps = max(last - first, 1e-3)
  return 1 - jnp.clip((jnp.arange(half) - first) / steps, 0, 1)


def rope(x_BLNH: jax.Array, rotation: Rotation) -> jax.Array:
  """Rotates pairs of features by an angle that grows with the position.

  The product of a query and a key then depends on the distance between them,
  not on where they are. Features beyond the width of the rotation stay as they
  are (partial RoPE, Black et al. 2022, arXiv 2204.06745, section 2.1).

  Feature h is paired with h + half, as the weights of GPT-NeoX and Llama
  expect. The paper pairs neighbours, which is the same up to a permutation.
  """
  # A pair (a, b) is the complex number a + ib, times cos + i sin. In float32,
  # since bfloat16 cosines would move tokens by whole positions.
  half = rotation.cos.shape[-1]
  a, b, rest = jnp.split(x_BLNH.astype(jnp.float32), (half, 2 * half), axis=-1)
  cos, sin = rotation
  return jnp.concatenate(
    [a * cos - b * sin, b * cos + a * sin, rest], axis=-1
  ).astype(x_BLNH.dtype)


def sinusoids(positions_BL: jax.Array, width: int) -> jax.Array:
  """Encodes each position as a vector of sines and cosines: float32 [B, L, D].

  Sines fill the first half of the features and cosines the second. The paper
  alternates them, which is the same up to a permutation.

  Reference: Vaswani et al. 2017, arXiv 1706.03762, section 3.5.
  """
  half = width // 2
  rates = 10_000.0 ** (-np.arange(half, dtype=np.float32) / half)
  angles_BLh = positions_BL[..., None].astype(jnp.float32) * rates[None, None]
  return jnp.concatenate([jnp.sin(angles_BLh), jnp.cos(angles_BLh)], axis=-1)
