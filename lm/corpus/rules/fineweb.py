"""FineWeb's own rules (Penedo et al. 2024, section 3).

They count lines that hold more than white space, as datatrove does.
"""

from lm.corpus import rules, texts

# With Chinese ones, so that one rule serves both languages.
_ENDS = tuple('.!?"\'”’。！？…；;:：」』）)')


def punctuated_lines(
  least: float = 0.12, ends: tuple[str, ...] = _ENDS
) -> rules.Rule:
  """Wants a share of lines that end with punctuation, 0.12 as in the paper.

  Args:
    least: share of the lines.
    ends: what counts. datatrove takes the terminal marks of all scripts of
      Unicode; ours are those of English and Chinese, with closing quotes.
  """
  marks = tuple(ends)

  def rule(text: texts.Text) -> float | None:
    ended = sum([x.endswith(marks) for x in text.lines])
    return rules.below(rules.share(ended, len(text.lines)), least)

  return rule


def short_lines(most: float = 0.67, characters: int = 30) -> rules.Rule:
  """Bounds the share of short lines: 0.67 of 30 characters as in the paper."""

  def rule(text: texts.Text) -> float | None:
    short = sum([len(x) <= characters for x in text.lines])
    return rules.above(rules.share(short, len(text.lines)), most)

  return rule


def duplicate_characters(most: float = 0.1) -> rules.Rule:
  """Bounds the characters in lines seen before, 0.1 of all as in the paper.

  datatrove's default is 0.01, which drops texts for one repeated heading.
  """

  def rule(text: texts.Text) -> float | None:
    total = sum(map(len, text.lines))
    repeated = total - sum(map(len, set(text.lines)))
    return rules.above(rules.share(repeated, total), most)

  return rule


def newlines(most: float = 0.3) -> rules.Rule:
  """Bounds the line ends a word, which finds lists; 0.3 as in datatrove."""

  def rule(text: texts.Text) -> float | None:
    count = max(len(text.lengths), 1)
    return rules.above(text.text.count('\n') / count, most)

  return rule
