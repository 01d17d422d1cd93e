"""Gopher's rules of quality (Rae et al. 2021, appendix A.1.1)."""

import numpy as np

from lm.corpus import rules, texts

STOP_WORDS = ('the', 'be', 'to', 'of', 'and', 'that', 'have', 'with')
_BULLETS = ('•', '-', '*', '‣', '◦', '●')
_ELLIPSES = ('...', '…')


def words(least: int = 50, most: int = 100_000) -> rules.Rule:
  """Wants a number of words between two bounds, as in the paper."""

  def rule(text: texts.Text) -> float | None:
    count = len(text.lengths)
    return None if least <= count <= most else float(count)

  return rule


def word_length(least: float = 3.0, most: float = 10.0) -> rules.Rule:
  """Wants a mean length of words, in characters, as in the paper."""

  def rule(text: texts.Text) -> float | None:
    mean = rules.share(int(text.lengths.sum()), len(text.lengths))
    return None if least <= mean <= most else mean

  return rule


def symbols(most: float = 0.1) -> rules.Rule:
  """Bounds the hash signs a word, and the ellipses a word, as in the paper."""

  def rule(text: texts.Text) -> float | None:
    hashes = text.text.count('#')
    ellipses = sum(text.text.count(x) for x in _ELLIPSES)
    count = max(len(text.lengths), 1)
    return rules.above(max(hashes, ellipses) / count, most)

  return rule


def bullets(most: float = 0.9) -> rules.Rule:
  """Bounds the share of lines that begin with a bullet, as in the paper.

  Blank lines do not count. datatrove counts them, and knows the bullets "•" and
  "-"; dolma knows "*" and "-".
  """

  def rule(text: texts.Text) -> float | None:
    begun = sum([x.startswith(_BULLETS) for x in text.lines])
    return rules.above(rules.share(begun, len(text.lines)), most)

  return rule


def ellipses(most: float = 0.3) -> rules.Rule:
  """Bounds the share of lines that end with an ellipsis, as in the paper.

  Blank lines do not count; datatrove and dolma count them.
  """

  def rule(text: texts.Text) -> float | None:
    ended = sum([x.endswith(_ELLIPSES) for x in text.lines])
    return rules.above(rules.share(ended, len(text.lines)), most)

  return rule


def alphabetic(least: float = 0.8) -> rules.Rule:
  """Wants a share of words with at least one letter, as in the paper.

  A word is here what stands between white space, as in dolma: symbols that
  stand alone have to count. datatrove's words are those of spaCy, where a comma
  is a word without a letter.
  """

  def rule(text: texts.Text) -> float | None:
    _, letters = text.tokens
    lettered = int(np.count_nonzero(letters))
    return rules.below(rules.share(lettered, len(letters)), least)

  return rule


def stop_words(
  least: int = 2, words: tuple[str, ...] = STOP_WORDS
) -> rules.Rule:
  """Wants different ones of some words of English, as in the paper.

  dolma counts each occurrence, so that one word twice is enough for it.

  Raises:
    ValueError: if one of the words is none, or several.
  """
  wanted = np.unique(texts.Text(' '.join(words)).hashes)
  if len(wanted) != len(set(words)):
    raise ValueError('words: each must be one word')

  def rule(text: texts.Text) -> float | None:
    found = 0
    for word in wanted:
      found += bool((text.hashes == word).any())
      if found >= least:
        return None
    return float(found)

  return rule
