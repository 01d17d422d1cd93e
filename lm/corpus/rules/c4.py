"""C4's rules that drop documents (Raffel et al. 2020, section 2.2).

Its rules that drop lines are those of `lm.corpus.lines`, for the stage
`lm.corpus.normalise`.
"""

import itertools
import re

from lm.corpus import rules, texts

# A mark of an end and what may close after it; Chinese needs no space behind.
_SENTENCE = re.compile(r'[.!?]["\')\]”’]*(?!\S)|[。！？…]+')


def sentences(least: int = 5) -> rules.Rule:
  """Wants a number of sentences; the paper asks for five.

  A sentence is a mark of an end before white space. C4 and datatrove count by
  nltk's Punkt, which knows abbreviations: "e.g. this" is two for us. They count
  in the lines that are left by the rules for lines, and so do we if the stage
  `normalise` comes before.
  """

  def rule(text: texts.Text) -> float | None:
    # No more than is asked for, since texts are long.
    found = itertools.islice(_SENTENCE.finditer(text.text), least)
    return rules.below(sum(1 for _ in found), least)

  return rule


def curly_brackets(most: int = 0) -> rules.Rule:
  """Bounds the number of curly brackets; the paper allows none.

  It drops nearly all code, which may not be what you want.
  """

  def rule(text: texts.Text) -> float | None:
    return rules.above(text.text.count('{'), most)

  return rule


def phrases(words: tuple[str, ...] = ('lorem ipsum',)) -> rules.Rule:
  """Drops texts with one of some phrases, in any case, as in the paper.

  Args:
    words: the phrases, in lower case.

  Raises:
    ValueError: for a phrase that is empty or not in lower case.
  """
  for word in words:
    if not word or word != word.lower():
      raise ValueError(f'words: {word!r} must be text in lower case')

  def rule(text: texts.Text) -> float | None:
    return rules.above(sum(map(text.lower.count, words)), 0)

  return rule


def long_words(most: int = 1000) -> rules.Rule:
  """Bounds the characters between white space, 1,000 as in the code of C4.

  C4 and datatrove drop the line; a text with such a line is mostly encoded
  data. Chinese has no such white space: leave the rule out for it.
  """

  def rule(text: texts.Text) -> float | None:
    lengths, _ = text.tokens
    return rules.above(int(lengths.max(initial=0)), most)

  return rule
