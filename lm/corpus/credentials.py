"""Finds keys, tokens and passwords that open an account.

The forms are those that issuers document, so that a scanner can find them.
"""

from collections import Counter
from collections.abc import Iterator
import math
import re

from lm.corpus import identifiers

_END = r'(?![0-9A-Za-z])'
# Each pattern begins with a piece of text that is searched for fast; what a key
# has before it is looked for afterwards.
_ISSUED = tuple(
  re.compile(x)
  for x in (
    # GitHub, Stripe, Hugging Face, npm
    r'_(?:(?<=(?<![0-9A-Za-z])gh[pousr]_)[A-Za-z0-9]{36,255}'
    r'|(?<=(?<![0-9A-Za-z])github_pat_)[A-Za-z0-9_]{22,255}'
    r'|(?<=(?<![0-9A-Za-z])[spr]k_)(?:live|test)_[A-Za-z0-9]{10,250}'
    r'|(?<=(?<![0-9A-Za-z])whsec_)[A-Za-z0-9+/=]{24,100}'
    rf'|(?<=(?<![0-9A-Za-z])hf_)[A-Za-z0-9]{{30,60}}{_END}'
    rf'|(?<=(?<![0-9A-Za-z])npm_)[A-Za-z0-9]{{36}}{_END})',
    # Slack, GitLab, Google, PyPI, OpenAI and Anthropic
    r'-(?:(?<=(?<![0-9A-Za-z])xox[abeoprs]-)[A-Za-z0-9-]{10,250}'
    r'|(?<=(?<![0-9A-Za-z])xapp-)[0-9]-[A-Za-z0-9-]{10,250}'
    r'|(?<=(?<![0-9A-Za-z])glpat-)[A-Za-z0-9_-]{20,64}'
    r'|(?<=(?<![0-9A-Za-z])GOCSPX-)[A-Za-z0-9_-]{28}'
    r'|(?<=(?<![0-9A-Za-z])pypi-)AgE[A-Za-z0-9_-]{50,250}'
    r'|(?<=(?<![0-9A-Za-z_-])sk-)(?=[a-z_-]{0,60}[A-Z0-9][A-Za-z_-]{0,60}[A-Z0-9])'
    r'[A-Za-z0-9_-]{20,250})',
    # Amazon Web Services
    rf'IA(?<=(?<![0-9A-Za-z])A[KSB]IA)[A-Z0-9]{{16}}{_END}',
    r'AIza(?<![0-9A-Za-z]....)[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])',
    r'ya29\.[A-Za-z0-9_-]{20,250}',
    r'hooks\.slack\.com/(?:services|workflows)/[A-Za-z0-9/]{20,120}',
    r'SG\.(?<![0-9A-Za-z]...)[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{32,64}',
    # Telegram
    r':AA(?<=[0-9]{8}...)[A-Za-z0-9_-]{33}(?![A-Za-z0-9_-])',
    # JSON Web Token, RFC 7519: two objects in base64 and a signature
    r'eyJ(?<![0-9A-Za-z]...)[A-Za-z0-9_-]{8,4000}+\.eyJ[A-Za-z0-9_-]{4,8000}+'
    r'\.[A-Za-z0-9_-]{16,2000}+',
    # Private keys, RFC 7468. Without its last line, a key is what looks like
    # one; a sentence about the first line is none.
    r'-----BEGIN (?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----'
    r'(?:(?:[A-Za-z0-9+/=\s:,.()\\]|-(?!----)){30,20000}+'
    r'-----END [A-Z0-9 ]{1,48}-----'
    r'|(?:\s{1,4}[A-Za-z-]{1,20}+: [^\n]{0,100}+){0,4}+'
    r'(?:(?:\s|\\n|\\r){1,4}+[A-Za-z0-9+/=]{32,}+){1,400}+)',
  )
)
_BEGUN = re.compile(r'(?<![0-9A-Za-z])[A-Za-z0-9_]{1,12}\Z')
_BEARER = re.compile(r'Bearer ([A-Za-z0-9._~+/=-]{16,1000})')
# A password in an address: postgres://user:password@host
_LOGIN = re.compile(r'://[^\s:@/]{1,64}:([^\s:@/]{3,128})@')
# A value after a name. The name is looked for before the sign, which is rarer.
_VALUE = re.compile(
  r'[=:：是](?:> ?|[ \t]{1,2})?["\'“`]?'
  r'([A-Za-z0-9+/_.~!@#$%^&*?-]{12,256}+=?=?)'
)
_NAME = re.compile(
  r'(?i:passw(?:or)?d|passphrase|pwd|secret|token|api[ _-]?key|apikey'
  r'|access[ _-]?key|account[ _-]?key|auth[ _-]?key|private[ _-]?key'
  r'|secret[ _-]?key|encryption[ _-]?key|signing[ _-]?key'
  r'|密码|密钥|口令|令牌)(?:_?[A-Z0-9a-z]{1,6})?["\'”`\])]{0,2}[ \t]{0,2}:?\Z'
)
# A name in code, such as ed25519.PrivateKey.from_bytes.
_DOTTED = re.compile(r'[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+')
_LEAST_BITS = 2.75  # a character; twenty random hexadecimal digits have more


def keys(narrow: identifiers.Narrow) -> Iterator[identifiers.Span]:
  """Yields keys and tokens by their form, and random values by their name."""
  text = narrow.text
  for pattern in _ISSUED:
    for match in pattern.finditer(text):
      start = match.start()
      begun = _BEGUN.search(text, max(0, start - 12), start)
      yield identifiers.Span(begun.start() if begun else start, match.end())
  for match in _BEARER.finditer(text):
    if is_random(match[1]):
      yield identifiers.Span(*match.span(1))
  for match in _LOGIN.finditer(text):
    yield identifiers.Span(*match.span(1))
  for match in _VALUE.finditer(text):
    end = match.start()
    if is_random(match[1]) and _NAME.search(text, max(0, end - 32), end):
      yield identifiers.Span(*match.span(1))


def is_random(text: str) -> bool:
  """Returns True if the characters of a word look drawn by chance.

  It has letters, 2.75 bits a character or more by the counts of its own
  characters, and two digits or more that do not stand only at its end: those of
  `token_v2` make no key of a name. Names of code joined by points are none.
  """
  digits = sum(map(str.isdigit, text))
  if digits < 2 or not any(map(str.isalpha, text)):
    return False
  if not any(map(str.isdigit, text.rstrip('0123456789'))):
    return False
  if _DOTTED.fullmatch(text):
    return False
  size = len(text)
  bits = -sum(n / size * math.log2(n / size) for n in Counter(text).values())
  return bits >= _LEAST_BITS
