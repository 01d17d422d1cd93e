"""Turns evaluation items into hashed n-grams, and finds these in texts.

What gives an item away is called a probe: its question, or, where the question
is short, the question with one of its options. So neither the order of options
matters, nor whether a text has all of them. An n-gram never goes over the end
of a text of the item.

Words are those of `texts.Text`: in lower case, without punctuation and white
space, and each Chinese character is one. Where a text has other words once its
punctuation is deleted ('U.S.' has 'u' and 's', or 'us'), both forms count.
"""

from collections.abc import Iterator, Sequence
import string
from typing import NamedTuple

import numpy as np

from lm import splitmix
from lm.corpus import evaluation_items, texts

# A text with fewer words than an n-gram is one gram as a whole, if it has as
# many as this, in words and in Chinese characters.
SHORTEST = (6, 10)
_ENOUGH = 6  # grams of a question that give it away without its options
_PIECE = 1 << 18  # words of a text that are looked at at once
_PUNCTUATION = str.maketrans(
  '', '', string.punctuation + '‘’“”…—–·、。，；：？！（）《》【】「」『』'
)
_BASE = np.uint64(splitmix.STEP)  # odd, see `_rolled`
_MOST_BITS = 25  # of a hash, by which grams of a text are passed over: 32 MiB


class Probe(NamedTuple):
  """Grams that give an item away.

  Attributes:
    item: number of the item.
    grams: distinct int64, ascending.
    all: number of its grams before those that many texts share were left out.
  """

  item: int
  grams: np.ndarray
  all: int


class Grams(NamedTuple):
  """The grams of evaluation items, to be found in texts.

  Attributes:
    sorted: int64, distinct, ascending.
    maybe: bool by the first bits of a gram, and by its last: whether it may be
      one of them. Reference: Bloom 1970, CACM 13(7).
    most: words that a gram has at most.
  """

  sorted: np.ndarray
  maybe: np.ndarray
  most: int


def without_punctuation(text: str) -> str:
  """Deletes punctuation marks."""
  return text.translate(_PUNCTUATION)


def probes(
  items: Sequence[evaluation_items.Item],
  lengths: tuple[int, int],
  most_texts: int,
) -> list[Probe]:
  """Makes the probes of the items of a set, several an item or none.

  Args:
    items: of the set; their numbers begin at 0.
    lengths: n of the n-grams, in words and in Chinese characters.
    most_texts: a gram in more distinct texts of the set is a turn of phrase,
      such as 'which of the following statements is true of', and is left out.
  """
  plain = dict.fromkeys(x for item in items for x in item.texts + item.options)
  bare = {x: without_punctuation(x) for x in plain}
  forms = {**plain, **dict.fromkeys(bare.values())}
  grams = dict(zip(forms, _grams(list(forms), lengths), strict=True))
  common = np.union1d(
    _common([grams[x] for x in plain], most_texts),
    _common([grams[x] for x in dict.fromkeys(bare.values())], most_texts),
  )
  result = []
  for n, item in enumerate(items):
    found = [
      *_of_item(item.texts, item.options, grams),
      *_of_item(
        [bare[x] for x in item.texts], [bare[x] for x in item.options], grams
      ),
    ]
    for probe in {x.tobytes(): x for x in found if len(x)}.values():
      left = probe
      if len(common):
        left = probe[~np.isin(probe, common, assume_unique=True)]
      result.append(Probe(n, left, len(probe)))
  return result


def index(found: Sequence[Probe], lengths: tuple[int, int]) -> Grams:
  """Prepares the grams of probes for `find`."""
  grams = np.unique(_joined([probe.grams for probe in found]))
  bits = min((16 * len(grams)).bit_length(), _MOST_BITS)
  maybe = np.zeros(1 << bits, bool)
  maybe[_first(grams, bits)] = True
  maybe[_last(grams, bits)] = True
  return Grams(grams, maybe, max(lengths))


def find(text: str, grams: Grams) -> np.ndarray:
  """Finds which grams occur in a text: int64, distinct, ascending."""
  found = []
  bits = len(grams.maybe).bit_length() - 1
  for _, _, rolled in _in_pieces(texts.view(text).hashes, grams.most):
    rolled = rolled[grams.maybe[_first(rolled, bits)]]
    found.append(rolled[grams.maybe[_last(rolled, bits)]])
  candidates = np.sort(_joined(found))  # neighbours share cache lines
  return np.unique(candidates[_is_among(candidates, grams.sorted)])


def spans(text: str, grams: np.ndarray, most: int) -> np.ndarray:
  """Finds the words of a text that make grams.

  Args:
    text: the text.
    grams: int64, distinct, ascending.
    most: words that a gram has at most.

  Returns:
    int64 [N, 2], for each place, in any order: the number of the first word,
    and of the word after the last.
  """
  found = [np.empty((0, 2), np.int64)]
  for start, n, rolled in _in_pieces(texts.view(text).hashes, most):
    first = start + np.flatnonzero(_is_among(rolled, grams))
    found.append(np.stack([first, first + n], 1))
  return np.concatenate(found)


def _in_pieces(
  hashes: np.ndarray, most: int
) -> Iterator[tuple[int, int, np.ndarray]]:
  """Yields (first word, n, n-grams from there on); some of them come twice."""
  for start in range(0, len(hashes), _PIECE):
    # A gram may begin in the piece before.
    first = max(0, start - most + 1)
    piece = hashes[first : start + _PIECE]
    for n, rolled in enumerate(_rolled(piece, most), min(SHORTEST)):
      yield first, n, rolled


def _is_among(grams: np.ndarray, known: np.ndarray) -> np.ndarray:
  """Tells which grams are among others, which ascend."""
  if not len(known):
    return np.zeros(len(grams), bool)
  places = np.minimum(np.searchsorted(known, grams), len(known) - 1)
  return known[places] == grams


def _common(grams: Sequence[np.ndarray], most_texts: int) -> np.ndarray:
  """Lists the grams of more than so many texts."""
  keys, counts = np.unique(_joined(grams), return_counts=True)
  return keys[counts > most_texts]


def _of_item(
  asked: Sequence[str], options: Sequence[str], grams: dict[str, np.ndarray]
) -> list[np.ndarray]:
  """Makes the probes of a question and its options."""
  question = _union([grams[x] for x in asked])
  if len(question) >= _ENOUGH or not options:
    return [question]
  if not len(question):
    # One option alone, such as "a b c a b c", is said in other places, too.
    return [_union([grams[x] for x in options])]
  return [_union([question, grams[x]]) for x in options]


def _grams(
  all_texts: Sequence[str], lengths: tuple[int, int]
) -> list[np.ndarray]:
  """Makes the grams of each text: int64, distinct, ascending."""
  views = [texts.Text(x) for x in all_texts]
  ends = np.cumsum([0, *(len(x.words) for x in views)])
  # All at once; a word never goes over the end of a line.
  hashes = texts.Text('\n'.join(all_texts)).hashes
  assert len(hashes) == ends[-1]
  rolled = list(_rolled(hashes, max(lengths)))
  result = []
  for view, start, end in zip(views, ends[:-1], ends[1:], strict=True):
    language = int(view.is_chinese)
    n = lengths[language]
    if end - start < n:
      n = int(end - start)
      if n < SHORTEST[language]:
        result.append(np.empty(0, np.int64))
        continue
    one = rolled[n - min(SHORTEST)][start : end - n + 1]
    result.append(np.unique(one) if len(one) > 1 else one)
  return result


def _rolled(hashes: np.ndarray, most: int) -> Iterator[np.ndarray]:
  """Yields int64 hashes of all n-grams, for each n from the shortest on.

  The length is a part of the hash, so that grams of all lengths may be sought
  together.
  """
  total = hashes
  for n in range(1, most + 1):
    if n > 1:
      total = total[:-1] * _BASE + hashes[n - 1 :]
    if n >= min(SHORTEST):
      yield splitmix.mix(total + np.uint64(n)).view(np.int64)
    if not len(total):
      return


def _first(grams: np.ndarray, bits: int) -> np.ndarray:
  return (grams.view(np.uint64) >> np.uint64(64 - bits)).view(np.int64)


def _last(grams: np.ndarray, bits: int) -> np.ndarray:
  return grams & ((1 << bits) - 1)


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
  return np.concatenate([np.empty(0, np.int64), *parts])


def _union(parts: Sequence[np.ndarray]) -> np.ndarray:
  """Joins distinct grams; one array with some stays as it is."""
  some = [part for part in parts if len(part)]
  return some[0] if len(some) == 1 else np.unique(_joined(some))
