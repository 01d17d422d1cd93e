"""The decoder: GPT-2, Llama and what lies between, as settings of one model.

Reference: Radford et al. 2019 (GPT-2); Touvron et al. 2023, arXiv 2302.13971
(Llama: RMSNorm, RoPE, SwiGLU).
"""

from functools import partial
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from lm import sharding, types
from lm.layers import attention, blocks, linear, norms, stack
from lm.models import linen

AXES = (
  (r'embed/table$', ('vocab', 'embed')),
  (r'embed/positions$', (None, 'embed')),
  (r'attention/q$', ('embed', 'heads', None)),
  (r'attention/[kv]$', ('embed', 'kv_heads', None)),
  (r'attention/o$', ('heads', None, 'embed')),
  (r'attention/q_bias$', ('heads', None)),
  (r'attention/[kv]_bias$', ('kv_heads', None)),
  (r'mlp/(up|gate)$', ('embed', 'mlp')),
  (r'mlp/down$', ('mlp', 'embed')),
  (r'mlp/(up|gate)_bias$', ('mlp',)),
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
  norm: str = 'layernorm',
  positions: str = 'learned',
  rope_base: float = 10_000.0,
  activation: str = 'gelu',
  bias: bool = True,
  qk_norm: bool = False,
  attention_softcap: float | None = None,
  logit_softcap: float | None = None,
  tied: bool = True,
  dropout: float = 0.0,
  kernel_std: float | None = 0.02,
  zero_outputs: bool = False,
  scan: bool = False,
  remat: str = 'none',
  dtype: str = 'float32',
  operands: str = 'float32',
) -> types.Model:
  """Makes a decoder-only language model with pre-norm blocks.

  Parameters are float32.

  Args:
    vocab: V.
    length: longest sequence; the size of the table of learned positions.
    width: D.
    depth: number of blocks.
    heads: N.
    kv_heads: K, divides N; None is N (multi-head attention).
    head_width: H; None is D / N.
    mlp: F; None is 4 D.
    norm: 'layernorm' or 'rmsnorm'.
    positions: 'learned' or 'rope'.
    rope_base: base of the rotary frequencies.
    activation: 'gelu', 'swiglu' or 'relu2'.
    bias: biases in projections and layer norms.
    qk_norm: RMSNorm on queries and keys.
    attention_softcap: bound on attention scores; None is off.
    logit_softcap: bound on logits; None is off.
    tied: the output layer is the embedding table.
    dropout: rate on embeddings and residual branches (not on attention weights,
      unlike GPT-2).
    kernel_std: deviation of initial kernels; None is 1 / sqrt(inputs).
    zero_outputs: output projections start at 0; otherwise scaled by
      1 / sqrt(2 depth) as in GPT-2.
    scan, remat: see `layers.stack`.
    dtype: type of activations.
    operands: type that matrix products read. On CPU `operands='bfloat16'` with
      `dtype='float32'` is fastest; on accelerators use bfloat16 for both.

  Raises:
    ValueError: for settings that do not fit together.
  """
  choices = (
    ('norm', norm, ('layernorm', 'rmsnorm')),
    ('positions', positions, ('learned', 'rope')),
    ('activation', activation, tuple(blocks.ACTIVATIONS)),
    ('dtype', dtype, ('float32', 'bfloat16')),
    ('operands', operands, ('float32', 'bfloat16')),
  )
  for name, value, known in choices:
    if value not in known:
      raise ValueError(f'{name}={value!r} is not one of {", ".join(known)}')
  for name, value in (
    ('vocab', vocab),
    ('length', length),
    ('width', width),
    ('depth', depth),
    ('heads', heads),
  ):
    if value < 1:
      raise ValueError(f'{name}={value} must be at least 1')
  kv_heads = kv_heads or heads
  if heads % kv_heads:
    raise ValueError(f'heads={heads} is not a multiple of kv_heads={kv_heads}')
  if head_width is None and width % heads:
    raise ValueError(
      f'width={width} is not a multiple of heads={heads}: set head_width'
    )
  head_width = head_width or width // heads
  if positions == 'rope' and head_width % 2:
    raise ValueError(f'head_width={head_width} must be even for rope')
  if dropout >= 1:
    raise ValueError(f'dropout={dropout} must be below 1')
  if remat != 'none':
    stack.remat_policy(remat)
  module = Decoder(
    vocab=vocab,
    length=length,
    width=width,
    depth=depth,
    heads=heads,
    kv_heads=kv_heads,
    head_width=head_width,
    mlp=mlp or 4 * width,
    norm=norm,
    rope_base=rope_base if positions == 'rope' else None,
    activation=activation,
    bias=bias,
    qk_norm=qk_norm,
    attention_softcap=attention_softcap,
    logit_softcap=logit_softcap,
    tied=tied,
    dropout=dropout,
    kernel_std=kernel_std,
    zero_outputs=zero_outputs,
    scan=scan,
    remat=remat,
    dtype=dtype,
    operands=operands,
  )

  def start(params, batch, room):
    del params  # an encoder's memory would need them
    B = len(batch.tokens)
    lead = (depth,) if scan else ()
    layer = {
      name: jnp.zeros((*lead, B, room, kv_heads, head_width), dtype)
      for name in 'kv'
    }
    return {
      'index': jnp.zeros((), jnp.int32),
      'segments': jnp.zeros((B, room), jnp.int32),
      'layers': layer if scan else (layer,) * depth,
    }

  return linen.bridge(module, AXES, start)


class Decoder(nn.Module):
  """Embedding, blocks, norm, head. Attributes as in `make`, all resolved."""

  vocab: int
  length: int
  width: int
  depth: int
  heads: int
  kv_heads: int
  head_width: int
  mlp: int
  norm: str
  rope_base: float | None
  activation: str
  bias: bool
  qk_norm: bool
  attention_softcap: float | None
  logit_softcap: float | None
  tied: bool
  dropout: float
  kernel_std: float | None
  zero_outputs: bool
  scan: bool
  remat: str
  dtype: str
  operands: str

  @nn.compact
  def __call__(self, batch: types.Batch, cache: Any) -> types.Output:
    if self.rope_base is None and batch.tokens.shape[1] > self.length:
      # A lookup beyond the table would be nan, without a word.
      raise ValueError(
        f'a batch of length {batch.tokens.shape[1]} is longer than '
        f'model.length={self.length} learned positions: raise it'
      )
    x_BLD, table_VD = Embed(
      vocab=self.vocab,
      width=self.width,
      length=self.length if self.rope_base is None else None,
      name='embed',
    )(batch.tokens, batch.positions)
    x_BLD = blocks.dropout(self, self.dropout, x_BLD.astype(self.dtype))
    x_BLD = sharding.constrain(x_BLD, 'batch', None, None)
    segments_BS, first = batch.segments, 0
    if cache is not None:
      first = cache['index']
      segments_BS = jax.lax.dynamic_update_slice(
        cache['segments'], batch.segments, (0, first)
      )
    x_BLD, cache = stack.apply(
      _block(self),
      x_BLD,
      batch.positions,
      attention.causal_mask(batch.segments, segments_BS, first),
      cache,
      depth=self.depth,
      scan=self.scan,
      remat=self.remat,
    )
    if cache is not None:
      cache = {**cache, 'segments': segments_BS}
    x_BLD = _norm(self)(name='final_norm')(x_BLD)
    # Logits in float32: the loss is a small difference of large numbers.
    product = partial(linear.contract, operands=self.operands, result='float32')
    if self.tied:
      logits_BLV = product('BLD,VD->BLV', x_BLD, table_VD)
    else:
      head = Head(self.vocab, _std(self, self.width), name='head')
      logits_BLV = product('BLD,DV->BLV', x_BLD, head(self.width))
    logits_BLV = sharding.constrain(logits_BLV, 'batch', None, 'vocab')
    if self.logit_softcap is not None:
      logits_BLV = self.logit_softcap * jnp.tanh(
        logits_BLV / self.logit_softcap
      )
    return types.Output(logits_BLV, cache, {})


def _std(c: Decoder, inputs: int) -> float:
  return inputs**-0.5 if c.kernel_std is None else c.kernel_std


def _norm(c: Decoder):
  if c.norm == 'rmsnorm':
    return norms.RMSNorm
  return partial(norms.LayerNorm, bias=c.bias)


def _block(c: Decoder):
  """Fills in a block's parts; functions, since Linen wraps every method."""

  def output_init(inputs):
    if c.zero_outputs:
      return nn.initializers.zeros
    # GPT-2: the stream's variance stays put as depth grows.
    return nn.initializers.normal(_std(c, inputs) * (2 * c.depth) ** -0.5)

  shared = {
    'bias': c.bias,
    'kernel_init': nn.initializers.normal(_std(c, c.width)),
    'dtype': c.dtype,
    'operands': c.operands,
  }
  return partial(
    blocks.Block,
    norm=_norm(c),
    attention=partial(
      attention.Attention,
      heads=c.heads,
      kv_heads=c.kv_heads,
      head_width=c.head_width,
      qk_norm=c.qk_norm,
      rope_base=c.rope_base,
      softcap=c.attention_softcap,
      output_init=output_init(c.heads * c.head_width),
      **shared,
    ),
    mlp=partial(
      blocks.Mlp,
      width=c.mlp,
      activation=c.activation,
      output_init=output_init(c.mlp),
      **shared,
    ),
    dropout=c.dropout,
  )


class Embed(nn.Module):
  """Looks tokens up, adds learned positions: [B, L, D] and the table [V, D]."""

  vocab: int
  width: int
  length: int | None  # None has no learned positions

  @nn.compact
  def __call__(self, tokens_BL, positions_BL):
    # GPT-2's deviation, for tied and untied tables alike.
    init = nn.initializers.normal(0.02)
    table_VD = self.param('table', init, (self.vocab, self.width))
    # Gathered whole along D: a lookup in a table that is cut there makes XLA
    # replicate it ("Involuntary full rematerialization").
    rows_VD = sharding.constrain(table_VD, 'vocab', None)
    x_BLD = jnp.take(rows_VD, tokens_BL, axis=0)
    if self.length is not None:
      positions_LD = self.param('positions', init, (self.length, self.width))
      rows_LD = sharding.constrain(positions_LD, None, None)
      x_BLD += jnp.take(rows_LD, positions_BL, axis=0)
    return x_BLD, table_VD


class Head(nn.Module):
  """Holds the kernel [D, V] of an untied output layer."""

  vocab: int
  std: float

  @nn.compact
  def __call__(self, width):
    init = nn.initializers.normal(self.std)
    return self.param('kernel', init, (width, self.vocab))
