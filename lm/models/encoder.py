"""The encoder: BERT, which sees a text in both directions.

Reference: Devlin et al. 2019, arXiv 1810.04805.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from lm import sharding, types
from lm.layers import (
  attention,
  blocks,
  kernels,
  linear,
  masks,
  norms,
  stack,
  vocabulary,
)
from lm.models import linen, settings

AXES = (
  (r'embed/table$', ('vocab', 'embed')),
  (r'embed/(positions|token_types)$', (None, 'embed')),
  *blocks.AXES,
  (r'(transform|pooler)/kernel$', ('embed', None)),
  (r'next_sentence/kernel$', (None, None)),
  # Cut like the logits that it is added to.
  (r'head/bias$', ('vocab',)),
  (r'(scale|bias)$', (None,)),
)


def make(
  *,
  vocab: int,
  length: int,
  width: int,
  depth: int,
  heads: int,
  mlp: int | None = None,
  token_types: int = 2,
  norm_epsilon: float = 1e-12,
  norm_order: str = 'post',
  activation: str = 'gelu_exact',
  transform: bool = True,
  next_sentence: bool = False,
  attention_kernel: str = 'auto',
  dropout: float = 0.0,
  kernel_std: float = 0.02,
  scan: bool = False,
  remat: str = 'none',
  dtype: str = 'float32',
  compute_dtype: str = 'float32',
) -> types.Model:
  """Makes an encoder with a tied output layer, for masked language modelling.

  Logits at l are of token l itself: `data.masking.masked` hides it. It has
  no cache and generates nothing.

  Args:
    vocab: V.
    length: longest sequence; the size of the table of positions.
    width: D.
    depth: number of blocks.
    heads: N, divides D.
    mlp: F; None is 4 D.
    token_types: rows of the table for `Batch.token_types` (BERT's segment embeddings); 0
      has none.
    norm_epsilon: of all layer norms.
    norm_order: see `blocks.Block`; other than 'post' adds a final norm.
    activation: one of `blocks.ACTIVATIONS`.
    transform: a layer, its activation and a norm before the output layer, which
      then has a bias; without, an encoder of features alone.
    next_sentence: the first position's logits are those of next-sentence
      prediction (section 3.1, task 2) in classes 0 and 1; all others are out of
      reach. So both tasks are one sum over positions, where BERT adds two
      means; smoothing is not defined then. See `masking.next_sentence`.
    attention_kernel: see `kernels.choose`.
    dropout: rate on embeddings and branches (not on attention weights).
    kernel_std: deviation of initial kernels.
    scan, remat: see `layers.stack`.
    dtype, compute_dtype: as of `decoder.make`.

  Raises:
    ValueError: for settings that do not fit together.
  """
  settings.check_choices(
    norm_order=(norm_order, blocks.ORDERS),
    activation=(activation, blocks.ACTIVATIONS),
    attention_kernel=(attention_kernel, kernels.NAMES),
    dtype=(dtype, settings.DTYPES),
  )
  linear.check(compute_dtype)
  settings.check_counts(
    vocab=vocab, length=length, width=width, depth=depth, heads=heads
  )
  settings.check_rates(dropout=dropout)
  settings.check_remat(remat)
  init = nn.initializers.normal(kernel_std)
  products = {
    'bias': True,
    'kernel_init': init,
    'output_init': init,
    'dtype': dtype,
    'compute_dtype': compute_dtype,
  }
  norm = norms.make('layernorm', epsilon=norm_epsilon)
  head_width = settings.head_width(width, heads, None)
  module = Encoder(
    vocab=vocab,
    length=length,
    width=width,
    depth=depth,
    token_types=token_types,
    norm=norm,
    block=partial(
      blocks.Block,
      norm=norm,
      attention=partial(
        attention.Attention,
        heads=heads,
        kv_heads=heads,
        head_width=head_width,
        **products,
      ),
      mlp=partial(
        blocks.Mlp, width=mlp or 4 * width, activation=activation, **products
      ),
      dropout=dropout,
      order=norm_order,
    ),
    final_norm=norm_order != 'post',
    activation=activation,
    transform=transform,
    next_sentence=next_sentence,
    head_width=head_width,
    attention_kernel=attention_kernel,
    dropout=dropout,
    kernel_init=init,
    scan=scan,
    remat=remat,
    dtype=dtype,
    compute_dtype=compute_dtype,
  )

  def start(params, batch, room):
    raise ValueError('an encoder generates nothing: it sees both directions')

  # One position's logits are not the vocabulary's then.
  return linen.bridge(module, AXES, start, head=not next_sentence)


class Encoder(nn.Module):
  """Embedding, blocks, heads. Attributes as in `make`, all resolved."""

  vocab: int
  length: int
  width: int
  depth: int
  token_types: int
  norm: Callable[..., nn.Module]
  block: Callable[..., nn.Module]
  final_norm: bool
  activation: str
  transform: bool
  next_sentence: bool
  head_width: int
  attention_kernel: str
  dropout: float
  kernel_init: nn.initializers.Initializer
  scan: bool
  remat: str
  dtype: str
  compute_dtype: str

  def setup(self):
    self.embed = vocabulary.Embed(
      self.vocab, self.width, self.length, self.token_types
    )
    if self.transform:
      self.dense = self._dense('transform', self.width)
      self.dense_norm = self.norm(name='transform_norm')
    self.logits = vocabulary.Logits(
      self.vocab, self.compute_dtype, bias=self.transform, name='head'
    )

  def head(self, x_BLD: jax.Array) -> jax.Array:
    """Scores the vocabulary: [B, L, V]."""
    if self.transform:
      h_BLD = blocks.ACTIVATIONS[self.activation](self.dense(x_BLD))
      x_BLD = self.dense_norm(h_BLD)
    return self.logits(x_BLD, self.embed.table())

  @nn.nowrap
  def _dense(self, name, outputs):
    compute_dtype = linear.floating(self.compute_dtype)
    return linear.Dense(
      outputs, self.kernel_init, self.dtype, compute_dtype, name=name
    )

  @nn.compact
  def __call__(self, batch: types.Batch, cache: Any) -> types.Output:
    assert cache is None, 'an encoder has no cache'
    x_BLD = self.embed(batch.tokens, batch.positions, batch.token_types)
    x_BLD = self.norm(name='embed_norm')(x_BLD).astype(self.dtype)
    x_BLD = blocks.dropout(self, self.dropout, x_BLD)
    x_BLD = sharding.constrain(x_BLD, 'batch', 'length', None)
    kernel = kernels.choose(
      self.attention_kernel,
      length=batch.tokens.shape[1],
      head_width=self.head_width,
      compute_dtype=linear.floating(self.compute_dtype),
      initializing=self.is_initializing(),
    )
    mask = masks.AttentionMask(batch.segments, causal=False, kernel=kernel)
    x_BLD, _, aux = stack.apply(
      self.block,
      x_BLD,
      [attention.look(mask)],
      None,
      depth=self.depth,
      scan=self.scan,
      remat=self.remat,
    )
    if self.final_norm:
      x_BLD = self.norm(name='final_norm')(x_BLD)
    logits_BLV = self.head(x_BLD)
    if self.next_sentence:
      pooled_B1D = jnp.tanh(self._dense('pooler', self.width)(x_BLD[:, :1]))
      next_B12 = self._dense('next_sentence', 2)(pooled_B1D)
      next_B12 = next_B12.astype(jnp.float32)
      next_B1V = jnp.pad(
        next_B12,
        ((0, 0), (0, 0), (0, self.vocab - 2)),
        constant_values=masks.MASKED,
      )
      logits_BLV = jnp.concatenate([next_B1V, logits_BLV[:, 1:]], axis=1)
    return types.Output(logits_BLV, None, aux, x_BLD)
