"""Gopher's rules against repetition (Rae et al. 2021, table A1).

Words and n-grams are compared by hashes of 64 bits. Good texts are passed by
bounds which cost little: no n-gram is more frequent than one of its words, and
repeated n-grams of more words cover no more characters than those of fewer.
"""

import functools

import numpy as np

from lm.corpus import rules, texts


def duplicate_lines(most: float = 0.3) -> rules.Rule:
  """Bounds the share of lines that were seen before, 0.30 as in the paper."""

  def rule(text: texts.Text) -> float | None:
    return rules.above(_repeated(text.lines), most)

  return rule


def duplicate_line_characters(most: float = 0.2) -> rules.Rule:
  """Bounds the characters in repeated lines, 0.20 of all as in the paper.

  White space at the ends of lines does not count. datatrove divides by all
  characters of the text.
  """

  def rule(text: texts.Text) -> float | None:
    return rules.above(_repeated_characters(text.lines), most)

  return rule


def duplicate_paragraphs(most: float = 0.3) -> rules.Rule:
  """Bounds the share of repeated paragraphs, 0.30 as in the paper."""

  def rule(text: texts.Text) -> float | None:
    return rules.above(_repeated(text.paragraphs), most)

  return rule


def duplicate_paragraph_characters(most: float = 0.2) -> rules.Rule:
  """Bounds the characters in repeated paragraphs, 0.20 as in the paper."""

  def rule(text: texts.Text) -> float | None:
    return rules.above(_repeated_characters(text.paragraphs), most)

  return rule


def top_ngram(n: int = 2, most: float = 0.2) -> rules.Rule:
  """Bounds the share of characters in the most frequent n-gram.

  The paper has 0.20, 0.18, 0.16 for 2, 3, 4 words. Characters are those of
  words, and one counts once where occurrences overlap; datatrove divides the
  length of all occurrences by the characters of the text, so that "a a a a" is
  above one. An n-gram that occurs once has the share 0, and of several that are
  as frequent the one with the most characters counts.

  Args:
    n: words, or Chinese characters, of an n-gram; at least 1.
    most: share of the characters of all words.

  Raises:
    ValueError: if n is 0.
  """
  _check(n)

  def rule(text: texts.Text) -> float | None:
    return rules.above(_ngrams(text).top(n, most), most)

  return rule


def duplicate_ngrams(n: int = 5, most: float = 0.15) -> rules.Rule:
  """Bounds the share of characters in n-grams that occurred before.

  The paper has 0.15, 0.14, 0.13, 0.12, 0.11, 0.10 for 5 to 10 words. A
  character counts once, however many n-grams it is in, as in the paper;
  datatrove steps over whole n-grams and counts less, by 0.005 of English and
  0.009 of Chinese on average for 5 words; dolma counts each n-gram of its own,
  and the first occurrence too.

  Args:
    n: words, or Chinese characters, of an n-gram; at least 1.
    most: share of the characters of all words.

  Raises:
    ValueError: if n is 0.
  """
  _check(n)

  def rule(text: texts.Text) -> float | None:
    return rules.above(_ngrams(text).later(n, most), most)

  return rule


def _check(n: int) -> None:
  if n < 1:
    raise ValueError(f'n={n} must be at least 1')


def _repeated(parts: list[str]) -> float:
  return rules.share(len(parts) - len(set(parts)), len(parts))


def _repeated_characters(parts: list[str]) -> float:
  total = sum(map(len, parts))
  return rules.share(total - sum(map(len, set(parts))), total)


class _Ngrams:
  """The n-grams of a text, sorted for each n when it is asked."""

  def __init__(self, text: texts.Text):
    count = len(text.hashes)
    self._ends = np.zeros(count + 1, np.int64)
    np.cumsum(text.lengths, out=self._ends[1:])
    powers, self._inverses = texts.powers(count)
    self._sums = np.zeros(count + 1, np.uint64)
    np.multiply(text.hashes, powers[:count], out=self._sums[1:])
    np.cumsum(self._sums, out=self._sums)
    self._bits = np.uint64(count.bit_length())  # of a place
    self._frequent: dict[int, int] = {}  # occurrences of the most frequent one
    self._later: dict[int, float] = {}

  def _sort(self, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorts n-grams so that equal ones are neighbours, in order of place.

    Returns:
      Numbers that end with the places where they begin, and whether each n-gram
      equals the one before.
    """
    # An n-gram's polynomial is a difference of two sums.
    keys = self._sums[n:] - self._sums[: max(len(self._sums) - n, 0)]
    keys *= self._inverses[: len(keys)]
    # A sort of numbers that end with their places is several times faster than
    # one of places by number. More than 40 bits of a hash are left.
    keys <<= self._bits
    keys |= np.arange(len(keys), dtype=np.uint64)
    keys.sort()
    hashes = keys >> self._bits
    same = np.zeros(len(keys), bool)
    np.equal(hashes[1:], hashes[:-1], out=same[1:])
    return keys, same

  def _places(self, keys: np.ndarray) -> np.ndarray:
    """Reads the places from numbers of `_sort`."""
    mask = (np.uint64(1) << self._bits) - np.uint64(1)
    return (keys & mask).astype(np.intp)

  def _longest(self, n: int) -> float:
    """Returns the share of characters in the longest n-gram."""
    lengths = self._ends[n:] - self._ends[: max(len(self._ends) - n, 0)]
    return rules.share(int(lengths.max(initial=0)), int(self._ends[-1]))

  def _covered(self, at: np.ndarray, n: int) -> float:
    """Returns the share of characters in the n-grams at ascending places."""
    if not len(at):
      return 0.0
    starts, ends = self._ends[at], self._ends[at + n]
    inner = np.minimum(ends[:-1], starts[1:]) - starts[:-1]
    return int(inner.sum() + ends[-1] - starts[-1]) / int(self._ends[-1])

  def top(self, n: int, most: float) -> float:
    """Returns the share of the most frequent n-gram, or 0 if below `most`."""
    longest = self._longest(n)
    known = [x for m, x in self._frequent.items() if m <= n]
    if known and min(known) * longest <= most:
      return 0.0
    keys, same = self._sort(n)
    starts = (~same).nonzero()[0]
    counts = np.append(starts[1:], len(same)) - starts
    count = self._frequent[n] = int(counts.max(initial=0))
    if count < 2 or count * longest <= most:
      return 0.0
    at = self._places(keys[starts])
    lengths = self._ends[at + n] - self._ends[at]
    lengths[counts < count] = -1
    i = starts[lengths.argmax()]
    return self._covered(self._places(keys[i : i + count]), n)

  def later(self, n: int, most: float) -> float:
    """Returns the share of repeated n-grams, or 0 if it is below `most`."""
    if any(m <= n and x <= most for m, x in self._later.items()):
      return 0.0
    keys, same = self._sort(n)
    value = self._covered(np.sort(self._places(keys[same])), n)
    self._later[n] = value
    return value


# All rules look at one text before they look at the next.
_ngrams = functools.lru_cache(maxsize=1)(_Ngrams)
