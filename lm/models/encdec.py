"""Encoder and decoder: the original Transformer and T5.

Reference: Vaswani et al. 2017, arXiv 1706.03762; Raffel et al. 2020, arXiv
1910.10683 (T5); Shazeer 2020, arXiv 2002.05202 (the gates of T5 v1.1).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

from flax import linen as nn
import jax
import jax.numpy as jnp

from lm import metrics, sharding, types
from lm.layers import (
  attention,
  blocks,
  linear,
  masks,
  norms,
  positions,
  stack,
  vocabulary,
)
from lm.models import linen, settings

AXES = (
  (r'embed/table$', ('vocab', 'embed')),
  (r'relative/table$', (None, 'heads')),
  *blocks.AXES,
  (r'head/kernel$', ('embed', 'vocab')),
  (r'(scale|bias)$', (None,)),
)


def make(
  *,
  vocab: int,
  width: int,
  depth: int,
  heads: int,
  decoder_depth: int | None = None,
  head_width: int | None = None,
  mlp: int | None = None,
  norm: str = 'layernorm',
  norm_epsilon: float | None = None,
  norm_order: str = 'post',
  positions: str = 'sinusoids',
  buckets: int = 32,
  max_distance: int = 128,
  embed_scale: float | None = None,
  activation: str = 'relu',
  bias: bool = True,
  attention_scale: float | None = None,
  tied: bool = True,
  output_scale: float = 1.0,
  dropout: float = 0.0,
  kernel_std: float | None = None,
  scan: bool = False,
  remat: str = 'none',
  dtype: str = 'float32',
  compute_dtype: str = 'float32',
) -> types.Model:
  """Makes a model that reads `Batch.source` and writes the target side.

  The defaults are the Transformer of 2017 but for initial values; T5 is
  `configs/t5`. One embedding table serves both sides. A document of the target
  reads the part of the source that has its number, so that examples can be
  packed. Attention is by whole masks, the 'einsum' of `kernels.choose`: no
  other kernel here knows a bias of distances, or two texts.

  Args:
    vocab: V.
    width: D.
    depth: blocks of the encoder.
    heads: N.
    decoder_depth: blocks of the decoder; None is `depth`.
    head_width: H; None is D / N.
    mlp: F; None is 4 D.
    norm, norm_epsilon: see `norms.make`.
    norm_order: see `blocks.Block`; other than 'post' adds a norm and dropout at
      the end of both sides.
    positions: 'sinusoids' are added to embeddings; 'relative' adds a bias for
      each bucket of distances to the scores, shared by a side's layers.
    buckets, max_distance: of `positions.buckets`.
    embed_scale: multiplies the embeddings; None is the square root of D with
      sinusoids (section 3.4) and 1 without.
    activation: one of `blocks.ACTIVATIONS`.
    bias: biases in projections and layer norms.
    attention_scale: of scores; None is 1 / sqrt(H); T5's is 1.
    tied: the output layer is the embedding table.
    output_scale: multiplies what the output layer reads; of T5 with a tied
      table 1 / sqrt(D).
    dropout: rate on embeddings and branches (not on attention weights).
    kernel_std: deviation of initial kernels; None is 1 / sqrt(inputs).
    scan, remat: see `layers.stack`.
    dtype, compute_dtype: as of `decoder.make`.

  Raises:
    ValueError: for settings that do not fit together.
  """
  settings.check_choices(
    norm_order=(norm_order, blocks.ORDERS),
    positions=(positions, ('sinusoids', 'relative')),
    activation=(activation, blocks.ACTIVATIONS),
    dtype=(dtype, settings.DTYPES),
  )
  linear.check(compute_dtype)
  decoder_depth = decoder_depth or depth
  settings.check_counts(
    vocab=vocab,
    width=width,
    depth=depth,
    heads=heads,
    max_distance=max_distance,
  )
  settings.check_rates(dropout=dropout)
  settings.check_remat(remat)
  if buckets < 4 or buckets % 4:
    raise ValueError(f'buckets={buckets} must be a multiple of 4')
  if max_distance <= buckets // 2:
    raise ValueError(
      f'max_distance={max_distance} must be above buckets / 2 = {buckets // 2}'
    )
  if positions == 'sinusoids' and width % 2:
    raise ValueError(f'width={width} must be even for sinusoids')
  head_width = settings.head_width(width, heads, head_width)
  usual_scale = width**0.5 if positions == 'sinusoids' else 1.0

  def init(inputs):
    std = inputs**-0.5 if kernel_std is None else kernel_std
    return nn.initializers.normal(std)

  products = {'bias': bias, 'dtype': dtype, 'compute_dtype': compute_dtype}
  attend = partial(
    attention.Attention,
    heads=heads,
    kv_heads=heads,
    head_width=head_width,
    scale=attention_scale,
    kernel_init=init(width),
    output_init=init(heads * head_width),
    **products,
  )
  normalize = norms.make(norm, epsilon=norm_epsilon, bias=bias)
  block = partial(
    blocks.Block,
    norm=normalize,
    attention=attend,
    mlp=partial(
      blocks.Mlp,
      width=mlp or 4 * width,
      activation=activation,
      kernel_init=init(width),
      output_init=init(mlp or 4 * width),
      **products,
    ),
    dropout=dropout,
    order=norm_order,
  )
  side = partial(
    Side,
    relative=(buckets, max_distance, heads)
    if positions == 'relative'
    else None,
    norm=None if norm_order == 'post' else normalize,
    dropout=dropout,
    scan=scan,
    remat=remat,
  )
  module = EncoderDecoder(
    vocab=vocab,
    width=width,
    encoder=partial(side, block=block, depth=depth),
    decoder=partial(
      side,
      block=partial(block, cross=partial(attend, cross=True)),
      depth=decoder_depth,
    ),
    sinusoids=positions == 'sinusoids',
    embed_scale=usual_scale if embed_scale is None else embed_scale,
    tied=tied,
    output_scale=output_scale,
    dropout=dropout,
    dtype=dtype,
    compute_dtype=compute_dtype,
  )

  def start(params, batch, room):
    memory_BSD = cast(
      jax.Array, module.apply({'params': params}, batch, None, encode=True)
    )
    decoder = params['decoder']

    def memory(layer):
      return attention.memory_cache(
        layer['cross'], memory_BSD, compute_dtype, dtype
      )

    shape = len(batch.tokens), heads, room, head_width
    layers = stack.start(shape, dtype, decoder_depth, scan)
    if scan:
      layers = {**layers, 'memory': jax.vmap(memory)(decoder['layers'])}
    else:
      layers = tuple(
        {**layer, 'memory': memory(decoder[f'layers_{i}'])}
        for i, layer in enumerate(layers)
      )
    return {
      'index': jnp.zeros((), jnp.int32),
      'segments': jnp.zeros(shape[::2], jnp.int32),
      'positions': jnp.zeros(shape[::2], jnp.int32),
      'source_segments': batch.source_segments,
      'layers': layers,
    }

  return linen.bridge(module, AXES, start)


class EncoderDecoder(nn.Module):
  """Both sides around one embedding. Attributes as in `make`, all resolved."""

  vocab: int
  width: int
  encoder: Callable[..., nn.Module]
  decoder: Callable[..., nn.Module]
  sinusoids: bool
  embed_scale: float
  tied: bool
  output_scale: float
  dropout: float
  dtype: str
  compute_dtype: str

  def setup(self):
    self.embed = vocabulary.Embed(self.vocab, self.width)
    self.logits = vocabulary.Logits(self.vocab, self.compute_dtype, name='head')

  def head(self, x_BLD: jax.Array) -> jax.Array:
    """Scores the vocabulary: [B, L, V]."""
    return self.logits(
      x_BLD * self.output_scale, self.embed.table() if self.tied else None
    )

  @nn.compact
  def __call__(
    self, batch: types.Batch, cache: Any, encode: bool = False
  ) -> Any:
    """Returns the output, or only the encoder's [B, S, D] with `encode`."""

    def enter(tokens_BL, positions_BL):
      x_BLD = self.embed(tokens_BL) * self.embed_scale
      if self.sinusoids:
        x_BLD += positions.sinusoids(positions_BL, self.width)
      x_BLD = blocks.dropout(self, self.dropout, x_BLD.astype(self.dtype))
      return sharding.constrain(x_BLD, 'batch', 'length', None)

    memory_BSD, aux = None, {}
    if cache is None:
      segments_BS = batch.source_segments
      if segments_BS is None:
        raise ValueError(
          'an encoder-decoder reads a source: the batch has none'
        )
      positions_BS = _restarting(segments_BS)
      memory_BSD, _, aux = self.encoder(bidirectional=True, name='encoder')(
        enter(batch.source, positions_BS),
        attention.View(masks.document_mask(segments_BS, segments_BS)),
        (positions_BS, positions_BS),
        None,
      )
      if encode:
        return memory_BSD
      keys, first = batch, 0
    else:
      first = cache['index']
      known = {
        name: jax.lax.dynamic_update_slice(
          cache[name], getattr(batch, name), (0, first)
        )
        for name in ('segments', 'positions')
      }
      cache = {**cache, **known}
      keys, segments_BS = batch._replace(**known), cache['source_segments']
    x_BLD, cache, written = self.decoder(bidirectional=False, name='decoder')(
      enter(batch.tokens, batch.positions),
      attention.View(
        masks.causal_mask(batch.segments, keys.segments, first),
        memory_BSD=memory_BSD,
        memory_mask_B1LS=masks.document_mask(batch.segments, segments_BS),
      ),
      (batch.positions, keys.positions),
      cache,
    )
    aux = metrics.join(aux, written)
    return types.Output(self.head(x_BLD), cache, aux, x_BLD)


class Side(nn.Module):
  """A stack of blocks with its relative positions, and a norm at its end.

  Attributes:
    block: builds a block.
    depth: how many.
    bidirectional: whether positions to the right are seen.
    relative: (buckets, max_distance, heads) of the bias; None has none.
    norm: builds the last norm; None has none, nor dropout there.
    dropout, scan, remat: as in `make`.
  """

  block: Callable[..., nn.Module]
  depth: int
  bidirectional: bool
  relative: tuple[int, int, int] | None
  norm: Callable[..., nn.Module] | None
  dropout: float
  scan: bool
  remat: str

  @nn.compact
  def __call__(self, x_BLD, view, places, cache):
    if self.relative is not None:
      bias_BNLS = Relative(
        *self.relative, bidirectional=self.bidirectional, name='relative'
      )(*places)
      view = view._replace(bias_BNLS=bias_BNLS)
    x_BLD, cache, aux = stack.apply(
      self.block,
      x_BLD,
      [view],
      cache,
      depth=self.depth,
      scan=self.scan,
      remat=self.remat,
    )
    if self.norm is not None:
      x_BLD = self.norm(name='final_norm')(x_BLD)
      x_BLD = blocks.dropout(self, self.dropout, x_BLD)
    return x_BLD, cache, aux


class Relative(nn.Module):
  """Learns a bias for each head and bucket of distances: [B, N, L, S].

  Attributes: see `positions.buckets`; `heads` is N.
  """

  buckets: int
  max_distance: int
  heads: int
  bidirectional: bool

  @nn.compact
  def __call__(self, positions_BL, positions_BS):
    init = nn.initializers.normal(self.heads**-0.5)
    table_RN = self.param('table', init, (self.buckets, self.heads))
    buckets_BLS = positions.buckets(
      positions_BL,
      positions_BS,
      count=self.buckets,
      max_distance=self.max_distance,
      bidirectional=self.bidirectional,
    )
    return jnp.einsum('BLSN->BNLS', jnp.take(table_RN, buckets_BLS, axis=0))


def _restarting(segments_BS):
  """Counts positions within each document of a packed row."""
  place_1S = jnp.arange(segments_BS.shape[1])[None]
  before_BS = jnp.pad(segments_BS[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
  starts_BS = jnp.where(segments_BS != before_BS, place_1S, 0)
  return place_1S - jax.lax.cummax(starts_BS, axis=1)
