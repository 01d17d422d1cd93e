"""Word embeddings: skip-gram (word2vec) by gradients, GloVe by counts.

Letters that `types` does not have: Z pairs of words that meet, P and Q blocks
of words, I and J the words of one, A = D + 2 columns of a vector and biases.

Reference: Mikolov et al. 2013, arXiv 1310.4546, section 2.2; Pennington, Socher
and Manning 2014, aclanthology D14-1162, sections 3 and 4.2.
"""

from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm import types
from lm.layers import vocabulary
from lm.models import linen, settings

AXES = ((r'(embed|context)/table$', ('vocab', 'embed')),)

_BLOCK = 64  # words; of 32 to 128 the fastest, and losses are the same
_CELLS = 2**26  # of the matrix, that are laid out at once: 256 MiB
_PAIRS = 2**22  # that are sorted at once


def make(*, vocab: int, width: int) -> types.Model:
  """Makes a table of words whose products tell which of them stand together.

  It reads pairs of `data.objectives.skip_gram`, a center in `tokens` and a word
  in `source`, and gives logits [B, L, 2]: class 1 if the word was found near
  the center, 0 if it was drawn at random. The cross-entropy of two classes, one
  of which has logit 0, is the paper's logistic loss. The vectors are
  `embed/table`.

  Args:
    vocab: V.
    width: D.

  Raises:
    ValueError: for a setting below 1.
  """
  settings.check_counts(vocab=vocab, width=width)
  return linen.bridge(SkipGram(vocab, width), AXES, _start, head=False)


def vectors(*, vocab: int, width: int) -> types.Model:
  """Makes a table of words alone, `embed/table`: what `glove` fits.

  `Output.hidden` is the tokens' vectors, so that a head over it reads a bag of
  words; logits [B, L, V] are their products with all vectors.

  Args:
    vocab: V.
    width: D.

  Raises:
    ValueError: for a setting below 1.
  """
  settings.check_counts(vocab=vocab, width=width)
  return linen.bridge(Vectors(vocab, width), AXES, _start)


def _start(params, batch, room) -> types.Cache:
  raise ValueError('word embeddings generate no text')


class SkipGram(nn.Module):
  """Two tables of vectors. Attributes as in `make`."""

  vocab: int
  width: int

  @nn.compact
  def __call__(self, batch: types.Batch, cache) -> types.Output:
    assert cache is None, 'word embeddings have no cache'
    # word2vec's: uniform within 1 / 2 D, and zeros for the words around.
    std = (12**0.5 * self.width) ** -1
    center_BLD = vocabulary.Embed(
      self.vocab, self.width, std=std, name='embed'
    )(batch.tokens)
    near_BLD = vocabulary.Embed(
      self.vocab, self.width, std=0.0, name='context'
    )(batch.source)
    score_BL = jnp.sum(center_BLD * near_BLD, axis=-1)
    logits_BL2 = jnp.stack([jnp.zeros_like(score_BL), score_BL], axis=-1)
    return types.Output(logits_BL2, None, {}, center_BLD)


class Vectors(nn.Module):
  """One table of vectors. Attributes as in `vectors`."""

  vocab: int
  width: int

  def setup(self):
    self.embed = vocabulary.Embed(self.vocab, self.width)
    self.logits = vocabulary.Logits(self.vocab, 'float32')

  def head(self, x_BLD: jax.Array) -> jax.Array:
    """Scores the vocabulary: [B, L, V]."""
    return self.logits(x_BLD, self.embed.table())

  def __call__(self, batch: types.Batch, cache) -> types.Output:
    assert cache is None, 'word embeddings have no cache'
    x_BLD = self.embed(batch.tokens)
    return types.Output(self.head(x_BLD), None, {}, x_BLD)


def glove(
  documents: Iterable[np.ndarray],
  *,
  vocab: int,
  bos: int,
  width: int,
  window: int = 10,
  cap: float = 100.0,
  power: float = 0.75,
  epochs: int = 25,
  rate: float = 0.05,
  seed: int = 0,
) -> types.Params:
  """Fits the parameters of `vectors` to how often words meet: GloVe.

  Two vectors and two biases a word, w, b of it as a word and c, d as one of
  those around, come from the least squares of

    min(X_ij / cap, 1)^power (w_i c_j + b_i + d_j - log X_ij)^2

  over the pairs that meet, by AdaGrad; `embed/table` is w + c, as in the paper.
  Each epoch prints the mean of that, which is taken as it goes.

  The paper takes pairs one by one in random order. Here an epoch cuts the words
  in random blocks of 64, once as rows and once as columns; the pairs of a block
  of rows and one of columns are taken at once, each with the gradient and the
  square it would have alone, and all blocks of rows side by side, with
  different columns. Then everything is a product of small matrices.

  Holds 12 bytes a pair, counted both ways, and up to 80 while it counts or lays
  out; beside that up to 512 MiB for a part of the matrix, 8 bytes a token of
  the longest document, and 32 V D. The same seed gives the same bits on the
  same machine.

  Args:
    documents: as `cooccurrences` takes them.
    vocab: V.
    bos: not a word here, since no document holds it.
    width: D.
    window: as of `cooccurrences`.
    cap: x_max, the count from which on a pair weighs 1.
    power: alpha, how weights grow up to there.
    epochs: passes over all pairs.
    rate: AdaGrad's. Its sums of squares start at 1 and, as in the authors'
      program, add up steps, which are gradients of half the loss times `rate`.
    seed: of initial values, uniform within 1 / 2 D, and of the order.

  Raises:
    ValueError: for settings out of range, ids outside the vocabulary, or no two
      words that meet.

  Reference: Pennington, Socher and Manning 2014, sections 3 and 4.2; the blocks
  are those of Gemulla et al. 2011, KDD, "Large-scale matrix factorization".
  """
  del bos
  settings.check_counts(vocab=vocab, width=width, window=window, epochs=epochs)
  for name, value in (('cap', cap), ('power', power), ('rate', rate)):
    if not 0 < value < float('inf'):
      raise ValueError(f'{name}={value} must be above 0')
  pairs = cooccurrences(documents, vocab=vocab, window=window)
  generator = np.random.default_rng(seed)
  blocks = -(-vocab // _BLOCK)  # the last one is filled up with no words
  parts = -(-blocks // max(1, _CELLS // (blocks * _BLOCK**2)))
  size = -(-blocks // parts)  # blocks of rows in a part
  sides = tuple(
    _side(generator, vocab, width, rows=count * _BLOCK, bias=bias, rate=rate)
    for count, bias in ((parts * size, width), (blocks, width + 1))
  )
  for epoch in range(epochs):
    total = 0.0
    order, columns = (generator.permutation(len(x.values)) for x in sides)
    for rows in np.split(order, parts):
      cells = _lay_out(pairs, rows, columns)
      sides, losses = _descend(
        sides, rows, columns, cells, cap=cap, power=power
      )
      total += float(np.sum(np.asarray(losses), dtype=np.float64))
    mean = total / len(pairs.words)
    print(f'epoch {epoch + 1} of {epochs}: loss {mean:.5f}', flush=True)
  word_VA, context_VA = (side.values[:vocab, :width] for side in sides)
  return {'embed': {'table': word_VA + context_VA}}


class Pairs(NamedTuple):
  """A sparse matrix of how often words meet, row by row.

  Attributes:
    starts: int64 [V + 1], where each row begins, and the end.
    words: int32 [Z], the columns, ascending in a row.
    counts: float64 [Z].
  """

  starts: np.ndarray
  words: np.ndarray
  counts: np.ndarray


def cooccurrences(
  documents: Iterable[np.ndarray], *, vocab: int, window: int
) -> Pairs:
  """Counts words that meet in a document, both ways: a symmetric matrix.

  Two words at distance d <= `window` add 1 / d to both of their entries; a word
  that meets itself so adds 2 / d to its one. The eos of a document is no word.

  Args:
    documents: int [length] each, ids that end in eos, without bos.
    vocab: V.
    window: the farthest distance.

  Raises:
    ValueError: for ids outside the vocabulary, or no two words that meet.
  """
  keys, sums = np.zeros(0, np.int64), np.zeros(0)
  waiting, count = [], 0
  for number, document in enumerate(documents):
    ids = np.asarray(document[:-1], np.int64)
    outside = ids[(ids < 0) | (ids >= vocab)]
    if outside.size:
      raise ValueError(
        f'document {number} holds id {outside[0]}, outside the vocabulary of '
        f'{vocab} ids: give the vocab that it was written with'
      )
    for apart in range(1, min(window, len(ids) - 1) + 1):
      left, right = ids[:-apart], ids[apart:]
      pair = np.minimum(left, right) * vocab + np.maximum(left, right)
      waiting.append(pair * window + apart - 1)  # to be sorted as one number
      count += len(pair)
      if count >= _PAIRS:
        keys, sums = _add(keys, sums, waiting, window)
        waiting, count = [], 0
  keys, sums = _add(keys, sums, waiting, window)
  if not len(keys):
    raise ValueError('no two words meet: give documents of two words or more')
  left, right = np.divmod(keys, vocab)
  apart = left != right
  sums[~apart] *= 2
  row = np.concatenate([left, right[apart]])
  word = np.concatenate([right, left[apart]])
  order = np.argsort(row * vocab + word)
  starts = np.searchsorted(row[order], np.arange(vocab + 1))
  counts = np.concatenate([sums, sums[apart]])[order]
  return Pairs(starts, word[order].astype(np.int32), counts)


def _add(keys, sums, waiting, window) -> tuple[np.ndarray, np.ndarray]:
  """Adds counts of pairs, each with its distance, to sums by sorted keys."""
  if not waiting:
    return keys, sums
  new = np.concatenate(waiting)
  new.sort()
  pair, nearer = np.divmod(new, window)
  keys = np.concatenate([keys, pair])
  sums = np.concatenate([sums, 1 / (1.0 + nearer)])
  order = np.argsort(keys, kind='stable')  # two sorted runs: merged
  keys, sums = keys[order], sums[order]
  first = np.flatnonzero(np.diff(keys, prepend=-1))
  return keys[first], np.add.reduceat(sums, first)


class _Side(NamedTuple):
  """One of the two tables that are fitted.

  Attributes:
    values: float32 [.., A], a vector, its bias, and a one that the other side's
      bias is multiplied with; of the other side, the last two change places.
    squares: float32 [.., A], AdaGrad's sums.
    rate: float32 [A], 0 for the ones.
  """

  values: jax.Array
  squares: jax.Array
  rate: jax.Array


def _side(generator, vocab, width, *, rows, bias, rate) -> _Side:
  """Makes a table of `rows` >= V, whose column `bias` holds the biases."""
  values_VA = np.zeros((rows, width + 2), np.float32)
  values_VA[:vocab] = generator.uniform(
    -0.5 / width, 0.5 / width, (vocab, width + 2)
  )
  is_one_A = np.arange(width + 2) == 2 * width + 1 - bias
  values_VA[:, is_one_A] = 1
  rate_A = np.where(is_one_A, 0, rate).astype(np.float32)
  return _Side(*map(jnp.asarray, (values_VA, np.ones_like(values_VA), rate_A)))


def _lay_out(pairs: Pairs, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
  """Writes rows of a matrix as small dense ones: float32 [Q, P, I, J].

  Args:
    pairs: the matrix.
    rows: words of P blocks; those from V on are none.
    columns: words of Q blocks, as `rows`.

  Returns:
    At [q, p], block p of the rows with block (p + q) mod Q of the columns.
  """
  last = len(pairs.starts) - 1
  begin = pairs.starts[np.minimum(rows, last)]
  sizes = pairs.starts[np.minimum(rows + 1, last)] - begin
  place = np.arange(sizes.sum()) + np.repeat(
    begin - np.cumsum(sizes) + sizes, sizes
  )
  column_of = np.empty_like(columns)
  column_of[columns] = np.arange(len(columns))
  p, i = np.divmod(np.repeat(np.arange(len(rows)), sizes), _BLOCK)
  q, j = np.divmod(column_of[pairs.words[place]], _BLOCK)
  P, Q = len(rows) // _BLOCK, len(columns) // _BLOCK
  cells = np.zeros((Q, P, _BLOCK, _BLOCK), np.float32)
  cells[(q - p) % Q, p, i, j] = pairs.counts[place]
  return cells


@partial(jax.jit, donate_argnums=0)
def _descend(
  sides: tuple[_Side, _Side], rows, columns, cells_QPIJ, *, cap, power
) -> tuple[tuple[_Side, _Side], jax.Array]:
  """Takes all pairs of a part once; gives the sides and Q sums of losses."""
  _, P, I, _ = cells_QPIJ.shape

  def learn(side, gradient, square):
    # A step is rate * gradient; a square is of what each pair alone would give.
    rate_11A = side.rate[None, None]
    return side._replace(
      values=side.values - rate_11A * gradient * jax.lax.rsqrt(side.squares),
      squares=side.squares + rate_11A**2 * square,
    )

  def step(carry, count_PIJ):
    word, context = carry
    near = context._replace(
      values=context.values[:P], squares=context.squares[:P]
    )
    w_PIA, c_PJA = word.values, near.values
    met_PIJ = count_PIJ > 0
    weight_PIJ = jnp.where(met_PIJ, jnp.minimum(count_PIJ / cap, 1) ** power, 0)
    miss_PIJ = jnp.einsum('PIA,PJA->PIJ', w_PIA, c_PJA)
    miss_PIJ -= jnp.log(jnp.where(met_PIJ, count_PIJ, 1))
    pull_PIJ = weight_PIJ * miss_PIJ
    word = learn(
      word,
      jnp.einsum('PIJ,PJA->PIA', pull_PIJ, c_PJA),
      jnp.einsum('PIJ,PJA->PIA', pull_PIJ**2, c_PJA**2),
    )
    near = learn(
      near,
      jnp.einsum('PIJ,PIA->PJA', pull_PIJ, w_PIA),
      jnp.einsum('PIJ,PIA->PJA', pull_PIJ**2, w_PIA**2),
    )
    # The next block of columns for each block of rows.
    context = context._replace(
      values=jnp.roll(context.values.at[:P].set(near.values), -1, axis=0),
      squares=jnp.roll(context.squares.at[:P].set(near.squares), -1, axis=0),
    )
    return (word, context), jnp.sum(pull_PIJ * miss_PIJ)

  def cut(side, order):
    shape = (-1, I, side.values.shape[1])
    return side._replace(
      values=side.values[order].reshape(shape),
      squares=side.squares[order].reshape(shape),
    )

  def join(side, order, found):
    shape = (-1, side.values.shape[1])
    return side._replace(
      values=side.values.at[order].set(found.values.reshape(shape)),
      squares=side.squares.at[order].set(found.squares.reshape(shape)),
    )

  orders = (rows, columns)
  found, losses_Q = jax.lax.scan(
    step, tuple(map(cut, sides, orders)), cells_QPIJ
  )
  return tuple(map(join, sides, orders, found)), losses_Q
