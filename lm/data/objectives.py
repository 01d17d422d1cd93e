"""Objectives: how a window of the token stream becomes a training example.

An example is a pure function of its row, size and key: neither the other rows
of the batch nor earlier batches can change it. So a batch is a function of its
step, with any number of hosts, threads and restarts.

A config names a factory, which is in this file, in masking.py or in
corruption.py. It takes the tokenizer and L, the length of the scored side, and
settings of its own.
"""

from collections.abc import Callable, Sequence
import math
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from lm import types
from lm.data import windows

CAUSAL = MappingProxyType({'fn': 'lm.data.objectives:causal'})
_NOISE_POWER = 0.75  # of the counts of words; Mikolov et al. 2013, section 2.2


class Objective(NamedTuple):
  """A way to make examples.

  Attributes:
    window: W, tokens of the stream that one example uses.
    make: `(rows, sizes, keys) -> Batch`, see `windows.Windows.read`. rows,
      int32 [B, W + 1], are the token before the window and then the window.
      sizes, int64 [B], 0..W, count the tokens of the window that are not
      padding; what follows them in a row has no meaning, and rows may be
      written over. keys, uint64 [B], one an example, are the only source of
      randomness.
    likelihood: whether each token of the window is scored once, given only the
      tokens to its left; then the sum of the losses is that of the text.
    prompt: `(ids of texts) -> Batch`, which a model trained with this objective
      continues, for `generate`; None: it does not continue texts.
  """

  window: int
  make: Callable[[np.ndarray, np.ndarray, np.ndarray], types.Batch]
  likelihood: bool = False
  prompt: Callable[[Sequence[Sequence[int]]], types.Batch] | None = None


def example(objective: Objective, batch_size: int) -> types.Batch:
  """Makes a batch of zeros, for shapes and types."""
  row = np.zeros((1, objective.window + 1), np.int32)
  batch = objective.make(row, np.zeros(1, np.int64), np.zeros(1, np.uint64))
  return types.Batch(
    *[
      None if x is None else np.zeros((batch_size, *x.shape[1:]), x.dtype)
      for x in batch
    ]
  )


def padded(rows: Sequence[Sequence[int]], pad: int) -> types.Batch:
  """Makes a batch of rows of ids of any length, padded on the right.

  Raises:
    ValueError: a row is empty, so it has no last token to continue from.
  """
  if not all(rows):
    raise ValueError('a prompt has no tokens: begin it with bos')
  L = max(map(len, rows))
  tokens_BL = np.full((len(rows), L), pad, np.int32)
  for row, ids in zip(tokens_BL, rows, strict=True):
    row[: len(ids)] = ids
  lengths_B1 = np.array([len(ids) for ids in rows])[:, None]
  segments_BL = (np.arange(L)[None] < lengths_B1).astype(np.int32)
  return types.Batch(
    tokens=tokens_BL,
    targets=tokens_BL,
    weights=segments_BL.astype(np.float32),
    positions=np.tile(np.arange(L, dtype=np.int32), (len(rows), 1)),
    segments=segments_BL,
  )


def causal(*, tokenizer: types.Tokenizer, length: int) -> Objective:
  """Predicts every token from those before it; see `windows.pack`.

  Raises:
    ValueError: a setting is out of range.
  """
  check_whole('length', length, 1)

  def make(rows, sizes, keys):
    del keys  # nothing is random
    return windows.pack(rows, sizes, tokenizer)

  return Objective(length, make, likelihood=True, prompt=_prompt(tokenizer))


def prefix_lm(*, tokenizer: types.Tokenizer, length: int) -> Objective:
  """Predicts the rest of each document from a prefix.

  The first p of a document's n positions are its prefix, with p uniform on
  1..n - 1; a document of one position has none. Prefix positions attend to each
  other in both directions, so a position l < p - 1 attends to its own target
  and is not scored. The last position of the prefix predicts the first token
  after it.

  Raises:
    ValueError: a setting is out of range.

  Reference: Raffel et al. 2020, arXiv 1910.10683, sections 3.2.1 and 3.2.3.
  Their example is one text; here each packed document is split by itself.
  """
  check_whole('length', length, 1)

  def make(rows, sizes, keys):
    batch = windows.pack(rows, sizes, tokenizer)
    prefix = np.zeros(batch.tokens.shape, bool)
    for b, generator in enumerate(map(generator_of, keys)):
      count = np.bincount(batch.segments[b])  # positions of each document
      split = generator.integers(1, np.maximum(count, 2))
      split[count < 2] = 0
      split[0] = 0  # segment 0 is padding
      split = split[batch.segments[b]]
      prefix[b] = batch.positions[b] < split
      batch.weights[b, batch.positions[b] + 1 < split] = 0
    return batch._replace(prefix=prefix)

  def prompt(texts):
    batch = _prompt(tokenizer)(texts)
    return batch._replace(prefix=batch.segments > 0)

  return Objective(length, make, prompt=prompt)


def bidirectional(*, tokenizer: types.Tokenizer, length: int) -> Objective:
  """Predicts every token from those before it, and from those after it.

  The batch is [B, 2 L]. Columns 0..L - 1 are those of `causal`; the others are
  the same row from right to left, packed by the same rules. Their token types
  are 0 and 1, and a model has a network for each half. Reversed, a document
  begins with bos, and the target after its first token is eos. At the window's
  right edge, the one token beyond it is an input, like the token before the
  left edge in the first half. So in an epoch every token, eos included, is a
  target once in each half. Positions count from 0 and segments from 1 in each
  half.

  Raises:
    ValueError: a setting is out of range.

  Reference: Peters et al. 2018, arXiv 1802.05365, section 3.1, whose texts are
  single sentences.
  """
  check_whole('length', length, 1)

  def make(rows, sizes, keys):
    del keys  # nothing is random
    # Each row is reversed from its own last token, so that padding stays at the
    # end.
    column = np.maximum(sizes[:, None] - np.arange(length + 1), 0)
    reverse = np.take_along_axis(rows, column, axis=1)
    halves = [windows.pack(x, sizes, tokenizer) for x in (rows, reverse)]
    fields = zip(halves[0][:5], halves[1][:5], strict=True)
    token_types = np.repeat(np.array([[0, 1]], np.int32), length, axis=1)
    return types.Batch(
      *[np.concatenate(pair, axis=1) for pair in fields],
      token_types=np.tile(token_types, (len(rows), 1)),
    )

  return Objective(length, make, prompt=_prompt(tokenizer))


def skip_gram(
  *,
  tokenizer: types.Tokenizer,
  length: int,
  context: int = 5,
  negatives: int = 5,
) -> Objective:
  """Distinguishes words near each other from words drawn at random.

  An example is a list of L pairs in no order: a center in `tokens`, a context
  word or a noise word in `source`, and class 1 or 0 in `targets`. Centers are
  drawn from the window's L tokens without replacement until the pairs fill the
  list. Each center is paired with all words of its document within a distance
  that is uniform on 1..context. Each true pair is followed by its `negatives`
  noise pairs. An eos is not a word, and pairs do not leave the window.

  Args:
    tokenizer: for the ids of eos and padding.
    length: L, pairs.
    context: the largest distance.
    negatives: number of noise words for each true pair.

  Raises:
    ValueError: a setting is out of range.

  Reference: Mikolov et al. 2013, arXiv 1310.4546, sections 2 and 2.2; random
  distances are from arXiv 1301.3781, section 3.2. Noise words have their
  probability, count^0.75, but with counts of the window instead of the corpus.
  A noise word may be the context word itself, and then has weight 0. Frequent
  words are not subsampled. In an epoch only about one word in (1 + negatives)
  (context + 1) is a center: a window that had just the words that fill the list
  would be too small to count in.
  """
  check_whole('length', length, 1)
  check_whole('context', context, 1)
  check_whole('negatives', negatives, 1)
  most = math.ceil(length / (1 + negatives))  # true pairs in an example
  offset = np.delete(np.arange(-context, context + 1), context)

  def make(rows, sizes, keys):
    batch = padding(len(rows), length, tokenizer)
    targets, source = np.zeros_like(batch.tokens), batch.tokens.copy()
    for b, generator in enumerate(map(generator_of, keys)):
      text, document = words_of(rows[b], sizes[b], tokenizer)
      if not len(text):
        continue
      center = generator.permutation(len(text))  # [N], places in the text
      distance = generator.integers(1, context, len(text), endpoint=True)
      near = center[:, None] + offset  # [N, 2 context], places around a center
      # The padding has number 0, which is no document, so that no pair leaves
      # the window.
      same = np.pad(document, context)[near + context] == document[center, None]
      pair = np.nonzero(same & (np.abs(offset) <= distance[:, None]))
      who, where = pair[0][:most], pair[1][:most]
      true = text[near[who, where]][:, None]
      words, count = np.unique(text, return_counts=True)
      weight = count**_NOISE_POWER
      noise = generator.choice(
        words, (len(true), negatives), p=weight / weight.sum()
      )
      is_true = np.arange(1 + negatives) == 0  # the first of each group
      others = np.concatenate((true, noise), axis=1)
      here = slice(min(others.size, length))
      batch.tokens[b, here] = np.repeat(text[center[who]], 1 + negatives)[here]
      targets[b, here] = np.tile(is_true, len(true))[here]
      batch.weights[b, here] = (is_true | (others != true)).ravel()[here]
      batch.segments[b, here] = 1
      source[b, here] = others.ravel()[here]
    return batch._replace(
      targets=targets, source=source, source_segments=batch.segments.copy()
    )

  return Objective(length, make)


def _prompt(tokenizer: types.Tokenizer) -> Callable[..., types.Batch]:
  return lambda texts: padded(
    [[tokenizer.bos, *ids] for ids in texts], tokenizer.pad
  )


def words_of(
  row: np.ndarray, size: int, tokenizer: types.Tokenizer
) -> tuple[np.ndarray, np.ndarray]:
  """Removes the eos from a window.

  Args:
    row: ids [W + 1], the token before the window and then the window.
    size: number of the window's tokens that are not padding.
    tokenizer: for the id of eos.

  Returns:
    The other ids of the window [N], and the numbers of their documents [N],
    ascending from 1.
  """
  window = row[1 : size + 1]
  rest = window != tokenizer.eos
  return window[rest], 1 + np.cumsum(row[:size] == tokenizer.eos)[rest]


def padding(count: int, length: int, tokenizer: types.Tokenizer) -> types.Batch:
  """Makes a batch [B, L] of padding to write examples into."""
  pad = np.full((count, length), tokenizer.pad, np.int32)
  return types.Batch(
    tokens=pad,
    targets=pad.copy(),
    weights=np.zeros(pad.shape, np.float32),
    positions=np.zeros_like(pad),
    segments=np.zeros_like(pad),
  )


def generator_of(key: np.uint64) -> np.random.Generator:
  """Makes the random generator of one example."""
  # Philox is counter-based: the streams of neighbouring keys are independent.
  return np.random.Generator(np.random.Philox(key=int(key)))


def check_whole(name: str, value: int, least: int) -> None:
  """Checks a setting that counts something.

  Raises:
    ValueError: it is not an integer, or is below `least`.
  """
  if type(value) is not int or value < least:
    raise ValueError(f'{name}={value} must be a whole number from {least} on')
