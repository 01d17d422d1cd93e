"""Attention as a mixer, of a text by itself and of another text.

Reference: Vaswani et al. 2017, arXiv 1706.03762, section 3.2.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from lm import config
from lm.layers import (
  checks,
  dot_product,
  initializers,
  kernels,
  linear,
  masks,
  parts,
)
from lm.layers import (
  positions as positions_lib,
)

ROWS = (
  parts.Row(r'q$', ('embed', 'heads', None), 1, 2),
  parts.Row(r'[kv]$', ('embed', 'kv_heads', None), 1, 2),
  parts.Row(r'o$', ('heads', None, 'embed'), 2, 1),
  parts.Row(r'q_bias$', ('heads', None)),
  parts.Row(r'[kv]_bias$', ('kv_heads', None)),
)


class Scores(NamedTuple):
  """How scores are computed; see `scores`."""

  scale: float | None
  softcap: float | None
  kernel: str


def scores(
  *,
  scale: float | None = None,
  softcap: float | None = None,
  kernel: str = 'auto',
) -> Scores:
  """Describes how an attention computes its scores.

  Args:
    scale: multiplies them; None is 1 / sqrt(H).
    softcap: bounds them, see `dot_product.attend`; None is off.
    kernel: see `kernels.choose`. A cache, relative positions and another text
      are always read by 'einsum', whatever is chosen.

  Raises:
    ValueError: for an unknown kernel, or a scale or softcap of 0.
  """
  checks.check_choices(kernel=(kernel, kernels.NAMES))
  checks.check_above_zero(scale=scale, softcap=softcap)
  return Scores(scale, softcap, kernel)


class Seen(NamedTuple):
  """Holds all that the layers of one kind of attention need to know of a text.

  Attributes:
    mask_B1LS: bool, True where a query may look; None where `mask` says it.
    mask: of a text that sees itself alone; None for a cache and another text.
    rotation: of queries and keys; None has none.
    bias_BNLS: added to the scores, float32 [B or 1, N, L, S]; None has none.
    first: the slot of the cache that the first query is written to.
    memory_BSD: the text that a cross-attention reads; None where a cache holds
      its keys and values.
  """

  mask_B1LS: jax.Array | None = None
  mask: masks.AttentionMask | None = None
  rotation: positions_lib.Rotation | None = None
  bias_BNLS: jax.Array | None = None
  first: jax.Array | None = None
  memory_BSD: jax.Array | None = None


def make(
  *,
  shared: parts.Shared,
  heads: int,
  kv_heads: int | None = None,
  head_width: int | None = None,
  bias: bool = False,
  window: int | None = None,
  positions: Mapping[str, Any] | None = None,
  qk_norm: Mapping[str, Any] | None = None,
  scores: Mapping[str, Any] | None = None,
) -> parts.Mixer:
  """Makes an attention of a text by itself.

  Args:
    shared: what the model's parts have in common.
    heads: N.
    kv_heads: K, divides N; None is N (multi-head attention).
    head_width: H; None is D / N.
    bias: adds biases to the four projections.
    window: positions that are seen, see `masks.window_mask`; None sees all.
    positions: spec of `positions.rotary` or `positions.relative`; None has no
      positions here.
    qk_norm: spec of the norm of queries and keys; None has none.
    scores: spec of the function `scores`; None is its defaults.

  Raises:
    ValueError: for settings that do not fit together.
  """
  how = _scores(scores)
  K = heads if kv_heads is None else kv_heads
  checks.check_counts(
    heads=heads, kv_heads=K, window=1 if window is None else window
  )
  if heads % K:
    raise ValueError(f'heads={heads} is not a multiple of kv_heads={K}')
  H = _head_width(shared.width, heads, head_width)
  places = None if positions is None else config.build(positions)
  relative = places if isinstance(places, positions_lib.Relative) else None
  rotary = places if isinstance(places, positions_lib.Rotary) else None
  if rotary is not None:
    rotary.features(H)  # checks it

  def see(text: parts.Text, initializing: bool, bias_BNLS=None) -> Seen:
    kernel = 'einsum'
    if text.keys is None and relative is None:
      kernel = kernels.choose(
        how.kernel,
        length=text.segments.shape[1],
        head_width=H,
        compute_dtype=linear.floating(shared.compute_dtype),
        softcap=how.softcap,
        prefix=text.prefix is not None,
        initializing=initializing,
      )
    seen = look(text, window, kernel, causal=not shared.bidirectional)
    return seen._replace(
      rotation=None if rotary is None else rotary.of(text.positions, H),
      bias_BNLS=bias_BNLS,
    )

  def start(params, text: parts.Text, room: int):
    del params
    X = len(text.segments) * K
    return {
      'k': jnp.zeros((X, H, room), shared.dtype),
      'v': jnp.zeros((X, room, H), shared.dtype),
    }

  def flops(length: int) -> float:
    products = 2 * shared.width * H * (2 * heads + 2 * K)
    return products + 4 * length * heads * H

  build = _builder(shared, heads, K, H, bias, how)
  norm = None if qk_norm is None else config.build(qk_norm)
  common = None
  if relative is not None:
    common = relative.common(heads, shared.bidirectional)
  build = partial(build, qk_norm=norm)
  return parts.Mixer('attention', build, see, start, ROWS, flops, common)


def cross(
  *,
  shared: parts.Shared,
  heads: int,
  head_width: int | None = None,
  bias: bool = False,
  scores: Mapping[str, Any] | None = None,
) -> parts.Mixer:
  """Makes an attention of a text to the one that an encoder has read.

  A document reads the part of the other text that has its number. Attention is
  by whole masks, the 'einsum' of `kernels.choose`.

  Args:
    shared, heads, head_width, bias, scores: the same as in `make`.

  Raises:
    ValueError: for settings that do not fit together.
  """
  how = _scores(scores)
  checks.check_counts(heads=heads)
  H = _head_width(shared.width, heads, head_width)

  def see(text: parts.Text, initializing: bool) -> Seen:
    del initializing
    if text.memory is None:
      raise ValueError('cross-attention needs a model with an encoder')
    return Seen(
      masks.document_mask(text.segments, text.memory.segments),
      memory_BSD=text.memory.hidden,
    )

  def start(params, text: parts.Text, room: int):
    del room  # the memory does not grow
    assert text.memory is not None and text.memory.hidden is not None
    return memory_cache(
      params, text.memory.hidden, shared.compute_dtype, shared.dtype
    )

  def flops(length: int) -> float:
    # Of a memory as long as the text, whose keys and values count with it.
    return 8 * shared.width * H * heads + 4 * length * heads * H

  build = partial(_builder(shared, heads, heads, H, bias, how), cross=True)
  # Optimizers see no hidden matrices here: T5's runs were made so.
  rows = tuple(row._replace(hidden=False) for row in ROWS)
  return parts.Mixer('cross', build, see, start, rows, flops)


def look(
  text: parts.Text, window: int | None, kernel: str, *, causal: bool
) -> Seen:
  """Makes what the layers see of a text, with a mask unless a kernel has none.

  Args:
    text: with the keys of a cache, if there is one.
    window: positions that are seen; None sees all.
    kernel: see `kernels.choose`.
    causal: whether a token sees only itself and what stands to its left.
  """
  mask, keys = (
    masks.AttentionMask(
      tokens.segments,
      None if window is None else tokens.positions,
      tokens.prefix,
      causal=causal,
      window=window,
      kernel=kernel,
    )
    for tokens in (text, text.keys or text)
  )
  if kernel != 'einsum':
    return Seen(mask=mask)
  first = 0 if text.first is None else text.first
  mask_B1LS = mask.materialize(keys, first)
  if text.keys is None:
    return Seen(mask=mask.replace(whole_B1LS=mask_B1LS))
  return Seen(mask_B1LS, first=text.first)


def _scores(spec: Mapping[str, Any] | None) -> Scores:
  return scores() if spec is None else config.build(spec)


def _head_width(width: int, heads: int, given: int | None) -> int:
  if given is None and width % heads:
    raise ValueError(
      f'width={width} is not a multiple of heads={heads}: set head_width'
    )
  H = width // heads if given is None else given
  checks.check_counts(head_width=H)
  return H


def _builder(
  shared: parts.Shared,
  heads: int,
  kv_heads: int,
  H: int,
  bias: bool,
  how: Scores,
):
  base, scale = shared.init.base_head_width or H, how.scale
  # With a scale q starts smaller or larger, so that scores start as without.
  gain = 1.0 if scale is None else base**-0.5 / scale
  if base != H:  # 1 / H, not 1 / sqrt(H): trained queries and keys agree
    scale = (base**-0.5 if scale is None else scale) * base / H
  return partial(
    Attention,
    heads=heads,
    kv_heads=kv_heads,
    head_width=H,
    bias=bias,
    query_init=shared.kernel(gain),
    kernel_init=shared.kernel(),
    output_init=shared.output(heads * H),
    dtype=shared.dtype,
    compute_dtype=shared.compute_dtype,
    scale=scale,
    softcap=how.softcap,
  )


class Attention(nn.Module):
  """Projections, positions, QK-norm and a cache around the mixing of values.

  Attributes:
    heads: N.
    kv_heads: K, which divides N.
    head_width: H.
    bias: adds biases to the four projections.
    query_init, kernel_init, output_init: of q, of k and v, and of the output
      projection.
    dtype, compute_dtype: result and operand types of products.
    qk_norm: builds the norm of queries and keys per head before rotation, given
      `name`; None has none. Reference: Dehghani et al. 2023, arXiv 2302.05442,
      section 2.1.
    scale, softcap: see `dot_product.attend`.
    cross: reads keys and values in `Seen.memory_BSD`, not in the stream.
  """

  heads: int
  kv_heads: int
  head_width: int
  bias: bool
  query_init: initializers.Initializer
  kernel_init: initializers.Initializer
  output_init: initializers.Initializer
  dtype: str
  compute_dtype: str
  qk_norm: Callable[..., nn.Module] | None = None
  scale: float | None = None
  softcap: float | None = None
  cross: bool = False

  @nn.compact
  def __call__(self, x_BLD, seen: Seen, cache):
    """Returns [B, L, D] and the cache with this call's keys and values.

    `cache` is None, or `k` [X, H, S] and `v` [X, S, H] of
    `dot_product.attend_cache`, where the first of the L positions is written to
    the slot `seen.first`. The memory's keys and values do not change, so a
    cross-attention's cache is what `memory_cache` makes.
    """
    D, N, K, H = x_BLD.shape[-1], self.heads, self.kv_heads, self.head_width

    def project(name, x_BLD, heads):
      init = self.query_init if name == 'q' else self.kernel_init
      kernel_DNH = self.param(name, init, (D, heads, H))
      bias_NH = None
      if self.bias:
        bias_NH = self.param(f'{name}_bias', initializers.ZEROS, (heads, H))
      return _project(
        x_BLD, kernel_DNH, bias_NH, self.compute_dtype, self.dtype
      )

    q_BLNH = project('q', x_BLD, N)
    if self.qk_norm is not None:
      q_BLNH = self.qk_norm(name='q_norm')(q_BLNH)
    if seen.rotation is not None:
      q_BLNH = positions_lib.rope(q_BLNH, seen.rotation)
    k_BKSH = v_BKSH = None
    if not self.cross or cache is None:
      y_BSD = seen.memory_BSD if self.cross else x_BLD
      k_BSKH, v_BSKH = project('k', y_BSD, K), project('v', y_BSD, K)
      if self.qk_norm is not None:
        k_BSKH = self.qk_norm(name='k_norm')(k_BSKH)
      if seen.rotation is not None:
        k_BSKH = positions_lib.rope(k_BSKH, seen.rotation)
      k_BKSH, v_BKSH = (jnp.einsum('BSKH->BKSH', x) for x in (k_BSKH, v_BSKH))
    y_BLNH, cache = self._mix(q_BLNH, k_BKSH, v_BKSH, seen, cache)
    kernel_NHD = self.param('o', self.output_init, (N, H, D))
    out_BLD = linear.contract(
      'BLNH,NHD->BLD', y_BLNH, kernel_NHD, self.compute_dtype, self.dtype
    )
    if self.bias:
      bias_D = self.param('o_bias', initializers.ZEROS, (D,))
      out_BLD += bias_D.astype(self.dtype)[None, None]
    return out_BLD, cache

  @nn.nowrap
  def _mix(self, q_BLNH, k_BKSH, v_BKSH, seen: Seen, cache):
    """Mixes values: [B, L, N, H] and the new cache."""
    settings = {
      'scale': self.scale,
      'softcap': self.softcap,
      'compute_dtype': linear.floating(self.compute_dtype),
    }
    if seen.mask is not None and seen.mask.whole_B1LS is None:
      assert cache is None and seen.bias_BNLS is None
      mixed_BLNH = dot_product.attend_unmasked(
        q_BLNH, k_BKSH, v_BKSH, seen.mask, **settings
      )
      return mixed_BLNH, None
    settings['bias_BNLS'] = seen.bias_BNLS
    if cache is None:
      mask = seen.mask_B1LS if seen.mask is None else seen.mask
      assert mask is not None
      mixed_BLNH = dot_product.attend(q_BLNH, k_BKSH, v_BKSH, mask, **settings)
      return mixed_BLNH, None
    assert seen.mask_B1LS is not None
    if not self.cross:
      cache = _write(cache, k_BKSH, v_BKSH, seen.first)
    mixed_BLNH = dot_product.attend_cache(
      q_BLNH, cache['k'], cache['v'], seen.mask_B1LS, **settings
    )
    return mixed_BLNH, cache


def memory_cache(
  params: dict[str, jax.Array],
  memory_BSD: jax.Array,
  compute_dtype: str,
  dtype: str,
) -> dict[str, jax.Array]:
  """Makes the cache of a cross-attention: keys and values of the memory.

  Args:
    params: of an `Attention` without QK-norm.
    memory_BSD: the encoder's output.
    compute_dtype, dtype: those of the module.
  """
  k_BSKH, v_BSKH = (
    _project(
      memory_BSD, params[name], params.get(f'{name}_bias'), compute_dtype, dtype
    )
    for name in 'kv'
  )
  B, S, K, H = k_BSKH.shape
  return {
    'k': jnp.einsum('BSKH->BKHS', k_BSKH).reshape(B * K, H, S),
    'v': jnp.einsum('BSKH->BKSH', v_BSKH).reshape(B * K, S, H),
  }


def _write(cache, k_BKLH, v_BKLH, first):
  B, K, L, H = k_BKLH.shape
  k_XHL = jnp.einsum('BKLH->BKHL', k_BKLH).reshape(B * K, H, L)
  v_XLH = v_BKLH.reshape(B * K, L, H)
  return {
    'k': jax.lax.dynamic_update_slice(cache['k'], k_XHL, (0, 0, first)),
    'v': jax.lax.dynamic_update_slice(cache['v'], v_XLH, (0, first, 0)),
  }


def _project(x_BLD, kernel_DNH, bias_NH, compute_dtype, dtype):
  # As one matrix: a GPU adds the bias while it writes the product.
  D, N, H = kernel_DNH.shape
  y_BLF = linear.contract(
    'BLD,DF->BLF', x_BLD, kernel_DNH.reshape(D, N * H), compute_dtype, dtype
  )
  if bias_NH is not None:
    y_BLF += bias_NH.astype(dtype).reshape(1, 1, N * H)
  return y_BLF.reshape(*y_BLF.shape[:2], N, H)
