"""Counts n-grams on the host, and estimates how much mass each gets.

Letters that `types` does not have: T tokens that are counted, W n-grams of one
order, X contexts.

Reference: Chen and Goodman 1998, TR-10-98, section 3.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

# The discounts of n-grams seen once, twice and more often, where the counts are
# too few to estimate them. KenLM's `--discount_fallback` has the same values.
_DISCOUNTS = (0.5, 1.0, 1.5)


class Level(NamedTuple):
  """The n-grams of one order, sorted by context and word.

  Attributes:
    counts: int64 [W], how often each occurs.
    parents: int64 [W], the context of each, as its index in the order below.
    words: int64 [W], the last word of each.
  """

  counts: np.ndarray
  parents: np.ndarray
  words: np.ndarray


def stream(
  documents: Iterable[np.ndarray], vocab: int, bos: int
) -> tuple[np.ndarray, np.ndarray]:
  """Joins documents, with bos before each.

  Args:
    documents: int [length] each, ids that end in eos, without bos.
    vocab: V.
    bos: the id before each document.

  Returns:
    The tokens, int64 [T], and the place of each in its document, int64 [T],
    where bos has place 0.

  Raises:
    ValueError: an id is outside the vocabulary, or no document has a token.
  """
  parts = [np.asarray(document) for document in documents]
  sizes = np.array([len(part) + 1 for part in parts], np.int64)
  starts = np.cumsum(sizes) - sizes
  if sizes.sum() == len(parts):
    raise ValueError('no documents: give at least one that has tokens')
  tokens_T = np.concatenate(
    [ids for part in parts for ids in ([bos], part)], dtype=np.int64
  )
  outside = np.flatnonzero((tokens_T < 0) | (tokens_T >= vocab))
  if outside.size:
    document = np.searchsorted(starts, outside[0], side='right') - 1
    raise ValueError(
      f'document {document} holds id {tokens_T[outside[0]]}, outside the '
      f'vocabulary of {vocab} ids: give the vocab that it was written with'
    )
  places_T = np.arange(len(tokens_T)) - np.repeat(starts, sizes)
  return tokens_T, places_T


def count(
  tokens_T: np.ndarray,
  places_T: np.ndarray,
  vocab: int,
  order: int,
  bos: int,
  *,
  continuations: bool,
) -> list[Level]:
  """Counts the n-grams of every order.

  Each order is built from the one below: an n-gram is one integer, made of the
  index there of all its words but the last, and of its last word.

  Args:
    tokens_T, places_T: from `stream`.
    vocab: V.
    order: the length of the longest n-gram, in tokens.
    bos: the id at place 0 of each document.
    continuations: whether n-grams below the highest order count the different
      words to their left, unless they begin with bos.
  """
  # The index of the n-gram that ends at each token. That of a word is its id.
  ends_T = tokens_T
  counts = np.bincount(tokens_T[places_T > 0], minlength=vocab)
  levels = [Level(counts, np.zeros(vocab, np.int64), np.arange(vocab))]
  begins = np.zeros(vocab, bool)
  for n in range(2, order + 1):
    at = np.flatnonzero(places_T >= n - 1)
    keys, first, ends, counts = np.unique(
      ends_T[at - 1] * vocab + tokens_T[at],
      return_index=True,
      return_inverse=True,
      return_counts=True,
    )
    below = levels[-1]
    if continuations:
      # Each different n-gram adds one word to the left of its last n - 1 words.
      left = np.bincount(ends_T[at[first]], minlength=len(below.counts))
    else:
      left = 0
    levels[-1] = below._replace(counts=np.where(begins, below.counts, left))
    parents, words = np.divmod(keys, vocab)
    levels.append(Level(counts, parents, words))
    begins = parents == bos if n == 2 else begins[parents]
    ends_T = np.zeros_like(tokens_T)
    ends_T[at] = ends
  return levels


def kneser_ney(level: Level, contexts: int) -> tuple[np.ndarray, np.ndarray]:
  """Estimates mass [W] and gamma [X] by modified Kneser-Ney.

  Args:
    level: the n-grams of one order.
    contexts: X, how many n-grams the order below has.
  """
  discounts = np.array([0, *_discounts(level.counts)])
  # D1 <= 1, D2 <= 2 and D3+ <= 3, so no mass is below 0.
  taken_W = discounts[np.minimum(level.counts, 3)]
  # A context that no word follows leaves everything to the shorter one.
  total_X = np.bincount(level.parents, level.counts, contexts)
  taken_X = np.bincount(level.parents, taken_W, contexts)
  mass_W = (level.counts - taken_W) / total_X[level.parents]
  gamma_X = np.where(total_X > 0, taken_X / np.maximum(total_X, 1), 1)
  return mass_W, gamma_X


def _discounts(counts: np.ndarray) -> tuple[float, ...]:
  """Estimates D1, D2 and D3+ from the counts of one order (equation 26).

  Returns `_DISCOUNTS` where the counts do not allow an estimate.
  """
  n1, n2, n3, n4 = (float(np.sum(counts == c)) for c in range(1, 5))
  if not n1 * n2 * n3 * n4:
    return _DISCOUNTS
  y = n1 / (n1 + 2 * n2)
  discounts = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
  # With a discount of 0 or less, unseen words would get no probability.
  return discounts if min(discounts) > 0 else _DISCOUNTS


def add_k(
  level: Level, contexts: int, *, weight: float
) -> tuple[np.ndarray, np.ndarray]:
  """Estimates mass [W] and gamma [X] by add-k.

  Args:
    level: the n-grams of one order.
    contexts: X, how many n-grams the order below has.
    weight: k V, what is added to the count of a context.
  """
  total_X = np.bincount(level.parents, level.counts, contexts) + weight
  return level.counts / total_X[level.parents], weight / total_X
