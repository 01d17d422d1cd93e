"""Finds telephone numbers, and tells them from the numbers of a program.

All patterns take linear time; see `identifiers`.
"""

import bisect
from collections.abc import Iterator
import functools
import re

from lm.corpus import identifiers

# Commas may part telephone numbers, so they are no part of one.
_LEFT = r'(?<![0-9A-Za-z].)(?<![0-9][.-].)'
_RIGHT = r'(?![0-9A-Za-z])(?![.-][0-9])'
_EXTENSION = r'(?:,? ?(?:ext\.? ?|x ?|转|分机)[0-9]{1,6})?'
_PHONE = re.compile(
  # +86 138 1234 5678, +1 (212) 555-1234, +44 (0)20 7946 0958
  rf'(?:[+]{_LEFT}(?<![)+].)(?:86(?:[ )-]{{0,2}}[0-9]){{10,11}}'
  r'|1(?:[ .()-]{0,2}[0-9]){10}|[2-9](?:[ .()/-]{0,2}[0-9]){7,13})'
  # 0086-10-62345678, 0044 20 7946 0958, 86-10-62345678
  rf'|0{_LEFT}(?<![0-9] .)0[1-9][0-9]{{0,2}}(?:[ -][0-9]{{2,11}}){{1,4}}'
  rf'|0{_LEFT}0861[3-9][0-9]{{9}}'
  rf'|8{_LEFT}6[ -]?(?:1[3-9][0-9]{{9}}|0?[1-9][0-9]{{1,2}}-[0-9]{{7,8}})'
  # 138 1234 5678
  rf'|1{_LEFT}(?<![+].)[3-9][0-9](?:[0-9]{{8}}|[ -][0-9]{{8}}'
  r'|[ -][0-9]{4}[ -][0-9]{4})'
  # 010-6234 5678, (0755) 26001234, 0571-8765432
  rf'|0{_LEFT}(?:10|2[0-9])(?:[ -]|(?=[2-8][0-9]{{7}}))'
  r'[0-9]{4}[ -]?[0-9]{4}'
  rf'|0{_LEFT}[3-9][0-9]{{2}}-[0-9]{{3,4}}[ -]?[0-9]{{4}}'
  rf'|[(（]{_LEFT}0(?:10|2[0-9]|[3-9][0-9]{{2}})[)）][ -]?'
  r'[0-9]{3,4}[ -]?[0-9]{4}'
  # 400-123-4567
  rf'|[48]{_LEFT}00-[0-9]{{3}}-?[0-9]{{4}}'
  # (212) 555-1234, 1-212-555-1234, 212.555.1234, 212 555 1234
  rf'|1{_LEFT}[ .-]?[(]?[2-9][0-9]{{2}}[)]?[ .-][2-9][0-9]{{2}}[ .-][0-9]{{4}}'
  rf'|[(]{_LEFT}[2-9][0-9]{{2}}[)] ?[2-9][0-9]{{2}}[ .-][0-9]{{4}}'
  rf'|[2-9]{_LEFT}[0-9]{{2}}[-./ ][2-9][0-9]{{2}}[.-][0-9]{{4}}'
  rf'|[2-9]{_LEFT}(?<![0-9] .)[0-9]{{2}} [2-9][0-9]{{2}} [0-9]{{4}}(?! [0-9])'
  rf'){_RIGHT}{_EXTENSION}'
)
# Any number that one of these words announces.
_ANNOUNCED = re.compile(
  r'(?:(?<![A-Za-z])(?i:tele?phone|tel|phone|fax|mobile|cell|whatsapp|hotline)'
  r'|电话|手机|传真|热线|座机|固话|致电|拨打)'
  r'(?i:[ .]{0,2}(?:number|no|nr|num|#|号码|号)?[ .]{0,2})'
  r'(?i:is|was|at|是|为)?[ :：.]{0,3}[+(（]{0,2}\Z'
)
# Another number may follow an announced one.
_NEXT = re.compile(r'\s{0,2}(?:[,，、;；/或和]|and|or|&)\s{0,2}[+(（]?')
_ANY = re.compile(r'[0-9](?:[ .()（）/-]{0,2}[0-9]){6,14}(?![0-9A-Za-z])')


# ---- Numbers of a program

# Digits, or their difference. No number of today's languages begins with 0.
_LITERAL = re.compile(r'[+]?[1-9][0-9]*(?:-[1-9][0-9]*)*')
# `seed = `, `self.seeds[0]: int = `, `x == `, `--seed=`. What follows ? or & in
# the address of a page is none.
_ASSIGNED = re.compile(
  r'(?<![0-9A-Za-z_.?&-])-{0,2}[A-Za-z_][A-Za-z0-9_.-]{0,60}+'
  r'(?:\[[^\[\]\n]{0,40}\])?(?:[ \t]{0,4}:[ \t]{0,4}[A-Za-z0-9_.]{1,40})?'
  r'[ \t]{0,9}[-+*/%&|^<>!:=]{0,2}=[ \t]{0,9}\Z'
)
# The end of a value: that of its line, or a sign.
_ENDED = re.compile(r'(?:\.(?=[,)\]])|:)?[ \t]{0,4}(?:\Z|[\n\r,;)\]}#*/%+-])')
_ITEM = re.compile(r'[\[({,:;*/+-]\s{0,99}\Z')
# Numbers in brackets, and the two brackets that need no name before them.
_LIST = re.compile(r'[\[({][-+*/0-9.,:;eEjL_\s\[\](){}]*+')
_NESTED = re.compile(r'[\[({]\s{0,9}[\[({]')
# With one of these words in its line, a number is a telephone's after all.
_TELEPHONE = re.compile(
  r'(?i:phone|mobile|fax|whatsapp|wechat|hotline|contact|sms|user|login|account'
  r'|(?<![a-z])cell(?![a-z]))|(?<![A-Za-z])[Tt]el(?![a-z])|TEL'
  r'|电话|手机|传真|热线|座机|联系|号码'
)
_BEFORE = 140  # characters that a name, its index and its type may have
_BESIDE = 60  # characters of the line that are looked through


class _Program:
  """Tells which numbers of a text are values that a program holds."""

  def __init__(self, text: str):
    self._text = text

  @functools.cached_property
  def _lists(self) -> list[identifiers.Span]:
    """Places of numbers in brackets, as a program writes them."""
    text = self._text
    return [
      identifiers.Span(*x.span())
      for x in _LIST.finditer(text)
      if (
        _NESTED.match(text, x.start())
        or _ASSIGNED.search(text, max(0, x.start() - _BEFORE), x.start())
      )
      and not self._names_telephone(x.start(), x.start())
    ]

  def _names_telephone(self, start: int, end: int) -> bool:
    """Returns True if a word beside text[start:end] means a telephone."""
    first = self._text.rfind('\n', max(0, start - _BESIDE), start) + 1
    before = self._text[first or max(0, start - _BESIDE) : start]
    after = self._text[end : end + _BESIDE].partition('\n')[0]
    return bool(_TELEPHONE.search(f'{before} {after}'))

  def holds(self, start: int, end: int) -> bool:
    """Returns True if the number text[start:end] is such a value."""
    text = self._text
    if not (_LITERAL.fullmatch(text, start, end) and _ENDED.match(text, end)):
      return False
    if _ASSIGNED.search(text, max(0, start - _BEFORE), start):
      return not self._names_telephone(start, end)
    if not _ITEM.search(text, max(0, start - _BEFORE), start):
      return False
    n = bisect.bisect_left(self._lists, start, key=lambda x: x.start) - 1
    return n >= 0 and end <= self._lists[n].end


def phones(narrow: identifiers.Narrow) -> Iterator[identifiers.Span]:
  """Yields telephone numbers: international, of the US and of China.

  Numbers of other countries are found after a word such as `Tel:`.
  """
  text = narrow.text
  program = _Program(text)
  last = None  # end of the last number
  for start, end in narrow.runs:
    found = False
    for match in _PHONE.finditer(text, max(0, start - 2), end + 12):
      if match.start() >= end or _is_float(match[0]):
        continue
      if not program.holds(*match.span()):
        found, last = True, match.end()
        first = match.start()
        if match[0][0] == '+' and text[first - 1 : first] in ('(', '（'):
          first -= ')' in match[0] or '）' in match[0]
        yield identifiers.Span(first, last)
    if not found and (
      _ANNOUNCED.search(text, max(0, start - 24), start)
      or (last is not None and _NEXT.fullmatch(text, last, start))
    ):
      match = _ANY.match(text, start)
      if match:
        last = match.end()
        yield identifiers.Span(*match.span())


def _is_float(number: str) -> bool:
  """Returns True for '+3.14159265' and the like."""
  return (
    number[0] == '+' and re.fullmatch(r'.[0-9]+\.[0-9]+', number) is not None
  )
