"""Rules of lines, which `lm.corpus.normalise` drops lines by.

A rule takes its settings and returns `fn(line) -> bool`, which says whether the
line is dropped; it gets the line without white space at its ends, and never one
that is blank. A new rule is one function here, or in a package of yours, and
one line in a config. Those here are C4's (Raffel et al. 2020, section 2.2).
"""

from collections.abc import Callable

Rule = Callable[[str], bool]

_ENDS = ('.', '!', '?', '"', "'", '”', '’', '。', '！', '？', '…', '」', '』')


def contains(phrases: tuple[str, ...]) -> Rule:
  """Drops lines with one of some phrases, in any case.

  The paper drops lines with the word "Javascript"; its code those with phrases
  such as "cookie policy" too, and whole documents with "lorem ipsum".

  Args:
    phrases: in lower case.

  Raises:
    ValueError: for a phrase that is empty or not in lower case.
  """
  for phrase in phrases:
    if not phrase or phrase != phrase.lower():
      raise ValueError(f'phrases: {phrase!r} must be text in lower case')

  def rule(line: str) -> bool:
    lower = line.lower()
    return any(x in lower for x in phrases)

  return rule


def unfinished(ends: tuple[str, ...] = _ENDS) -> Rule:
  """Drops lines that do not end with terminal punctuation.

  The paper's marks are . ! ? and the closing quote; Chinese ones are added. Its
  code drops lines that end with three dots, and so does this. Headings, lists,
  code and verse have no such marks: it is meant for web pages.
  """
  marks = tuple(ends)

  def rule(line: str) -> bool:
    return not line.endswith(marks) or line.endswith('...')

  return rule


def few_words(least: int = 3) -> Rule:
  """Drops lines with fewer words between white space, 3 as in the paper.

  A line of Chinese is one such word: leave the rule out for it.
  """

  def rule(line: str) -> bool:
    return len(line.split(None, least)) < least

  return rule


def long_words(most: int = 1000) -> Rule:
  """Drops lines with a longer word, 1,000 characters as in the code of C4."""

  def rule(line: str) -> bool:
    return len(line) > most and max(map(len, line.split())) > most

  return rule
