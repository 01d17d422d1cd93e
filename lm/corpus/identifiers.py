"""Finds addresses and numbers that belong to one person or account.

All patterns take linear time. Each begins with a few characters that are rare
in prose, because such a pattern is searched for fast, and looks behind them
afterwards. Repetitions are bounded or cannot be given back.
"""

from collections.abc import Iterator
import datetime
import functools
import ipaddress
import re
from typing import NamedTuple

# Chinese text may write letters and digits as wide as its characters. Its
# punctuation stays, because a wide colon is no part of an address.
_NARROW = {
  **{chr(n): chr(n - 0xFEE0) for n in range(0xFF10, 0xFF1A)},
  **{chr(n): chr(n - 0xFEE0) for n in range(0xFF21, 0xFF3B)},
  **{chr(n): chr(n - 0xFEE0) for n in range(0xFF41, 0xFF5B)},
  **dict(zip('＠．－＋＿\u2010\u2011\u00a0', '@.-+_-- ', strict=True)),
}
_WIDE = re.compile(f'[{"".join(_NARROW)}]')
# Seven digits or more, with at most two separators between two of them.
_RUN = re.compile(r'[0-9](?:[ .()（）/-]{0,2}[0-9]){6,}+')


class Span(NamedTuple):
  """The place of a finding, text[start:end]."""

  start: int
  end: int


class Narrow:
  """A text whose wide letters and digits are ASCII.

  Attributes:
    text: of the same length as the original, so that places are the same.
  """

  def __init__(self, text: str):
    if not text.isascii() and _WIDE.search(text):
      text = _WIDE.sub(lambda x: _NARROW[x[0]], text)
    self.text = text

  @functools.cached_property
  def runs(self) -> list[Span]:
    """The places with seven digits or more."""
    return [Span(*x.span()) for x in _RUN.finditer(self.text)]

  def in_runs(self, pattern: re.Pattern[str]) -> Iterator[re.Match[str]]:
    """Yields the matches of a pattern of digits."""
    for start, end in self.runs:
      # Two characters more are the last X of a number, and what may not follow.
      yield from pattern.finditer(self.text, max(0, start - 2), end + 3)


# ---- IP addresses

# Both begin at their first point or colon: what stands before is short.
_V4 = re.compile(
  r'\.(?<=[0-9].)[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}'
  r'(?![0-9A-Za-z])(?![.-][0-9])'
)
_V4_FIRST = re.compile(r'(?<![0-9A-Za-z])(?<![0-9A-Za-z][.-])[0-9]{1,3}\Z')
_V6 = re.compile(
  r':(?<=[23Ff][0-9A-Fa-f]{3}.)(?<![0-9A-Za-z:.].{5})[0-9A-Fa-f:]{2,35}+'
  r'(?![0-9A-Za-z])'
)
# Four numbers after these words are a version or a section.
_NUMBERED = re.compile(
  r'(?:(?<![A-Za-z])(?i:version|release|section|chapter|clause|rule|figure'
  r'|table|rev|ver|v)|[§版本节章条])[.:： ]{0,2}\Z'
)
# The IANA registries of special addresses. They are listed here because the
# lists of Python's ipaddress differ from version to version.
_SPECIAL_V4 = tuple(
  ipaddress.IPv4Network(x)
  for x in [
    '0.0.0.0/8',
    '10.0.0.0/8',
    '100.64.0.0/10',
    '127.0.0.0/8',
    '169.254.0.0/16',
    '172.16.0.0/12',
    '192.0.0.0/24',
    '192.0.2.0/24',
    '192.168.0.0/16',
    '198.18.0.0/15',
    '198.51.100.0/24',
    '203.0.113.0/24',
    '224.0.0.0/4',
    '240.0.0.0/4',
  ]
)
_SPECIAL_V6 = tuple(
  ipaddress.IPv6Network(x)
  for x in ['f000::/4', '2001:db8::/32', '3fff::/20', '2001::/23']
)


def public_ips(narrow: Narrow) -> Iterator[Span]:
  """Yields IP addresses that are reached from everywhere."""
  for span, special in _ips(narrow.text):
    if not special:
      yield span


def all_ips(narrow: Narrow) -> Iterator[Span]:
  """Yields IP addresses, private and documentation ranges too."""
  for span, _ in _ips(narrow.text):
    yield span


def _ips(text: str) -> Iterator[tuple[Span, bool]]:
  """Yields places of IP addresses, and whether their range is special."""
  for match in _V4.finditer(text):
    point, end = match.span()
    first = _V4_FIRST.search(text, max(0, point - 4), point)
    if first is None:
      continue
    start = first.start()
    try:
      address = ipaddress.IPv4Address(text[start:end])
    except ValueError:  # a number above 255, or one that begins with 0
      continue
    # 3.3.1.0 is a version. Of addresses that begin so, most are the well-known
    # ones of name servers, such as 8.8.8.8.
    if int(first[0]) > 9 and not _NUMBERED.search(
      text, max(0, start - 12), start
    ):
      yield Span(start, end), any(address in x for x in _SPECIAL_V4)
  for match in _V6.finditer(text):
    start = match.start() - 4
    found = text[start : match.end()]
    if not found.endswith('::'):
      found = found.rstrip(':')
    try:
      six = ipaddress.IPv6Address(found)
    except ValueError:
      continue
    yield Span(start, start + len(found)), any(six in x for x in _SPECIAL_V6)


# ---- IBAN

# Lengths by country, from the registry of SWIFT.
_IBAN_LENGTHS = {
  name: int(length)
  for length, names in (
    ('15', 'NO'),
    ('16', 'BE'),
    ('18', 'DK FI FK FO GL NL SD'),
    ('19', 'MK SI'),
    ('20', 'AT BA EE KZ LT LU MN XK'),
    ('21', 'CH HR LI LV'),
    ('22', 'BG BH CR DE GB GE IE ME RS VA'),
    ('23', 'AE GI IL IQ OM SO TL'),
    ('24', 'AD CZ ES MD PK RO SA SE SK TN VG'),
    ('25', 'LY PT ST'),
    ('26', 'IS TR'),
    ('27', 'BI DJ FR GR IT MC MR SM'),
    ('28', 'AL AZ BY CY DO GT HU LB NI PL SV'),
    ('29', 'BR EG PS QA UA'),
    ('30', 'JO KW MU YE'),
    ('31', 'MT SC'),
    ('32', 'LC'),
    ('33', 'RU'),
  )
  for name in names.split()
}
# It begins at its two check digits.
_IBAN = re.compile(
  r'[0-9](?<=[A-Za-z]{2}.)(?<![0-9A-Za-z].{3})[0-9]'
  r'(?:[ -]?[A-Z0-9]){11,29}|[0-9](?<=[a-z]{2}.)[0-9][a-z0-9]{11,29}'
)


def ibans(narrow: Narrow) -> Iterator[Span]:
  """Yields international bank account numbers (ISO 13616) that are valid."""
  text = narrow.text
  for match in _IBAN.finditer(text):
    start = match.start() - 2
    length = _IBAN_LENGTHS.get(text[start : start + 2].upper())
    if length is None:
      continue
    end, taken = start, 0
    while end < match.end() and taken < length:
      taken += text[end].isalnum()
      end += 1
    if taken < length or (text[end : end + 1] or ' ') in _ALPHANUMERIC:
      continue
    plain = re.sub('[ -]', '', text[start:end]).upper()
    digits = ''.join(str(int(x, 36)) for x in plain[4:] + plain[:4])
    if int(digits) % 97 == 1:
      yield Span(start, end)


_ALPHANUMERIC = frozenset(
  '0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz'
)

# ---- Payment cards

_CARD = re.compile(
  r'[2-6](?<![0-9A-Za-z].)(?<![0-9][.,-].)(?:[0-9]{12,18}'
  r'|(?<![0-9] .)[0-9]{3}([ -])[0-9]{4}\1[0-9]{4}\1[0-9]{4}'
  r'(?:\1[0-9]{1,3}(?![0-9]))?(?!\1[0-9])'
  r'|(?<![0-9] .)[0-9]{3}([ -])[0-9]{6}\2[0-9]{4,5}(?!\2[0-9])'
  r'|(?<![0-9] .)[0-9]{5}[ -][0-9]{13})(?![0-9A-Za-z])(?![.,-][0-9])'
)
# What the number of an issuer begins with, and its lengths.
_ISSUERS = re.compile(
  r'4(?:[0-9]{12}|[0-9]{15}|[0-9]{18})'  # Visa
  r'|5[1-5][0-9]{14}|2(?:22[1-9]|2[3-9][0-9]|[3-6][0-9]{2}|7[01][0-9]|720)'
  r'[0-9]{12}'  # Mastercard
  r'|3[47][0-9]{13}'  # American Express
  r'|6(?:011|4[4-9][0-9]|5[0-9]{2})[0-9]{12}'  # Discover
  r'|35(?:2[89]|[3-8][0-9])[0-9]{12}'  # JCB
  r'|3(?:0[0-5]|[689][0-9])[0-9]{11}'  # Diners Club
  r'|62[0-9]{14,17}'  # UnionPay
)
_DOUBLED = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)  # digit sums of twice a digit


def cards(narrow: Narrow) -> Iterator[Span]:
  """Yields card numbers of known issuers with a valid Luhn digit."""
  for match in narrow.in_runs(_CARD):
    digits = re.sub('[ -]', '', match[0])
    if _ISSUERS.fullmatch(digits) and is_luhn(digits):
      yield Span(*match.span())


def is_luhn(digits: str) -> bool:
  """Returns True if the last digit is that of Luhn (ISO/IEC 7812-1)."""
  numbers = [int(x) for x in reversed(digits)]
  total = sum(numbers[::2]) + sum(_DOUBLED[x] for x in numbers[1::2])
  return total % 10 == 0


# ---- Numbers of Chinese residents

# A province, a county, the day of birth, an order and a check character.
_CHINESE_ID = re.compile(
  r'[1-8](?<![0-9A-Za-z].)(?<![0-9][.,-].)'
  r'(?<=1(?=[1-5])|2(?=[1-3])|3(?=[1-7])|4(?=[1-6])|5(?=[0-4])|6(?=[1-5])'
  r'|7(?=1)|8(?=[1-3]))[0-9]{5}([ -]?)'
  r'(?:18|19|20)[0-9]{6}\1[0-9]{3}[0-9Xx](?![0-9A-Za-z])'
)
_ID_WEIGHTS = tuple(2 ** (17 - n) % 11 for n in range(17))


def chinese_ids(narrow: Narrow) -> Iterator[Span]:
  """Yields valid numbers of Chinese residents (GB 11643-1999)."""
  for match in narrow.in_runs(_CHINESE_ID):
    number = re.sub('[ -]', '', match[0])
    if number[17] in id_check(number[:17]):
      try:
        datetime.date(int(number[6:10]), int(number[10:12]), int(number[12:14]))
      except ValueError:
        continue
      yield Span(*match.span())


def id_check(number: str) -> str:
  """Returns the last character for 17 digits; 'Xx' where it is a ten."""
  total = sum(int(x) * w for x, w in zip(number, _ID_WEIGHTS, strict=True))
  return ('1', '0', 'Xx', '9', '8', '7', '6', '5', '4', '3', '2')[total % 11]
