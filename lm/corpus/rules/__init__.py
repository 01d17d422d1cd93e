"""Rules of quality, each a function that a config names.

A rule takes its settings and returns `fn(text) -> float | None`, where `text`
is a `lm.corpus.texts.Text`: the value that broke the rule, or None. A new rule
is one function here and one line in a config.

Numbers of papers are those of
  - Gopher: Rae et al. 2021, arXiv:2112.11446, appendix A.1.1 and table A1,
  - C4: Raffel et al. 2020, JMLR 21(140), section 2.2,
  - FineWeb: Penedo et al. 2024, arXiv:2406.17557, section 3.
datatrove and dolma implement the same rules; where they and we differ, the
docstring of the rule says so. Their words come from word tokenizers of a
language or from `str.split`, ours from `texts`: punctuation is no word, and
"don't" is two.
"""

from collections.abc import Callable

from lm.corpus import texts

Rule = Callable[[texts.Text], float | None]


def above(value: float, most: float) -> float | None:
  """Returns the value where it is above what is allowed, and None elsewhere."""
  return float(value) if value > most else None


def below(value: float, least: float) -> float | None:
  """Returns the value where it is below what is asked, and None elsewhere."""
  return float(value) if value < least else None


def share(part: float, whole: float) -> float:
  """Divides; 0 where there is nothing to divide."""
  return part / whole if whole else 0.0
