"""Recurrent language models: Elman's network, LSTM, GRU, and both directions.

Reference: Mikolov et al. 2010, Interspeech (recurrent language models); Zaremba
et al. 2014, arXiv 1409.2329 (LSTM); Peters et al. 2018, arXiv 1802.05365
(ELMo).
"""

from functools import partial
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from lm import sharding, types
from lm.layers import blocks, recurrent, vocabulary
from lm.models import linen, settings

AXES = (
  (r'embed/table$', ('vocab', 'embed')),
  (r'layers_\d+/input$', ('embed', None, 'mlp')),
  # The state is needed whole at every step: only its result is cut.
  (r'layers_\d+/state$', (None, None, 'mlp')),
  (r'layers_\d+/bias$', (None, 'mlp')),
  (r'head/kernel$', ('embed', 'vocab')),
  (r'head/bias$', ('vocab',)),
)


def make(
  *,
  vocab: int,
  width: int,
  depth: int,
  cell: str = 'lstm',
  bidirectional: bool = False,
  tied: bool = True,
  dropout: float = 0.0,
  variational: bool = True,
  embed_std: float = 0.1,
  dtype: str = 'float32',
  compute_dtype: str = 'float32',
) -> types.Model:
  """Makes a recurrent language model; the carry is its cache.

  The carry is forgotten where a document starts, and at the edge of a window
  as positions restart there: gradients and states reach one window back.

  Args:
    vocab: V.
    width: D, of embeddings and of every layer.
    depth: layers.
    cell: 'elman', 'lstm' or 'gru', see `layers.recurrent`.
    bidirectional: adds a second stack that reads from the right. A batch with
      `token_types` trains both (`data.objectives.bidirectional`): the first half of its
      columns is read forwards, the second is text in reverse. Without `token_types`,
      logits are those of the forward stack, and `Output.hidden` [B, L, 2 D] has
      both: ELMo's features of the last layer.
    tied: the output layer is the embedding table. Reference: Press and Wolf
      2017, arXiv 1608.05859.
    dropout: rate on what each layer and the output read.
    variational: one mask for all steps, on the state's products too. Reference:
      Gal and Ghahramani 2016, arXiv 1512.05287.
    embed_std: deviation of the initial table.
    dtype, compute_dtype: as of `decoder.make`.

  Raises:
    ValueError: for settings that do not fit together.
  """
  settings.check_choices(
    cell=(cell, recurrent.CELLS),
    dtype=(dtype, settings.DTYPES),
    compute_dtype=(compute_dtype, settings.DTYPES),
  )
  settings.check_counts(vocab=vocab, width=width, depth=depth)
  settings.check_rates(dropout=dropout)
  module = RecurrentModel(
    vocab=vocab,
    width=width,
    depth=depth,
    cell=cell,
    bidirectional=bidirectional,
    tied=tied,
    dropout=dropout,
    variational=variational,
    embed_std=embed_std,
    dtype=dtype,
    compute_dtype=compute_dtype,
  )

  def start(params, batch, room):
    del params, room  # a carry has room for any length
    return _start(module, len(batch.tokens))

  return linen.bridge(module, AXES, start)


class RecurrentModel(nn.Module):
  """Embedding, layers, head. Attributes as in `make`."""

  vocab: int
  width: int
  depth: int
  cell: str
  bidirectional: bool
  tied: bool
  dropout: float
  variational: bool
  embed_std: float
  dtype: str
  compute_dtype: str

  def setup(self):
    self.embed = vocabulary.Embed(self.vocab, self.width, std=self.embed_std)
    self.logits = vocabulary.Logits(
      self.vocab, self.compute_dtype, self.width**-0.5, bias=True, name='head'
    )

  def head(self, x_BLD: jax.Array) -> jax.Array:
    """Scores the vocabulary: [B, L, V]; reads the forward stack alone."""
    return self.logits(
      x_BLD[..., : self.width], self.embed.table() if self.tied else None
    )

  @nn.compact
  def __call__(self, batch: types.Batch, cache: Any) -> types.Output:
    B, L = batch.tokens.shape
    x_BLD = self.embed(batch.tokens).astype(self.dtype)
    x_BLD = sharding.constrain(x_BLD, 'batch', 'length', None)
    live_BL, starts_BL = batch.segments > 0, batch.positions == 0
    carry = _start(self, B) if cache is None else cache
    layers = partial(
      Layers,
      cell=self.cell,
      depth=self.depth,
      dropout=self.dropout,
      variational=self.variational,
      dtype=self.dtype,
      compute_dtype=self.compute_dtype,
    )
    forward = layers(name='forward')
    if not self.bidirectional:
      x_BLD, carry = forward(x_BLD, starts_BL, live_BL, carry)
    else:
      backward = layers(name='backward')
      if batch.token_types is not None:
        halves = [
          side(x_BLD[:, part], starts_BL[:, part], live_BL[:, part], carry)[0]
          for side, part in (
            (forward, slice(L // 2)),
            (backward, slice(L // 2, L)),
          )
        ]
        x_BLD = jnp.concatenate(halves, axis=1)
      else:
        # From the right, a document starts where its last token is.
        right_BL = jnp.pad(batch.segments[:, 1:], ((0, 0), (0, 1)))
        ends_BL = batch.segments != right_BL
        flip = partial(jnp.flip, axis=1)
        back_BLD, _ = backward(
          flip(x_BLD), flip(ends_BL), flip(live_BL), _start(self, B)
        )
        x_BLD, carry = forward(x_BLD, starts_BL, live_BL, carry)
        x_BLD = jnp.concatenate([x_BLD, flip(back_BLD)], axis=-1)
    return types.Output(
      self.head(x_BLD), None if cache is None else carry, {}, x_BLD
    )


def _start(c: RecurrentModel, batch: int) -> tuple[recurrent.Carry, ...]:
  return (recurrent.start(c.cell, batch, c.width),) * c.depth


class Layers(nn.Module):
  """The layers that read in one direction, with dropout around each.

  Attributes as in `make`.
  """

  cell: str
  depth: int
  dropout: float
  variational: bool
  dtype: str
  compute_dtype: str

  @nn.compact
  def __call__(self, x_BLD, starts_BL, live_BL, carry):
    B, _, D = x_BLD.shape
    # One mask for all steps: they share it along the dimension of time.
    drop = partial(
      blocks.dropout, self, self.dropout, shared=(1,) * self.variational
    )
    new = []
    for i in range(self.depth):
      keep_BD = None
      if self.variational and self.dropout:
        keep_BD = blocks.dropout(self, self.dropout, jnp.ones((B, D)))
      x_BLD, last = recurrent.Recurrent(
        self.cell,
        nn.initializers.normal(D**-0.5),
        self.dtype,
        self.compute_dtype,
        name=f'layers_{i}',
      )(drop(x_BLD), starts_BL, live_BL, carry[i], keep_BD)
      x_BLD = sharding.constrain(x_BLD, 'batch', 'length', None)
      new.append(last)
    return drop(x_BLD), tuple(new)
