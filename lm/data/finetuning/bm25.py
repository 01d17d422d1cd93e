"""BM25: the classical search by words, and a source of wrong answers.

Words are those of `passages.pieces` in lower case; of Chinese and other scripts
without spaces they are characters, and pairs of neighbouring ones.

Reference: Robertson and Zaragoza 2009, The Probabilistic Relevance Framework;
the library is bm25s (Lù 2024, arXiv 2407.03618), with its defaults k1 = 1.5 and
b = 0.75.
"""

from collections.abc import Sequence
import itertools
import logging
from typing import Any

import numpy as np

from lm import errors
from lm.data.finetuning import passages


def words(text: str) -> list[str]:
  """Cuts a text into the words that BM25 counts."""
  cut = passages.pieces(text)
  found = [text[a:b].lower() for a, b in cut]
  pairs = [
    one + two
    for (one, two), ((_, end), (start, _)) in zip(
      itertools.pairwise(found), itertools.pairwise(cut), strict=True
    )
    if end == start
    and passages.is_spaceless(one)
    and passages.is_spaceless(two)
  ]
  return [word for word in found if any(c.isalnum() for c in word)] + pairs


class Index:
  """Scores the texts of a collection for a question."""

  def __init__(self, texts: Sequence[str]):
    """Counts the words of the collection.

    Raises:
      ValueError: bm25s is missing.
    """
    try:
      import bm25s
    except ImportError as error:
      raise ValueError(
        f'BM25 needs bm25s: {errors.install("tasks")}'
      ) from error
    logging.getLogger('bm25s').setLevel(logging.WARNING)
    self._index: Any = bm25s.BM25()
    self._count = len(texts)
    self._index.index([words(x) for x in texts], show_progress=False)

  def scores(self, question: str) -> np.ndarray:
    """Scores all texts: float64 [N]."""
    asked = words(question)
    if not asked:
      return np.zeros(self._count)
    return np.asarray(self._index.get_scores(asked), np.float64)
