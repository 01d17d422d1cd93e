"""Rules for Chinese, simplified and traditional alike.

English rules fail on it: it has neither spaces nor stop words of letters, and
one character carries as much as four letters. No paper gives numbers for all of
this; ours were chosen on novels, Wikipedia and poems, of which these rules drop
less than one in a hundred, short fragments of poems apart.
"""

import re

from lm.corpus import rules, texts

_PUNCTUATION = '，。！？；：、…「」『』“”《》'
# Numbers to call, accounts to add, and what stands around them on pages that
# sell, in both scripts: what it begins with, and how it goes on.
_DEBRIS = (
  ('1', r'(?<!\d1)[3-9]\d(?:[- ]?\d{4}){2}(?!\d)'),  # mobile numbers
  ('48', r'(?<!\d.)00[- ]?\d{3,4}[- ]?\d{3,4}(?!\d)'),  # of businesses
  ('0', r'(?<!\d0)\d{2,3}[- ]\d{7,8}(?!\d)'),  # with an area code
  ('qQ', r'[qQ][群号號]?\s*[:：]?\s*\d{5,}'),
  ('vV', r'[xX信]\s*[:：]'),
  ('微薇威', r'信[号號]?\s*[:：]'),
  ('加+＋', r'我?[微薇威]信'),
  ('h', r'ttps?://'),
  ('w', r'ww\.'),
  (
    '点點',
    r'[击擊](?:[这這此][里裡处處]|进入|進入|下[载載]|查看|[购購][买買])',
  ),
  ('免', r'[费費](?:咨询|諮詢|试用|試用|[领領]取|下[载載])'),
  ('立', r'即(?:[购購][买買]|咨询|諮詢|注册|註冊|下[载載]|[报報]名)'),
  ('客', r'服(?:[热熱][线線]|[电電][话話]|[微薇]信)'),
  ('咨諮', r'[询詢][热熱][线線]'),
  ('包', r'[邮郵]'),
  ('货貨', r'到付款'),
  ('版', r'[权權]所有'),
  ('转轉', r'[载載][请請]注明'),
  ('未', r'[经經]授[权權]'),
  ('I', r'CP[备備]'),
  ('上下', r'一[页頁篇]'),
  ('返', r'回(?:首[页頁]|[顶頂]部)'),
)
# A set of all beginnings first, which `re` looks for fast.
_FIRST = ''.join(x for x, _ in _DEBRIS)
_REST = '|'.join(f'(?<=[{x}]){rest}' for x, rest in _DEBRIS)
_ANY_DEBRIS = re.compile(f'[{_FIRST}](?:{_REST})')


def characters(least: int = 20, most: int = 1_000_000) -> rules.Rule:
  """Wants a number of Chinese characters; the shortest poems have twenty."""

  def rule(text: texts.Text) -> float | None:
    count = text.chinese
    return None if least <= count <= most else float(count)

  return rule


def share(least: float = 0.4) -> rules.Rule:
  """Wants a share of Chinese among all characters but white space."""

  def rule(text: texts.Text) -> float | None:
    whole = len(''.join(text.text.split()))
    return rules.below(rules.share(text.chinese, whole), least)

  return rule


def punctuation(least: float = 0.02, most: float = 0.4) -> rules.Rule:
  """Wants marks of Chinese punctuation for each Chinese character.

  Lists of key words have too few, and rows of ornaments too many.
  """

  def rule(text: texts.Text) -> float | None:
    marks = sum(map(text.text.count, _PUNCTUATION))
    value = rules.share(marks, text.chinese)
    return None if least <= value <= most else value

  return rule


def short_lines(most: float = 0.67, length: int = 8) -> rules.Rule:
  """Bounds the share of short lines that end without punctuation.

  Menus have them; short lines of poems end with punctuation.

  Args:
    most: share of the lines.
    length: characters of the longest line that is short.
  """

  def rule(text: texts.Text) -> float | None:
    short = sum(
      [len(x) <= length and x[-1] not in _PUNCTUATION for x in text.lines]
    )
    return rules.above(rules.share(short, len(text.lines)), most)

  return rule


def debris(most: float = 5.0) -> rules.Rule:
  """Bounds phone numbers, accounts, links and phrases of shops and pages.

  The value is their number for each 1,000 characters.
  """

  def rule(text: texts.Text) -> float | None:
    found = sum(1 for _ in _ANY_DEBRIS.finditer(text.text))
    return rules.above(1000 * rules.share(found, len(text.text)), most)

  return rule
