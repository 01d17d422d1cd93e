"""Removes passages from a text: the grams that stages found, and their margins.

Reference: Brown et al. 2020, arXiv 2005.14165, appendix C. Its numbers are the
defaults here, as in NVIDIA's NeMo Curator: 200 characters on either side of a
match, fragments of at least 200 characters, at most ten fragments. What differs
is that passages begin and end between words, and that the fragments of a
document stay one document, with an empty line where a passage was. So each
document keeps its id and its row, and the index says where all of it is.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from lm.corpus import item_grams, texts


class Cut(NamedTuple):
  """Says how passages are removed.

  Attributes:
    margin: characters on either side of a gram that go with it.
    least: characters of a fragment; shorter ones go, too.
    most_pieces: fragments, short ones included; a document of more of them has
      to go as a whole.
  """

  margin: int = 200
  least: int = 200
  most_pieces: int = 10


def cut(settings: Mapping[str, int]) -> Cut:
  """Reads settings; what is not given has its default.

  Raises:
    ValueError: a setting is unknown, or no count.
  """
  for name, value in settings.items():
    if name not in Cut._fields:
      raise ValueError(
        f'cut.{name}: no such setting; use {", ".join(Cut._fields)}'
      )
    if value < (name == 'most_pieces'):
      raise ValueError(f'cut.{name}: {value} is too small')
  return Cut(**settings)


def remove(
  text: str, grams: np.ndarray, most_words: int, how: Cut
) -> tuple[str, int] | None:
  """Removes the passages around some grams from a text.

  Args:
    text: the text.
    grams: int64, distinct, ascending, see `item_grams.find`.
    most_words: that a gram has.
    how: see `Cut`.

  Returns:
    What is left, without any of the grams, and the number of passages that were
    removed; None if too little is left or there are too many fragments.
  """
  spans = item_grams.spans(text, grams, most_words)
  if not len(spans):
    return text, 0
  starts, ends = texts.view(text).places
  # In words: the first of a passage, and the one after its last.
  firsts = np.searchsorted(ends, starts[spans[:, 0]] - how.margin, 'right')
  lasts = np.searchsorted(starts, ends[spans[:, 1] - 1] + how.margin, 'left')
  order = np.argsort(firsts, kind='stable')
  firsts, lasts = firsts[order], np.maximum.accumulate(lasts[order])
  is_new = np.concatenate([[True], firsts[1:] > lasts[:-1]])
  is_last = np.concatenate([is_new[1:], [True]])
  begins, resumes = firsts[is_new], lasts[is_last]
  words = len(starts)
  places = [0, *(int(starts[n]) for n in resumes if n < words)]
  if begins[0] == 0:
    places = places[1:]
  breaks = [int(starts[n]) for n in begins if n > 0]
  if len(breaks) < len(places):
    breaks.append(len(text))
  pieces = [text[a:b].strip() for a, b in zip(places, breaks, strict=True)]
  if len(pieces) > how.most_pieces:
    return None
  left = '\n\n'.join(x for x in pieces if x and len(x) >= how.least)
  # Words that were apart may make a gram together.
  if not left or len(item_grams.spans(left, grams, most_words)):
    return None
  return left, len(begins)
