"""The gated delta rule as a mixer: projections, a short convolution, gates.

Reference: Yang, Kautz and Hatamizadeh 2024, arXiv 2412.06464, section 3.4 and
figure 1. Letters beside those of `delta_rule`: W taps of the convolution, and
Z = 2 H + P, what it mixes of a head.
"""

from functools import partial
import math
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm.layers import checks, delta_rule, initializers, linear, norms, parts

# Added to a squared length: q and k of a row of zeros would be divided by 0.
_LEAST = 1e-6


class Seen(NamedTuple):
  """Holds all that layers need to know of a text; rows come first.

  Attributes:
    segments_BL, positions_BL: of the tokens, see `types.Batch`.
    fresh_B1: bool, whether a row's first token begins a document: it does not
      go on with what the cache holds.
  """

  segments_BL: jax.Array
  positions_BL: jax.Array
  fresh_B1: jax.Array


def make(
  *,
  shared: parts.Shared,
  heads: int,
  key_width: int | None = None,
  value_width: int | None = None,
  taps: int = 4,
  chunk: int = 64,
  epsilon: float = 1e-5,
) -> parts.Mixer:
  """Makes a gated delta rule.

  Args:
    shared: what the model's parts have in common.
    heads: N.
    key_width: H; None is the model's width / heads.
    value_width: P; None is H. The paper's is 2 H with H = 3/4 width / heads.
    taps: W, of the convolution; 1 mixes nothing.
    chunk: a power of two, of speed alone.
    epsilon: of the norm of what is read. At 1e-6 it blows up the rounding of
      heads that read nearly nothing.

  Raises:
    ValueError: for settings that do not fit together.
  """
  checks.check_counts(heads=heads, taps=taps)
  if shared.bidirectional:
    raise ValueError(
      'a delta rule sees nothing to its right: not in an encoder'
    )
  if chunk < 1 or chunk & (chunk - 1):
    raise ValueError(f'chunk={chunk} must be a power of two')
  if key_width is None and shared.width % heads:
    raise ValueError(
      f'width={shared.width} is not a multiple of heads={heads}: set key_width'
    )
  H = key_width or shared.width // heads
  P = value_width or H

  def see(text: parts.Text, initializing: bool):
    del initializing
    if text.prefix is not None:
      raise ValueError('a delta rule sees nothing to its right: no prefix')
    return look(text)

  def begin(params, text: parts.Text, room: int):
    del params, room  # the memory has one size, whatever the length
    return start(len(text.segments), heads, H, P, taps, shared.dtype)

  def flops(length: int) -> float:
    projections = 2 * shared.width * heads * (2 * H + 3 * P + 2)
    return projections + heads * rule_flops(length, H, P, chunk)

  build = partial(
    GatedDelta,
    heads=heads,
    key_width=H,
    value_width=P,
    taps=taps,
    chunk=chunk,
    epsilon=epsilon,
    kernel_init=shared.kernel(),
    output_init=shared.output(heads * P),
    dtype=shared.dtype,
    compute_dtype=shared.compute_dtype,
  )
  rows = (
    parts.Row(r'(q|k|v|gate)$', ('embed', 'heads', None), 1, 2),
    parts.Row(r'(beta|decay)$', ('embed', 'heads'), 1, 1),
    parts.Row(r'o$', ('heads', None, 'embed'), 2, 1),
    parts.Row(r'conv$', (None, 'heads', None)),
    parts.Row(r'(decay_scale|decay_bias)$', ('heads',)),
  )
  return parts.Mixer('delta', build, see, begin, rows, flops)


def rule_flops(length: int, H: int, P: int, chunk: int) -> float:
  """Counts the FLOPs of `delta_rule.chunked` a token and head, forwards.

  A multiply and an add for each term: the memory is read, corrected and written
  once (6 H P), tokens of a chunk meet each other, and decays and the inverse
  need products of [C, C].
  """
  C = min(chunk, 1 << (length - 1).bit_length())
  inverse = max(2 * C * C - 8, 0) / 3  # by halves, down to blocks of 2
  return 6 * H * P + 2 * C * (3 * H + 2 * P) + 2 * C * C + inverse


class GatedDelta(nn.Module):
  """Projections, a short convolution and gates around the rule.

  Attributes:
    heads: N.
    key_width, value_width: H, P.
    taps: W.
    chunk: tokens that are worked on at once, see `delta_rule.chunked`.
    epsilon: of the norm of what each head reads.
    kernel_init, output_init: of the projections and of the last one.
    dtype, compute_dtype: result and operand types of products.
  """

  heads: int
  key_width: int
  value_width: int
  taps: int
  chunk: int
  epsilon: float
  kernel_init: initializers.Initializer
  output_init: initializers.Initializer
  dtype: str
  compute_dtype: str

  @nn.compact
  def __call__(self, x_BLD, seen: Seen, cache):
    """Returns [B, L, D] and the cache; None keeps nothing.

    Of it `state` [B, N, H, P] is the rule's and `tail` [B, W - 1, N, Z] what
    the convolution still needs. Padding stands at the end of a call's rows.
    """
    B, N = len(x_BLD), self.heads
    H, P, W = self.key_width, self.value_width, self.taps
    old = cache
    if cache is None:
      old = start(B, N, H, P, W, self.dtype)
    widths = {'q': H, 'k': H, 'v': P}
    each = [self._project(x_BLD, name, N, x) for name, x in widths.items()]
    x_BLNZ = jnp.concatenate(each, axis=-1)
    conv_WNZ = self.param('conv', _conv_init(W), (W, N, 2 * H + P))
    q_BLNH, k_BLNH, v_BLNP = _mixed(x_BLNZ, conv_WNZ, old['tail'], seen, H)
    decay_BLN, beta_BLN = self._gates(x_BLD)
    # What a new document must not go on with.
    s_BNHP = jnp.where(seen.fresh_B1[..., None, None], 0, old['state'])
    o_BLNP, s_BNHP = delta_rule.chunked(
      q_BLNH,
      k_BLNH,
      v_BLNP,
      decay_BLN,
      beta_BLN,
      seen.segments_BL,
      s_BNHP,
      self.chunk,
    )
    o_BLNP = norms.RMSNorm(self.epsilon, name='norm')(o_BLNP)
    gate_BLNP = self._project(x_BLD, 'gate', N, P, dtype='float32')
    o_BLNP = (o_BLNP * jax.nn.silu(gate_BLNP)).astype(self.dtype)
    kernel_NPD = self.param('o', self.output_init, (N, P, x_BLD.shape[-1]))
    y_BLD = linear.contract(
      'BLNP,NPD->BLD', o_BLNP, kernel_NPD, self.compute_dtype, self.dtype
    )
    if cache is not None:
      tail_BWNZ = _tail(x_BLNZ, cache['tail'], seen)
      cache = {'state': s_BNHP, 'tail': tail_BWNZ}
    return y_BLD, cache

  def _project(self, x_BLD, name, *shape, dtype=None):
    D = x_BLD.shape[-1]
    # As one matrix, like attention's. F is N times a width here.
    kernel_DF = self.param(name, self.kernel_init, (D, *shape)).reshape(D, -1)
    y_BLF = linear.contract(
      'BLD,DF->BLF', x_BLD, kernel_DF, self.compute_dtype, dtype or self.dtype
    )
    return y_BLF.reshape(*y_BLF.shape[:2], *shape)

  def _gates(self, x_BLD):
    """Computes decay and beta of `delta_rule`, [B, L, N].

    decay = -exp(decay_scale) softplus(x W + decay_bias), as Mamba 2 has it:
    Dao and Gu 2024, arXiv 2405.21060.
    """
    # In float32: a decay is raised to the power of a text's length.
    project = partial(self._project, x_BLD, dtype='float32')
    rate_N = jnp.exp(self.param('decay_scale', _RATE_INIT, (self.heads,)))
    bias_N = self.param('decay_bias', _STEP_INIT, (self.heads,))
    step_BLN = jax.nn.softplus(
      project('decay', self.heads) + bias_N[None, None]
    )
    beta_BLN = jax.nn.sigmoid(project('beta', self.heads))
    return -rate_N[None, None] * step_BLN, beta_BLN


# It keeps its arguments, and not what is between: W arrays of their size.
@partial(jax.checkpoint, static_argnums=(4,))
def _mixed(x_BLNZ, conv_WNZ, tail_BWNZ, seen, H):
  """Mixes each feature with its last W - 1 values in the same document.

  Returns:
    q and k [B, L, N, H], of length H^-1/2 and 1, and v [B, L, N, P].
  """
  L, W = x_BLNZ.shape[1], len(conv_WNZ)
  whole_BLNZ = jnp.concatenate([tail_BWNZ, x_BLNZ], axis=1)
  # Float32: sums, and the lengths below.
  y_BLNZ = jnp.zeros(x_BLNZ.shape)
  for back in range(W):
    # Positions say it of the tail, whose document is the first token's;
    # segments of documents whose beginnings a window cuts off.
    past_BL = jnp.pad(seen.segments_BL, ((0, 0), (back, 0)), mode='edge')
    near_BL = (past_BL[:, :L] == seen.segments_BL) & (seen.positions_BL >= back)
    past_BLNZ = whole_BLNZ[:, W - 1 - back :][:, :L]
    past_BLNZ = jnp.where(near_BL[..., None, None], past_BLNZ, 0)
    y_BLNZ += past_BLNZ * conv_WNZ[back][None, None]
  y_BLNZ = jax.nn.silu(y_BLNZ)
  q_BLNH, k_BLNH, v_BLNP = jnp.split(y_BLNZ, (H, 2 * H), axis=-1)
  each = _unit(q_BLNH) * H**-0.5, _unit(k_BLNH), v_BLNP
  # The rule keeps them for its gradient: in the model's type.
  return tuple(y.astype(x_BLNZ.dtype) for y in each)


def _tail(x_BLNZ, tail_BWNZ, seen):
  """Returns the last W - 1 live inputs: prompts of a batch differ in length."""
  whole_BLNZ = jnp.concatenate([tail_BWNZ, x_BLNZ], axis=1)
  count_B1 = jnp.sum(seen.segments_BL > 0, axis=1, keepdims=True)
  slots_BW = count_B1 + jnp.arange(tail_BWNZ.shape[1])[None]
  return jnp.take_along_axis(whole_BLNZ, slots_BW[..., None, None], axis=1)


def _unit(x):
  square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
  return x * jax.lax.rsqrt(square + _LEAST)


def start(B, N, H, P, W, dtype) -> dict[str, jax.Array]:
  """Makes the cache before the first token: zeros."""
  return {
    # Float32 whatever the dtype: it is a sum along the whole text.
    'state': jnp.zeros((B, N, H, P)),
    'tail': jnp.zeros((B, W - 1, N, 2 * H + P), dtype),
  }


def look(text: parts.Text) -> Seen:
  """Finds what all layers read of a text."""
  live_BL = text.segments > 0
  # A row of padding alone begins nothing, whatever its position.
  first_B1 = jnp.argmax(live_BL, axis=1, keepdims=True)
  position_B1 = jnp.take_along_axis(text.positions, first_B1, axis=1)
  fresh_B1 = jnp.any(live_BL, axis=1, keepdims=True) & (position_B1 == 0)
  return Seen(text.segments, text.positions, fresh_B1)


def _conv_init(taps: int) -> initializers.Initializer:
  """Returns PyTorch's, of as many inputs."""
  return initializers.uniform(-(taps**-0.5), taps**-0.5)


def _undo_softplus(step):
  return step + np.log(-np.expm1(-step))


# Mamba 2's: rates from 1 to 16, by their logarithm.
_RATE_INIT = initializers.uniform(1, 16, np.log)
# Mamba's: steps from 1e-3 to 1e-1, even in their logarithm.
_STEP_INIT = initializers.uniform(
  math.log(1e-3), math.log(1e-1), lambda x: _undo_softplus(np.exp(x))
)
