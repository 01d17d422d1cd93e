"""Finds e-mail addresses, those with letters beyond ASCII too (RFC 6531).

All patterns take linear time; see `identifiers`.
"""

from collections.abc import Iterator
import re

from lm.corpus import identifiers

# Letters of scripts that put a space between words, without their punctuation.
_SPACED = (
  '\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u02af\u0300-\u037d\u0386\u0388-\u055f'
  '\u0561-\u0588\u05d0-\u05f4\u0610-\u061a\u0620-\u0669\u066e-\u06d3\u06d5-\u06ff'
  '\u0710-\u0963\u0966-\u0df3\u10a0-\u10fa\u10fc-\u10ff\u1e00-\u1fff'
)
# Letters of scripts that do not, and of Korean, whose particles follow names.
# What stands before an address or behind it need not be its part.
_THAI = '\u0e01-\u0eff\u1000-\u1049\u1780-\u17d3'  # Lao, Burmese, Khmer
_CHINESE = (  # Japanese, Korean
  '\u3005\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u3400-\u4dbf'
  '\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U000323af'
)
_JOINED = f'{_THAI}{_CHINESE}'
_WORD = f'A-Za-z0-9{_SPACED}'
_LETTER = f'{_WORD}{_JOINED}'
_LABEL = rf'[{_LETTER}](?:[{_LETTER}-]{{0,61}}[{_LETTER}])?'
# Ends of domains. Text may follow those of such scripts without a space.
_JOINED_END = (
  '新加坡|中文网|我爱你|中国|中國|公司|网络|網絡|网址|网站|在线|香港|台湾|台灣|澳門|集团|商城|政务|公益'
  '|测试|測試|한국|닷컴|닷넷|테스트|みんな|コム|テスト|ไทย|คอม'
)
_END = (
  rf'xn--[A-Za-z0-9-]{{2,59}}(?![A-Za-z0-9])|[{_SPACED}]{{2,24}}(?![{_WORD}])'
  rf'|{_JOINED_END}|[A-Za-z]{{2,24}}(?![A-Za-z0-9\u00c0-\u024f])'
)
_LOCAL = re.compile(rf'[{_WORD}_+](?:[{_WORD}_.+%&-]{{0,62}}[{_WORD}_+-])?\Z')
# Chinese names have up to four characters. What may be part of a name is masked
# where only a space could tell.
_JOINED_LOCAL = re.compile(
  rf'(?:[{_CHINESE}]{{1,4}}|[{_THAI}]{{1,24}})[{_WORD}_.+%&-]{{0,58}}\Z'
)
_AT = re.compile(rf'@(?<=[{_LETTER}_+-].)(?:{_LABEL}\.){{1,6}}({_END})')
# `name (at) domain (dot) org`
_SPELLED = re.compile(
  r'[\[({] ?(?i:at) ?[\])}] ?'
  rf'(?:[{_LETTER}-]{{1,63}}+(?: ?[\[({{] ?(?i:dot) ?[\])}}] ?|\.)){{1,6}}+'
  rf'(?:{_END})'
)
# Names of files (logo@2x.png) and code (a@b.shape) have other endings. All
# countries' have two letters, of which these are code more often.
_TOP_LEVEL = re.compile(
  '[a-z]{2}|aero|app|arpa|art|asia|biz|blog|cat|cloud|club|com|coop|dev|edu'
  '|email|example|gov|group|info|int|invalid|jobs|link|live|local|ltd|mil|mobi'
  '|museum|name|net|news|online|org|page|post|pro|shop|site|space|store|studio'
  '|team|tech|tel|test|top|travel|vip|website|wiki|work|world|xyz'
)
_CODE = frozenset(['js', 'rb'])


_IS_JOINED = re.compile(f'[{_JOINED}]')


def emails(narrow: identifiers.Narrow) -> Iterator[identifiers.Span]:
  """Yields e-mail addresses."""
  text = narrow.text
  if '@' in text:
    for match in _AT.finditer(text):
      start = match.start()
      if _is_top_level(match, text) and (
        (local := _before(start, match[0], text)) is not None
      ):
        yield identifiers.Span(local, match.end())
  for match in _SPELLED.finditer(text):
    end = match.start() - (text[match.start() - 1 : match.start()] == ' ')
    if (local := _before(end, match[0], text)) is not None:
      yield identifiers.Span(local, match.end())


def _is_top_level(match: re.Match[str], text: str) -> bool:
  """Returns True if a domain ends as domains do, and is not called."""
  end = match[1].lower()
  if not end.isascii() or end.startswith('xn--'):
    return True
  is_known = bool(_TOP_LEVEL.fullmatch(end)) and end not in _CODE
  return is_known and text[match.end() : match.end() + 1] != '('


def _before(end: int, domain: str, text: str) -> int | None:
  """Returns the start of the local part that ends here, or None.

  Text without spaces may stand before an ASCII address, and is kept. Where the
  address itself has such letters, they may belong to it.
  """
  first = max(0, end - 64)
  match = _LOCAL.search(text, first, end)
  if match is None or _IS_JOINED.search(domain):
    match = _JOINED_LOCAL.search(text, first, end) or match
  return match.start() if match else None
