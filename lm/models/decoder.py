"""The decoder: GPT-2, Llama and what lies between, as settings of one model.

Reference: Radford et al. 2019 (GPT-2); Touvron et al. 2023, arXiv 2302.13971
(Llama: RMSNorm, RoPE, SwiGLU); Gemma 3, arXiv 2503.19786 (windows, norms before
and after); Yang et al. 2025, arXiv 2505.09388 (Qwen3: QK-norm).
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from lm import config, sharding, types
from lm.layers import (
  attention,
  blocks,
  kernels,
  linear,
  masks,
  norms,
  positions,
  stack,
  vocabulary,
)
from lm.layers import (
  experts as experts_lib,
)
from lm.models import linen, settings

AXES = (
  (r'embed/table$', ('vocab', 'embed')),
  (r'embed/positions$', (None, 'embed')),
  *blocks.AXES,
  *experts_lib.AXES,
  (r'head/kernel$', ('embed', 'vocab')),
  # Vectors as wide as the stream: cheap to hold whole, read by every device.
  (r'(scale|bias)$', (None,)),
)


def make(
  *,
  vocab: int,
  length: int,
  width: int,
  depth: int,
  heads: int,
  kv_heads: int | None = None,
  head_width: int | None = None,
  mlp: int | None = None,
  experts: Mapping[str, Any] | None = None,
  dense_layers: int = 0,
  norm: str = 'layernorm',
  norm_epsilon: float | None = None,
  norm_offset: float = 0.0,
  norm_order: str = 'pre',
  positions: str = 'learned',
  rope_base: float = 10_000.0,
  rope_share: float = 1.0,
  rope_scaling: Mapping[str, Any] | None = None,
  window: int | None = None,
  window_rope_base: float | None = None,
  global_every: int | None = None,
  embed_scale: float = 1.0,
  activation: str = 'gelu',
  bias: bool = True,
  qk_norm: bool = False,
  attention_scale: float | None = None,
  attention_softcap: float | None = None,
  attention_kernel: str = 'auto',
  logit_softcap: float | None = None,
  tied: bool = True,
  dropout: float = 0.0,
  kernel_std: float | None = 0.02,
  zero_outputs: bool = False,
  scan: bool = False,
  remat: str = 'none',
  dtype: str = 'float32',
  compute_dtype: str = 'float32',
) -> types.Model:
  """Makes a decoder-only language model.

  Parameters are float32. A batch with a `prefix` is read as by a prefix LM.

  Args:
    vocab: V.
    length: longest sequence; the size of the table of learned positions.
    width: D.
    depth: number of blocks.
    heads: N.
    kv_heads: K, divides N; None is N (multi-head attention).
    head_width: H; None is D / N.
    mlp: F; None is 4 D.
    experts: spec of what a block has instead of one mlp, such as `moe.make`;
      None has none.
    dense_layers: first blocks that keep the mlp all the same.
    norm, norm_epsilon, norm_offset: see `norms.make`.
    norm_order: 'pre', 'post' or 'both', see `blocks.Block`.
    positions: 'learned' or 'rope'.
    rope_base: base of the rotary frequencies.
    rope_share: of the head's features that are rotated.
    rope_scaling: arguments of `positions.scaling`, for layers without a window;
      None leaves the frequencies as they are.
    window: positions that a layer sees, see `masks.window_mask`; None sees
      all.
    window_rope_base: base in layers with a window; None is `rope_base`.
    global_every: every n-th layer sees all, whatever `window`; None has no such
      layer.
    embed_scale: multiplies the embeddings (Gemma: the square root of D).
    activation: one of `blocks.ACTIVATIONS`.
    bias: biases in projections and layer norms.
    qk_norm: RMSNorm on queries and keys.
    attention_scale: of scores; None is 1 / sqrt(H).
    attention_softcap: bound on attention scores; None is off.
    attention_kernel: see `kernels.choose`; a cache is read by 'einsum' alone.
    logit_softcap: bound on logits; None is off.
    tied: the output layer is the embedding table.
    dropout: rate on embeddings and residual branches (not on attention weights,
      unlike GPT-2).
    kernel_std: deviation of initial kernels; None is 1 / sqrt(inputs).
    zero_outputs: output projections start at 0; otherwise scaled by
      1 / sqrt(2 depth) as in GPT-2.
    scan, remat: see `layers.stack`.
    dtype: type of activations.
    compute_dtype: type that matrix products read, see `linear.contract`. On CPU
      `compute_dtype='bfloat16'` with `dtype='float32'` is fastest; on accelerators
      use bfloat16 for both. 'int8' and 'fp8' are for those that multiply them
      faster, and need qwix.

  Raises:
    ValueError: for settings that do not fit together.
  """
  settings.check_choices(
    norm_order=(norm_order, blocks.ORDERS),
    positions=(positions, ('learned', 'rope')),
    activation=(activation, blocks.ACTIVATIONS),
    attention_kernel=(attention_kernel, kernels.NAMES),
    dtype=(dtype, settings.DTYPES),
  )
  linear.check(compute_dtype)
  settings.check_counts(
    vocab=vocab,
    length=length,
    width=width,
    depth=depth,
    heads=heads,
    window=1 if window is None else window,
    global_every=1 if global_every is None else global_every,
  )
  kv_heads = kv_heads or heads
  if heads % kv_heads:
    raise ValueError(f'heads={heads} is not a multiple of kv_heads={kv_heads}')
  head_width = settings.head_width(width, heads, head_width)
  rotated = round(head_width * rope_share)
  if positions == 'rope' and (rotated % 2 or not 0 < rotated <= head_width):
    raise ValueError(
      f'head_width={head_width} * rope_share={rope_share} must be even, above '
      '0 and at most head_width for rope'
    )
  settings.check_rates(dropout=dropout)
  settings.check_remat(remat)
  if experts is not None and bias:
    raise ValueError('experts have no biases: set bias=False')
  if not 0 <= dense_layers < depth or (dense_layers and experts is None):
    raise ValueError(
      f'dense_layers={dense_layers} must be below depth={depth}, and 0 without '
      'experts'
    )
  if dense_layers and scan:
    raise ValueError(
      f'dense_layers={dense_layers} differ from the others, and scanned layers '
      'are all alike: set scan=False'
    )
  local = [
    window is not None and not (global_every and (i + 1) % global_every == 0)
    for i in range(depth)
  ]
  module = Decoder(
    vocab=vocab,
    length=length if positions == 'learned' else None,
    width=width,
    depth=depth,
    heads=heads,
    kv_heads=kv_heads,
    head_width=head_width,
    mlp=mlp or 4 * width,
    experts=None if experts is None else config.build(experts),
    dense_layers=dense_layers,
    norm=norms.make(norm, epsilon=norm_epsilon, offset=norm_offset, bias=bias),
    norm_order=norm_order,
    rotated=rotated if positions == 'rope' else 0,
    rope_base=rope_base,
    rope_scaling=_scaling(rope_scaling),
    window=window,
    window_rope_base=rope_base
    if window_rope_base is None
    else window_rope_base,
    local=tuple(map(int, local)),
    embed_scale=embed_scale,
    activation=activation,
    bias=bias,
    qk_norm=norms.make('rmsnorm', epsilon=norm_epsilon, offset=norm_offset)
    if qk_norm
    else None,
    attention_scale=attention_scale,
    attention_softcap=attention_softcap,
    attention_kernel=attention_kernel,
    logit_softcap=logit_softcap,
    tied=tied,
    dropout=dropout,
    kernel_std=kernel_std,
    zero_outputs=zero_outputs,
    scan=scan,
    remat=remat,
    dtype=dtype,
    compute_dtype=compute_dtype,
  )

  def start(params, batch, room):
    del params  # an encoder's memory would need them
    if room > length:
      raise ValueError(
        f'{room} positions, prompt and new ones, are more than model.length='
        f'{length}: ask for fewer tokens'
      )
    B = len(batch.tokens)
    cache = {
      'index': jnp.zeros((), jnp.int32),
      'segments': jnp.zeros((B, room), jnp.int32),
      'layers': stack.start(
        (B, kv_heads, room, head_width), dtype, depth, scan
      ),
    }
    if any(local):
      cache['positions'] = jnp.zeros((B, room), jnp.int32)
    if batch.prefix is not None:
      cache['prefix'] = jnp.zeros((B, room), bool)
    return cache

  return linen.bridge(module, AXES, start)


class Decoder(nn.Module):
  """Embedding, blocks, norm, head. Attributes as in `make`, all resolved."""

  vocab: int
  length: int | None  # None has no learned positions
  width: int
  depth: int
  heads: int
  kv_heads: int
  head_width: int
  mlp: int
  experts: Callable[..., nn.Module] | None
  dense_layers: int
  norm: Callable[..., nn.Module]
  norm_order: str
  rotated: int  # features of a head; 0 has no rotation
  rope_base: float
  rope_scaling: positions.Scaling | None
  window: int | None
  window_rope_base: float
  local: tuple[int, ...]  # 1 for each layer with a window
  embed_scale: float
  activation: str
  bias: bool
  qk_norm: Callable[..., nn.Module] | None
  attention_scale: float | None
  attention_softcap: float | None
  attention_kernel: str
  logit_softcap: float | None
  tied: bool
  dropout: float
  kernel_std: float | None
  zero_outputs: bool
  scan: bool
  remat: str
  dtype: str
  compute_dtype: str

  def setup(self):
    self.embed = vocabulary.Embed(self.vocab, self.width, self.length)
    self.logits = vocabulary.Logits(
      self.vocab,
      self.compute_dtype,
      _std(self, self.width),
      softcap=self.logit_softcap,
      name='head',
    )

  def head(self, x_BLD: jax.Array) -> jax.Array:
    """Scores the vocabulary: [B, L, V]."""
    return self.logits(x_BLD, self.embed.table() if self.tied else None)

  @nn.compact
  def __call__(self, batch: types.Batch, cache: Any) -> types.Output:
    x_BLD = self.embed(batch.tokens, batch.positions)
    x_BLD = (x_BLD * self.embed_scale).astype(self.dtype)
    x_BLD = blocks.dropout(self, self.dropout, x_BLD)
    x_BLD = sharding.constrain(x_BLD, 'batch', 'length', None)
    keys, first = None, 0
    if cache is not None:
      first = cache['index']
      known = {
        name: jax.lax.dynamic_update_slice(cache[name], new, (0, first))
        for name, new in batch._asdict().items()
        if name in cache and new is not None
      }
      cache = {**cache, **known}
      keys = batch._replace(**{k: v for k, v in cache.items() if k in _KEYS})
    x_BLD, cache, aux = stack.apply(
      _blocks(self),
      x_BLD,
      _views(self, batch, keys, first),
      cache,
      depth=self.depth,
      scan=self.scan,
      remat=self.remat,
      which=self.local,
    )
    x_BLD = self.norm(name='final_norm')(x_BLD)
    return types.Output(self.head(x_BLD), cache, aux, x_BLD)


# What a cache keeps of earlier tokens beside keys and values.
_KEYS = ('segments', 'positions', 'prefix')


def _views(c: Decoder, batch, keys, first) -> list[attention.View]:
  """Makes what layers look at: all, and only a window of it if there is one.

  `keys` are what a cache holds, from which `first` is the slot of the batch;
  None: there is no cache.
  """
  kernel = 'einsum'
  if keys is None:
    kernel = kernels.choose(
      c.attention_kernel,
      length=batch.tokens.shape[1],
      head_width=c.head_width,
      compute_dtype=linear.floating(c.compute_dtype),
      softcap=c.attention_softcap,
      prefix=batch.prefix is not None,
      initializing=c.is_initializing(),
    )

  def view(window, base, scaling=None):
    def mask(tokens):
      return masks.AttentionMask(
        tokens.segments,
        tokens.positions if any(c.local) else None,
        tokens.prefix,
        windows=(window,),
        kernel=kernel,
      )

    seen = None if keys is None else mask(keys)
    rotation = None
    if c.rotated:
      rotation = positions.rotation(batch.positions, c.rotated, base, scaling)
    return attention.look(mask(batch), seen, first)._replace(rotation=rotation)

  views = [view(None, c.rope_base, c.rope_scaling)]
  if any(c.local):
    views.append(view(c.window, c.window_rope_base))
  return views


def _scaling(given: Mapping[str, Any] | None) -> positions.Scaling | None:
  if given is None:
    return None
  unknown = given.keys() - set(positions.Scaling._fields)
  if unknown or 'factor' not in given:
    raise ValueError(
      f'rope_scaling={dict(given)} must have a factor, and else only kind, '
      'length, low and high'
    )
  return positions.scaling(**given)


def _std(c: Decoder, inputs: int) -> float:
  return inputs**-0.5 if c.kernel_std is None else c.kernel_std


def _blocks(c: Decoder):
  """Fills in blocks' parts; functions, since Linen wraps every method."""

  def output_init(inputs):
    if c.zero_outputs:
      return nn.initializers.zeros
    # GPT-2: the stream's variance stays put as depth grows.
    return nn.initializers.normal(_std(c, inputs) * (2 * c.depth) ** -0.5)

  shared = {
    'kernel_init': nn.initializers.normal(_std(c, c.width)),
    'dtype': c.dtype,
    'compute_dtype': c.compute_dtype,
  }
  mlp = partial(
    blocks.Mlp,
    width=c.mlp,
    activation=c.activation,
    bias=c.bias,
    output_init=output_init(c.mlp),
    **shared,
  )
  block = partial(
    blocks.Block,
    norm=c.norm,
    attention=partial(
      attention.Attention,
      heads=c.heads,
      kv_heads=c.kv_heads,
      head_width=c.head_width,
      qk_norm=c.qk_norm,
      scale=c.attention_scale,
      softcap=c.attention_softcap,
      bias=c.bias,
      output_init=output_init(c.heads * c.head_width),
      **shared,
    ),
    mlp=mlp,
    dropout=c.dropout,
    order=c.norm_order,
  )
  if c.experts is None:
    return block
  mixture = partial(
    c.experts,
    mlp=c.mlp,
    activation=c.activation,
    output_init=output_init,
    **shared,
  )
  routed = partial(block, mlp=mixture)
  if not c.dense_layers:
    return routed
  return [block] * c.dense_layers + [routed] * (c.depth - c.dense_layers)
