"""The encoder: BERT, which sees a text in both directions.

Reference: Devlin et al. 2019, arXiv 1810.04805.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from lm import config, sharding, types
from lm.layers import (
  activations,
  checks,
  linear,
  masks,
  parts,
  stack,
  vocabulary,
)
from lm.layers import blocks as blocks_lib
from lm.models import linen

ROWS = (
  *vocabulary.ROWS,
  parts.Row(
    r'(transform|pooler)/kernel$',
    ('embed', sharding.WHOLE),
    1,
    1,
    hidden=False,
  ),
  parts.Row(
    r'next_sentence/kernel$', (sharding.WHOLE, None), 1, 1, hidden=False
  ),
  parts.Row(r'next_sentence/bias$', (None,)),
  parts.Row(r'(scale|bias)$', (sharding.WHOLE,)),
)


class Head(NamedTuple):
  """Describes the output layers of an encoder; see `head`."""

  transform: bool
  activation: str
  next_sentence: bool


def head(
  *,
  transform: bool = True,
  activation: str = 'gelu_exact',
  next_sentence: bool = False,
) -> Head:
  """Describes what an encoder makes of its vectors.

  Args:
    transform: a layer, its activation and a norm before the output layer, which
      then has a bias; without, an encoder of features alone.
    activation: of that layer, one of `activations.FUNCTIONS`.
    next_sentence: the first position's logits are those of next-sentence
      prediction (section 3.1, task 2) in classes 0 and 1; all others are out of
      reach. So both tasks are one sum over positions, where BERT adds two
      means; smoothing is not defined then. See `masking.next_sentence`.

  Raises:
    ValueError: for an unknown activation.
  """
  checks.check_choices(activation=(activation, activations.FUNCTIONS))
  return Head(transform, activation, next_sentence)


def make(
  *,
  vocab: int,
  length: int,
  width: int,
  depth: int,
  blocks: Mapping[str, Mapping[str, Any]],
  pattern: Sequence[str],
  first: Sequence[str] = (),
  norm: Mapping[str, Any],
  final_norm: bool = False,
  embed: Mapping[str, Any],
  head: Mapping[str, Any],
  init: Mapping[str, Any],
  dropout: float = 0.0,
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
    length: longest sequence; the size of the table of learned positions.
    width: D.
    depth: number of blocks.
    blocks, pattern, first: kinds of block and their order, see `stack.make`.
    norm: spec of the norms outside of the blocks.
    final_norm: adds one after the last block: for blocks that do not normalize
      the stream themselves, whose order is not 'post'.
    embed: spec of `vocabulary.embedding`.
    head: spec of the function `head`.
    init: spec of `parts.init`.
    dropout: rate on embeddings and branches (not on attention weights).
    scan, remat, dtype, compute_dtype: the same as in `decoder.make`.

  Raises:
    ValueError: for settings that do not fit together.
  """
  shared = parts.Shared(
    width,
    depth,
    config.build(init),
    dtype,
    compute_dtype,
    dropout,
    bidirectional=True,
    vocab=vocab,
  )
  shared.check()
  checks.check_counts(vocab=vocab, length=length)
  layers = stack.make(shared, blocks, pattern, first, scan=scan, remat=remat)
  outputs = config.build(head)
  module = Encoder(
    vocab=vocab,
    length=length,
    shared=shared,
    stack=layers,
    norm=config.build(norm),
    final_norm=final_norm,
    embedding=config.build(embed),
    output=outputs,
  )
  vocabulary.embed(module.embedding, vocab, shared, length)  # checks it

  def start(params, batch, room):
    raise ValueError('an encoder generates nothing: it sees both directions')

  def flops(length: int) -> float:
    read = vocab + width * outputs.transform
    return layers.flops(length) + 2 * width * read

  return linen.bridge(
    module,
    (*layers.rows(), *ROWS),
    start,
    unrolled=module.clone(stack=layers.unrolled()),
    layouts={'': layers.layers},
    # One position's logits are not the vocabulary's then.
    head=not outputs.next_sentence,
    flops=flops,
    growth=shared.growth,
  )


class Encoder(nn.Module):
  """Embedding, blocks, heads.

  Attributes:
    vocab, length, final_norm: see `make`.
    shared: what its parts have in common.
    stack: the blocks.
    norm: builds the norms outside of the blocks, given `name`.
    embedding: of the vocabulary.
    output: see `head`.
  """

  vocab: int
  length: int
  shared: parts.Shared
  stack: stack.Stack
  norm: Callable[..., nn.Module]
  final_norm: bool
  embedding: vocabulary.Embedding
  output: Head

  def setup(self):
    c = self.shared
    self.embed = vocabulary.embed(self.embedding, self.vocab, c, self.length)
    if self.output.transform:
      self.dense = self._dense('transform', c.width)
      self.dense_norm = self.norm(name='transform_norm')
    self.logits = vocabulary.Logits(
      self.vocab,
      c.compute_dtype,
      bias=self.output.transform,
      scale=1 / c.growth[0],  # as in `vocabulary.logits`
      name='head',
    )

  def head(self, x_BLD: jax.Array) -> jax.Array:
    """Scores the vocabulary: [B, L, V]."""
    if self.output.transform:
      activate = activations.FUNCTIONS[self.output.activation]
      x_BLD = self.dense_norm(activate(self.dense(x_BLD)))
    return self.logits(x_BLD, self.embed.table())

  @nn.nowrap
  def _dense(self, name, outputs):
    c = self.shared
    compute_dtype = linear.floating(c.compute_dtype)
    return linear.Dense(outputs, c.kernel(), c.dtype, compute_dtype, name=name)

  @nn.compact
  def __call__(self, batch: types.Batch, cache: Any) -> types.Output:
    assert cache is None, 'an encoder has no cache'
    x_BLD = self.embed(batch.tokens, batch.positions, batch.token_types)
    x_BLD = self.norm(name='embed_norm')(x_BLD).astype(self.shared.dtype)
    x_BLD = blocks_lib.dropout(self, self.shared.dropout, x_BLD)
    x_BLD = sharding.constrain(x_BLD, 'batch', 'length', None)
    text = parts.Text(batch.segments, batch.positions, tokens=batch.tokens)
    x_BLD, _, metrics = stack.run(self.stack, self, x_BLD, text, None)
    if self.final_norm:
      x_BLD = self.norm(name='final_norm')(x_BLD)
    logits_BLV = self.head(x_BLD)
    if self.output.next_sentence:
      logits_BLV = self._with_next_sentence(logits_BLV, x_BLD)
    return types.Output(logits_BLV, None, metrics, x_BLD)

  def _with_next_sentence(self, logits_BLV, x_BLD):
    """Puts the two classes in the place of the first position's logits."""
    pooled_B1D = jnp.tanh(
      self._dense('pooler', self.shared.width)(x_BLD[:, :1])
    )
    next_B12 = self._dense('next_sentence', 2)(pooled_B1D).astype(jnp.float32)
    next_B1V = jnp.pad(
      next_B12,
      ((0, 0), (0, 0), (0, self.vocab - 2)),
      constant_values=masks.MASKED,
    )
    return jnp.concatenate([next_B1V, logits_BLV[:, 1:]], axis=1)
