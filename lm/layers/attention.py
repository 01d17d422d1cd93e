"""Attention as a mixer, of a text by itself and of another text.

Reference: Vaswani et al. 2017, arXiv 1706.03762, section 3.2.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp

from lm import config
from lm.layers import (
  attention_module,
  checks,
  kernels,
  linear,
  masks,
  parts,
  value_embeddings,
)
from lm.layers import (
  positions as positions_lib,
)

ROWS = (
  parts.Row(r'q$', ('embed', 'heads', None), 1, 2),
  parts.Row(r'[kv]$', ('embed', 'kv_heads', None), 1, 2),
  parts.Row(r'o$', ('heads', None, 'embed'), 2, 1),
  parts.Row(r'gate$', ('embed', 'heads', None), 1, 2),
  parts.Row(r'q_bias$', ('heads', None)),
  parts.Row(r'[kv]_bias$', ('kv_heads', None)),
  parts.Row(r'sink_bias$', ('heads',)),
)
GATES = ('none', 'head', 'element')


class Scores(NamedTuple):
  """How scores are computed; see `scores`."""

  scale: float | None
  softcap: float | None
  kernel: str
  sink: bool


def scores(
  *,
  scale: float | None = None,
  softcap: float | None = None,
  kernel: str = 'auto',
  sink: bool = False,
) -> Scores:
  """Describes how an attention computes its scores.

  Args:
    scale: multiplies them; None is 1 / sqrt(H).
    softcap: bounds them, see `dot_product.attend`; None is off.
    kernel: see `kernels.choose`. A cache, relative positions and another text
      are always read by 'einsum', whatever is chosen.
    sink: gives every head a learned score that takes part in its softmax and
      has no value, so that a head can look nowhere. It starts at 0.

  Raises:
    ValueError: for an unknown kernel, or a scale or softcap of 0.

  Reference: OpenAI 2025, arXiv 2508.10925, section 2.2 (sinks); Xiao et al.
    2023, arXiv 2309.17453, for what heads do without one.
  """
  checks.check_choices(kernel=(kernel, kernels.NAMES))
  checks.check_above_zero(scale=scale, softcap=softcap)
  return Scores(scale, softcap, kernel, sink)


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
  gate: str = 'none',
  value_embed: bool = False,
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
    gate: what the mixed values are multiplied by, between 0 and 1 and computed
      from the stream: a number for each 'head', one for each 'element' of it,
      or 'none'. Reference: Qiu et al. 2025, arXiv 2505.06708, section 3.
    value_embed: adds to the values a vector of the token itself, from a table
      that all blocks with such heads have in common; see `value_embeddings`.
    scores: spec of the function `scores`; None is its defaults.

  Raises:
    ValueError: for settings that do not fit together.
  """
  how = _scores(scores)
  checks.check_counts(window=1 if window is None else window)
  K = _kv_heads(heads, kv_heads)
  H = _head_width(shared.width, heads, head_width)
  places = None if positions is None else config.build(positions)
  relative = places if isinstance(places, positions_lib.Relative) else None
  rotary = places if isinstance(places, positions_lib.Rotary) else None
  if rotary is not None:
    rotary.features(H)  # checks it
  if relative is not None and value_embed:
    raise ValueError(
      'value_embed=True does not go with relative positions: use rotary ones'
    )

  def see(
    text: parts.Text, initializing: bool, common=None
  ) -> attention_module.Seen:
    kernel = 'einsum'
    if text.keys is None and relative is None:
      kernel = _kernel(how, text, H, shared.compute_dtype, initializing)
    seen = look(text, window, kernel, causal=not shared.bidirectional)
    return seen._replace(
      rotation=None if rotary is None else rotary.of(text.positions, H),
      bias_BNLS=None if relative is None else common,
      values_BSKH=common if value_embed else None,
    )

  def start(params, text: parts.Text, room: int):
    del params
    X = len(text.segments) * K
    return {
      'k': jnp.zeros((X, H, room), shared.dtype),
      'v': jnp.zeros((X, room, H), shared.dtype),
    }

  def flops(length: int) -> float:
    products = 2 * shared.width * (2 * H * (heads + K) + gate_width * heads)
    return products + 4 * length * heads * H

  gate_width = _gate_width(gate, H, shared.init.base_head_width)
  build = _builder(shared, heads, K, H, bias, how)
  norm = None if qk_norm is None else config.build(qk_norm)
  common = None
  if relative is not None:
    common = relative.common(heads, shared.bidirectional)
  elif value_embed:
    common = value_embeddings.common(shared, K, H)
  build = partial(build, qk_norm=norm, gate_width=gate_width)
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

  def see(text: parts.Text, initializing: bool) -> attention_module.Seen:
    del initializing
    if text.memory is None:
      raise ValueError('cross-attention needs a model with an encoder')
    return attention_module.Seen(
      masks.document_mask(text.segments, text.memory.segments),
      memory_BSD=text.memory.hidden,
    )

  def start(params, text: parts.Text, room: int):
    del room  # the memory does not grow
    assert text.memory is not None and text.memory.hidden is not None
    return attention_module.memory_cache(
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
) -> attention_module.Seen:
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
    return attention_module.Seen(mask=mask)
  first = 0 if text.first is None else text.first
  mask_B1LS = mask.materialize(keys, first)
  if text.keys is None:
    return attention_module.Seen(mask=mask.replace(whole_B1LS=mask_B1LS))
  return attention_module.Seen(mask_B1LS, first=text.first)


def _scores(spec: Mapping[str, Any] | None) -> Scores:
  return scores() if spec is None else config.build(spec)


def _gate_width(gate: str, H: int, base: int | None) -> int:
  """Counts the numbers of a head's gate; `base` is H of the model's base."""
  checks.check_choices(gate=(gate, GATES))
  if gate == 'head' and base not in (None, H):
    raise ValueError(
      "gate='head' has no width that grows with init.base_head_width: use "
      "gate='element'"
    )
  return {'none': 0, 'head': 1, 'element': H}[gate]


def _kernel(how: Scores, text: parts.Text, H, compute_dtype, initializing):
  """Chooses what mixes the values of a text that sees itself."""
  return kernels.choose(
    how.kernel,
    length=text.segments.shape[1],
    head_width=H,
    compute_dtype=linear.floating(compute_dtype),
    softcap=how.softcap,
    prefix=text.prefix is not None,
    sink=how.sink,
    initializing=initializing,
  )


def _kv_heads(heads: int, given: int | None) -> int:
  K = heads if given is None else given
  checks.check_counts(heads=heads, kv_heads=K)
  if heads % K:
    raise ValueError(f'heads={heads} is not a multiple of kv_heads={K}')
  return K


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
    attention_module.Attention,
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
    sink=how.sink,
  )
