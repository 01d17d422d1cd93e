"""Recurrent language models: Elman's network, LSTM, GRU, and both directions.

Reference: Mikolov et al. 2010, Interspeech (recurrent language models); Zaremba
et al. 2014, arXiv 1409.2329 (LSTM); Peters et al. 2018, arXiv 1802.05365
(ELMo).
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from lm import config, sharding, types
from lm.layers import blocks as blocks_lib
from lm.layers import checks, parts, stack, vocabulary
from lm.models import linen

ROWS = vocabulary.ROWS


def make(
  *,
  vocab: int,
  width: int,
  depth: int,
  blocks: Mapping[str, Mapping[str, Any]],
  pattern: Sequence[str],
  first: Sequence[str] = (),
  bidirectional: bool = False,
  embed: Mapping[str, Any],
  head: Mapping[str, Any],
  init: Mapping[str, Any],
  dropout: float = 0.0,
  variational: bool = True,
  scan: bool = False,
  remat: str = 'none',
  dtype: str = 'float32',
  compute_dtype: str = 'float32',
) -> types.Model:
  """Makes a language model of recurrent layers, whose states are its cache.

  Args:
    vocab: V.
    width: D, of embeddings and of every layer.
    depth: layers.
    blocks, pattern, first: kinds of block and their order, see `stack.make`;
      their mixers must have no positions of their own, such as
      `layers.recurrent`.
    bidirectional: adds a second stack that reads from the right. A batch with
      `token_types` trains both (`data.objectives.bidirectional`): the first
      half of its columns is read forwards, the second is text in reverse.
      Without `token_types`, logits are those of the forward stack, and
      `Output.hidden` [B, L, 2 D] has both: ELMo's features of the last layer.
    embed: spec of `vocabulary.embedding`.
    head: spec of `vocabulary.output`.
    init: spec of `parts.init`.
    dropout: rate on what each layer and the output read.
    variational: one mask for all steps, on the state's products too. Reference:
      Gal and Ghahramani 2016, arXiv 1512.05287.
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
    variational,
  )
  shared.check()
  checks.check_counts(vocab=vocab)
  layers = stack.make(shared, blocks, pattern, first, scan=scan, remat=remat)
  module = RecurrentModel(
    vocab=vocab,
    shared=shared,
    stack=layers,
    bidirectional=bidirectional,
    embedding=config.build(embed),
    output=config.build(head),
  )
  vocabulary.embed(module.embedding, vocab, shared)  # checks it

  def start(params, batch, room):
    text = parts.Text(batch.segments, batch.positions)
    return layers.start(params['forward'], text, room)

  directions = ('forward', 'backward')[: 1 + bidirectional]
  return linen.bridge(
    module,
    (*layers.rows(), *ROWS),
    start,
    unrolled=module.clone(stack=layers.unrolled()),
    layouts=dict.fromkeys(directions, layers.layers),
    flops=lambda length: (
      layers.flops(length) * len(directions) + 2 * width * vocab
    ),
    growth=shared.growth,
  )


class RecurrentModel(nn.Module):
  """Embedding, layers, head.

  Attributes:
    vocab, bidirectional: see `make`.
    shared: what its parts have in common.
    stack: the layers of one direction.
    embedding, output: of the vocabulary.
  """

  vocab: int
  shared: parts.Shared
  stack: stack.Stack
  bidirectional: bool
  embedding: vocabulary.Embedding
  output: vocabulary.Output

  def setup(self):
    c = self.shared
    self.embed = vocabulary.embed(self.embedding, self.vocab, c)
    self.logits = vocabulary.logits(self.output, self.vocab, c)

  def head(self, x_BLD: jax.Array) -> jax.Array:
    """Scores the vocabulary: [B, L, V]; reads the forward stack alone."""
    return self.logits(
      x_BLD[..., : self.shared.width],
      self.embed.table() if self.output.tied else None,
    )

  @nn.compact
  def __call__(self, batch: types.Batch, cache: Any) -> types.Output:
    L = batch.tokens.shape[1]
    x_BLD = self.embed(batch.tokens, batch.positions).astype(self.shared.dtype)
    x_BLD = sharding.constrain(x_BLD, 'batch', 'length', None)
    text = parts.Text(batch.segments, batch.positions)
    forward = Direction(self.stack, self.shared, name='forward')
    if not self.bidirectional:
      x_BLD, cache = forward(x_BLD, text, cache)
      return types.Output(self.head(x_BLD), cache, {}, x_BLD)
    backward = Direction(self.stack, self.shared, name='backward')
    if batch.token_types is not None:
      left, right = slice(L // 2), slice(L // 2, L)
      halves = [
        side(
          x_BLD[:, part],
          parts.Text(text.segments[:, part], text.positions[:, part]),
          None,
        )
        for side, part in ((forward, left), (backward, right))
      ]
      x_BLD = jnp.concatenate([x for x, _ in halves], axis=1)
    else:
      flip = partial(jnp.flip, axis=1)
      back_BLD, _ = backward(flip(x_BLD), _reversed(text), None)
      x_BLD, cache = forward(x_BLD, text, cache)
      x_BLD = jnp.concatenate([x_BLD, flip(back_BLD)], axis=-1)
    return types.Output(self.head(x_BLD), cache, {}, x_BLD)


class Direction(nn.Module):
  """The layers that read in one direction, and dropout on what they give."""

  stack: stack.Stack
  shared: parts.Shared

  @nn.compact
  def __call__(self, x_BLD, text, cache):
    """Returns [B, L, D] and the new cache."""
    x_BLD, cache, _ = stack.run(self.stack, self, x_BLD, text, cache)
    c = self.shared
    x_BLD = blocks_lib.dropout(
      self, c.dropout, x_BLD, shared=(1,) * c.variational
    )
    return x_BLD, cache


def _reversed(text: parts.Text) -> parts.Text:
  """Turns a text around: a document starts where its last token is."""
  right_BL = jnp.pad(text.segments[:, 1:], ((0, 0), (0, 1)))
  ends_BL = text.segments != right_BL
  flip = partial(jnp.flip, axis=1)
  return parts.Text(
    flip(text.segments), jnp.where(flip(ends_BL), 0, 1).astype(jnp.int32)
  )
