"""Word embeddings: skip-gram (word2vec) by gradients, GloVe by counts.

Letters that `types` does not have: Z pairs of words that occur together; P
blocks of rows of their matrix and Q blocks of its columns, with I and J words
in each; A = D + 2, the columns of a vector with its bias and a one.

References: Mikolov et al. 2013, arXiv 1310.4546, section 2.2; Pennington,
Socher and Manning 2014, aclanthology D14-1162, sections 3 and 4.2.
"""

from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm import types
from lm.layers import checks, parts, vocabulary
from lm.models import linen

ROWS = (
  parts.Row(r'embed/table$', ('vocab', 'embed'), 1, hidden=False),
  parts.Row(r'context/table$', ('vocab', 'embed')),
)

_BLOCK = 64  # words in a block; of 32 to 128 the fastest, at the same loss
_CELLS = 2**26  # entries of the matrix that are laid out at once: 256 MiB
_PAIRS = 2**22  # pairs that are sorted at once


def make(*, vocab: int, width: int) -> types.Model:
  """Makes a skip-gram model; its word vectors are `embed/table`.

  It reads the pairs of `data.objectives.skip_gram`, a center word in `tokens`
  and another word in `source`. Its logits [B, L, 2] tell whether the other word
  was found near the center (class 1) or drawn at random (class 0). Since class
  0 always has logit 0, the cross-entropy is the paper's logistic loss.

  Args:
    vocab: V.
    width: D.

  Raises:
    ValueError: a setting is below 1.
  """
  checks.check_counts(vocab=vocab, width=width)
  return linen.bridge(SkipGram(vocab, width), ROWS, _start, head=False)


def vectors(*, vocab: int, width: int) -> types.Model:
  """Makes a model that is nothing but word vectors, `embed/table`.

  `glove` fits its parameters. `Output.hidden` has the vectors of the tokens, so
  that a head over this model reads a bag of words. Logits [B, L, V] are the
  products with all vectors.

  Args:
    vocab: V.
    width: D.

  Raises:
    ValueError: a setting is below 1.
  """
  checks.check_counts(vocab=vocab, width=width)
  return linen.bridge(Vectors(vocab, width), ROWS, _start)


def _start(params, batch, room) -> types.Cache:
  raise ValueError('word embeddings generate no text')


class SkipGram(nn.Module):
  """Two tables of vectors, for center words and for words around them.

  Attributes:
    vocab: V.
    width: D.
  """

  vocab: int
  width: int

  @nn.compact
  def __call__(self, batch: types.Batch, cache) -> types.Output:
    assert cache is None, 'word embeddings have no cache'
    # The deviation of word2vec, whose vectors are uniform within 1 / 2 D. As
    # there, the other table starts at 0.
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
  """One table of vectors.

  Attributes:
    vocab: V.
    width: D.
  """

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
  """Fits the parameters of `vectors` to counts of words that occur together.

  This is GloVe. Each word has a vector w and a bias b as a center, and a vector
  c and a bias d as a neighbour. They minimize

    min(X_ij / cap, 1)^power (w_i c_j + b_i + d_j - log X_ij)^2

  over the pairs i, j with a count X_ij above 0, by AdaGrad. `embed/table` is
  w + c, as in the paper. Each epoch prints the mean of this loss, where each
  pair counts as it was before its update.

  The paper takes pairs one by one in random order. Here an epoch cuts the words
  into random blocks of 64, once as rows and once as columns. All pairs of a
  block of rows and a block of columns are updated at once, each with the
  gradient and the square that it would have alone; and all blocks of rows are
  updated side by side, each with another block of columns. So all work is in
  products of small matrices.

  Memory: 12 bytes a pair, counted both ways, and up to 80 while pairs are
  counted or laid out; up to 512 MiB for a part of the matrix, 8 bytes a token
  of the longest document, and 32 V D bytes.

  The same seed gives the same bits on the same machine.

  Args:
    documents: the same as in `cooccurrences`.
    vocab: V.
    bos: unused, since documents have no bos; all functions that `lm.fit` calls
      accept it.
    width: D.
    window: the farthest distance of two words, see `cooccurrences`.
    cap: x_max, the count from which on a pair has weight 1.
    power: alpha, how weights grow up to there.
    epochs: passes over all pairs.
    rate: the learning rate of AdaGrad. Its sums of squares start at 1. As in
      the authors' program they sum the squares of steps, where a step is `rate`
      times the gradient of half the loss.
    seed: of the initial values, uniform within 1 / 2 D, and of the order.

  Raises:
    ValueError: a setting is out of range, an id is outside the vocabulary, or
      no two words occur together.

  Reference: Pennington, Socher and Manning 2014, sections 3 and 4.2; the blocks
  are those of Gemulla et al. 2011, KDD, "Large-scale matrix factorization".
  """
  del bos
  checks.check_counts(vocab=vocab, width=width, window=window, epochs=epochs)
  for name, value in (('cap', cap), ('power', power), ('rate', rate)):
    if not 0 < value < float('inf'):
      raise ValueError(f'{name}={value} must be above 0')
  pairs = cooccurrences(documents, vocab=vocab, window=window)
  generator = np.random.default_rng(seed)
  blocks = -(-vocab // _BLOCK)  # the last one is filled up with empty words
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
      cells_QPIJ = _lay_out(pairs, rows, columns)
      sides, losses = _descend(
        sides, rows, columns, cells_QPIJ, cap=cap, power=power
      )
      total += float(np.sum(np.asarray(losses), dtype=np.float64))
    mean = total / len(pairs.words)
    print(f'epoch {epoch + 1} of {epochs}: loss {mean:.5f}', flush=True)
  word_VA, context_VA = (side.values[:vocab, :width] for side in sides)
  return {'embed': {'table': word_VA + context_VA}}


class Pairs(NamedTuple):
  """A sparse matrix of how often words occur together, row by row.

  Attributes:
    starts: int64 [V + 1], where each row begins, and where the last one ends.
    words: int32 [Z], the columns, ascending within a row.
    counts: float64 [Z], the entries.
  """

  starts: np.ndarray
  words: np.ndarray
  counts: np.ndarray


def cooccurrences(
  documents: Iterable[np.ndarray], *, vocab: int, window: int
) -> Pairs:
  """Counts how often words occur together: a symmetric matrix.

  Two words of a document at a distance d <= `window` add 1 / d to each of their
  two entries; a word and itself add 2 / d to their single entry. The eos of a
  document does not count as a word.

  Args:
    documents: int [length] each, ids that end in eos, without bos.
    vocab: V.
    window: the farthest distance, in words.

  Raises:
    ValueError: an id is outside the vocabulary, or no two words occur together.
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
    for distance in range(1, min(window, len(ids) - 1) + 1):
      left, right = ids[:-distance], ids[distance:]
      # A pair and its distance in one integer, which sorts faster than records.
      # Half of the symmetric matrix is enough until the end.
      pair = np.minimum(left, right) * vocab + np.maximum(left, right)
      waiting.append(pair * window + distance - 1)
      count += len(pair)
      if count >= _PAIRS:
        keys, sums = _add(keys, sums, waiting, window)
        waiting, count = [], 0
  keys, sums = _add(keys, sums, waiting, window)
  if not len(keys):
    raise ValueError(
      'no two words occur together: give documents of two words or more'
    )
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
  """Adds new pairs to the sums of the pairs counted so far.

  Args:
    keys: the pairs counted so far, ascending.
    sums: the count of each.
    waiting: arrays of new pairs, each as `pair * window + distance - 1`.
    window: the farthest distance.

  Returns:
    The new `keys` and `sums`.
  """
  if not waiting:
    return keys, sums
  new = np.concatenate(waiting)
  new.sort()
  pair, before = np.divmod(new, window)  # before: distance - 1
  keys = np.concatenate([keys, pair])
  sums = np.concatenate([sums, 1 / (1.0 + before)])
  order = np.argsort(keys, kind='stable')  # merges two sorted runs
  keys, sums = keys[order], sums[order]
  first = np.flatnonzero(np.diff(keys, prepend=-1))
  return keys[first], np.add.reduceat(sums, first)


class _Side(NamedTuple):
  """One of the two tables that are fitted, for centers or for neighbours.

  Attributes:
    values: float32 [.., A]. A row is a vector, its bias, and a one, which is
      multiplied with the bias of the other side; the other side has the last
      two in the other order. So one product of rows gives w c + b + d.
    squares: float32 [.., A], the sums of squares of AdaGrad.
    rate: float32 [A], the learning rate, and 0 for the column of ones.
  """

  values: jax.Array
  squares: jax.Array
  rate: jax.Array


def _side(generator, vocab, width, *, rows, bias, rate) -> _Side:
  """Makes a table of `rows` >= V rows, whose column `bias` holds the biases."""
  values_VA = np.zeros((rows, width + 2), np.float32)
  values_VA[:vocab] = generator.uniform(
    -0.5 / width, 0.5 / width, (vocab, width + 2)
  )
  # Of the two last columns, D and D + 1, the one that is not the bias.
  is_one_A = np.arange(width + 2) == 2 * width + 1 - bias
  values_VA[:, is_one_A] = 1
  rate_A = np.where(is_one_A, 0, rate).astype(np.float32)
  return _Side(*map(jnp.asarray, (values_VA, np.ones_like(values_VA), rate_A)))


def _lay_out(pairs: Pairs, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
  """Writes some rows of the matrix as small dense ones: float32 [Q, P, I, J].

  Args:
    pairs: the sparse matrix.
    rows: the words of P blocks; numbers from V on stand for no word.
    columns: the words of Q blocks, in the same form.

  Returns:
    At [q, p] the entries of row block p and column block (p + q) mod Q, so that
    the P blocks at one q have no row and no column in common.
  """
  last = len(pairs.starts) - 1
  begin = pairs.starts[np.minimum(rows, last)]
  sizes = pairs.starts[np.minimum(rows + 1, last)] - begin
  # The places in `pairs` of all entries of these rows, one row after another.
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
  """Updates both sides by all pairs of a part: the sides, and Q sums of losses.

  Args:
    sides: centers and neighbours.
    rows, columns: the words of P and of Q blocks, see `_lay_out`.
    cells_QPIJ: counts, from `_lay_out`.
    cap, power: see `glove`.
  """
  _, P, I, _ = cells_QPIJ.shape

  def learn(side, gradient, square):
    # A step is rate * gradient. `square` sums the squares of each pair's own
    # gradient, as if pairs came one by one; the square of the sum is another.
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
    met_PIJ = count_PIJ > 0  # pairs that never occur have no part in the loss
    weight_PIJ = jnp.where(met_PIJ, jnp.minimum(count_PIJ / cap, 1) ** power, 0)
    # w_i c_j + b_i + d_j - log X_ij, for all pairs of words of two blocks.
    miss_PIJ = jnp.einsum('PIA,PJA->PIJ', w_PIA, c_PJA)
    miss_PIJ -= jnp.log(jnp.where(met_PIJ, count_PIJ, 1))
    pull_PIJ = weight_PIJ * miss_PIJ
    # Each word's gradient is a sum over the words of the other block; squares
    # of products are products of squares.
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
    # Every block of rows meets its next block of columns.
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

  def join(side, order, fitted):
    shape = (-1, side.values.shape[1])
    return side._replace(
      values=side.values.at[order].set(fitted.values.reshape(shape)),
      squares=side.squares.at[order].set(fitted.squares.reshape(shape)),
    )

  orders = (rows, columns)
  fitted, losses_Q = jax.lax.scan(
    step, tuple(map(cut, sides, orders)), cells_QPIJ
  )
  return tuple(map(join, sides, orders, fitted)), losses_Q
