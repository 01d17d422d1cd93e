"""Views of a text that several rules share: its words and its lines."""

import functools
import itertools
import re
import sys

import numpy as np

from lm import splitmix

# Is raised when words or lines of a text become others. Then the results of all
# stages may be others, too.
VERSION = 1

_LOOKED_AT = 2000  # characters that tell whether a text is Chinese
BLOCK = 1 << 20  # characters at once; so many of a word decide on its hash
_SPACE = re.compile(r'\s')
_NO_WORD = {
  i: ' ' for i in range(128) if not (chr(i).isalnum() or chr(i) == '_')
}
# Letters have the bit 1, so that their sum is their number.
_LETTER_KIND, _WORD_KIND, _CHINESE_KIND, _SPACE_KIND = map(
  np.uint8, (1, 2, 4, 8)
)
_UTF32 = 'utf-32-le' if sys.byteorder == 'little' else 'utf-32-be'
_POWER = splitmix.STEP  # odd, so that it has an inverse modulo 2^64


class Text:
  """A text, with what rules ask about it, found once and when it is asked.

  Attributes:
    text: the text itself.
  """

  def __init__(self, text: str):
    self.text = text

  @functools.cached_property
  def lower(self) -> str:
    """The text in lower case."""
    return self.text.lower()

  @functools.cached_property
  def words(self) -> list[str]:
    """The words in lower case; each Chinese character is one.

    They are runs of letters, digits and _: the matches of the expression
    `[\\u3400-\\u9fff]|[^\\W\\u3400-\\u9fff]+`, found faster than by it. Chinese
    is written without spaces.
    """
    if self.lower.isascii():
      return self.lower.translate(_NO_WORD).split()
    if blocks := _blocks(self.text):
      return [word for x in blocks for word in Text(x).words]
    codes, kinds = self._codes
    blocks = [
      _spaced(codes[n : n + BLOCK], kinds[n : n + BLOCK])
      for n in range(0, len(codes), BLOCK)
    ]
    return ''.join(blocks).split()

  @functools.cached_property
  def hashes(self) -> np.ndarray:
    """A uint64 hash of each word, the same in every process.

    Of a word of more than a million characters the first million count.
    """
    if blocks := _blocks(self.text):
      return np.concatenate([Text(x).hashes for x in blocks])
    starts, ends = self._bounds
    codes, _ = self._codes
    if len(codes) <= BLOCK:
      return _hash(codes, starts, ends)
    # Without white space. No word is longer than a block.
    ends = np.minimum(ends, starts + BLOCK)
    parts, first = [], 0
    while first < len(starts):
      begin = starts[first]
      last = int(np.searchsorted(ends, begin + BLOCK, 'right'))
      block = slice(first, last)
      part = codes[begin : ends[last - 1]]
      parts.append(_hash(part, starts[block] - begin, ends[block] - begin))
      first = last
    return np.concatenate(parts) if parts else np.zeros(0, np.uint64)

  @functools.cached_property
  def lengths(self) -> np.ndarray:
    """The number of characters of each word."""
    if blocks := _blocks(self.text):
      return np.concatenate([Text(x).lengths for x in blocks])
    starts, ends = self._bounds
    return ends - starts

  @functools.cached_property
  def places(self) -> tuple[np.ndarray, np.ndarray]:
    """The places in the text where words begin, and where they have ended."""
    if blocks := _blocks(self.text):
      before = np.cumsum([0, *map(len, blocks)])
      inside = [Text(x).places for x in blocks]
      starts, ends = (
        np.concatenate([x[n] + m for x, m in zip(inside, before, strict=False)])
        for n in (0, 1)
      )
      return starts, ends
    starts, ends = self._bounds
    # In lower case only this letter becomes longer, by a dot.
    longer = np.array([x.end() for x in re.finditer('\u0130', self.text)], int)
    if len(longer):
      longer += np.arange(len(longer))
      starts = starts - np.searchsorted(longer, starts, 'left')
      ends = ends - np.searchsorted(longer, ends, 'left')
    return starts, ends

  @functools.cached_property
  def tokens(self) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of characters and of letters in each token.

    A token is what stands between white space, with its punctuation.
    """
    _, kinds = self._codes
    inside = np.zeros(len(kinds) + 2, bool)
    np.equal(kinds & _SPACE_KIND, 0, out=inside[1:-1])
    bounds = (inside[1:] != inside[:-1]).nonzero()[0]
    letters = np.zeros(len(kinds) + 1, np.int32)
    np.cumsum(kinds & _LETTER_KIND, out=letters[1:], dtype=np.int32)
    starts, ends = bounds[::2], bounds[1::2]
    return ends - starts, letters[ends] - letters[starts]

  @functools.cached_property
  def lines(self) -> list[str]:
    """The lines that hold more than white space, without it at their ends."""
    return [x for line in self.text.split('\n') if (x := line.strip())]

  @functools.cached_property
  def paragraphs(self) -> list[str]:
    """The parts between blank lines, without white space at their ends."""
    return [x for part in self.text.split('\n\n') if (x := part.strip())]

  @functools.cached_property
  def chinese(self) -> int:
    """The number of Chinese characters."""
    _, kinds = self._codes
    return int(np.count_nonzero(kinds & _CHINESE_KIND))

  @functools.cached_property
  def is_chinese(self) -> bool:
    """Tells whether more than a fifth of its first characters are Chinese."""
    head = self.text[:_LOOKED_AT]
    if head.isascii():
      return False
    _, kinds = _read(head)
    count = int(np.count_nonzero(kinds & _CHINESE_KIND))
    return count > 0.2 * len(head)

  def language(self, known: str) -> str:
    """Returns the language if it is known, else 'zh' or ''."""
    return known or ('zh' if self.is_chinese else '')

  @functools.cached_property
  def _codes(self) -> tuple[np.ndarray, np.ndarray]:
    """The code points of the text in lower case, and the kind of each."""
    return _read(self.lower)

  @functools.cached_property
  def _bounds(self) -> tuple[np.ndarray, np.ndarray]:
    """The places where words begin, and those where they have ended."""
    codes, kinds = self._codes
    inside = np.zeros(len(kinds) + 2, bool)
    np.not_equal(kinds & _WORD_KIND, 0, out=inside[1:-1])
    if codes.dtype == np.uint8:
      bounds = (inside[1:] != inside[:-1]).nonzero()[0]
      return bounds[::2], bounds[1::2]
    # No word goes on from or to a Chinese character.
    alone = np.zeros(len(inside), bool)
    np.not_equal(kinds & _CHINESE_KIND, 0, out=alone[1:-1])
    joined = inside[1:] & inside[:-1] & ~alone[1:] & ~alone[:-1]
    starts = (inside[1:] & ~joined).nonzero()[0]
    return starts, (inside[:-1] & ~joined).nonzero()[0]


@functools.lru_cache(maxsize=1024)
def view(text: str) -> Text:
  """Returns the view of a text, the same one to each stage of a batch.

  `view.cache_clear()` after a batch lets its memory go.
  """
  return Text(text)


def _blocks(text: str) -> list[str]:
  """Cuts a long text at white space, for the memory; else returns nothing.

  Neither a word nor the context that decides on a small letter (of sigma) goes
  over white space.
  """
  if len(text) <= BLOCK:
    return []
  ends = [0]
  while ends[-1] < len(text):
    found = _SPACE.search(text, ends[-1] + BLOCK)
    ends.append(found.end() if found else len(text))
  if len(ends) == 2:
    return []
  return [text[a:b] for a, b in itertools.pairwise(ends)]


def _read(text: str) -> tuple[np.ndarray, np.ndarray]:
  """Returns the code points of a text, and the kind of each."""
  if text.isascii():  # a quarter of the memory, and faster
    raw = text.encode()
    kinds = raw.translate(_kinds()[:256].tobytes())
    return np.frombuffer(raw, np.uint8), np.frombuffer(kinds, np.uint8)
  codes = np.frombuffer(text.encode(_UTF32, 'surrogatepass'), np.uint32)
  kinds = np.empty(len(codes), np.uint8)
  for n in range(0, len(codes), BLOCK):  # `take` needs 8 bytes a code
    block = slice(n, n + BLOCK)
    kinds[block] = _kinds().take(codes[block], mode='clip')
  return codes, kinds


def _spaced(codes: np.ndarray, kinds: np.ndarray) -> str:
  """Makes what is in no word a space; puts one on either side of Chinese."""
  chinese = (kinds & _CHINESE_KIND > 0).astype(np.intp)
  ends = np.cumsum(1 + 2 * chinese)
  spaced = np.full(ends[-1], 32, np.uint32)
  spaced[ends - 1 - chinese] = np.where(kinds & _WORD_KIND, codes, 32)
  return spaced.tobytes().decode(_UTF32, 'surrogatepass')


def _hash(
  codes: np.ndarray, starts: np.ndarray, ends: np.ndarray
) -> np.ndarray:
  """Hashes words by their code points and their places among these."""
  factors, inverses = powers(len(codes))
  # A word's polynomial is a difference of two sums, moved to its beginning.
  sums = np.zeros(len(codes) + 1, np.uint64)
  np.multiply(codes, factors[: len(codes)], out=sums[1:])
  np.cumsum(sums, out=sums)
  return splitmix.mix((sums[ends] - sums[starts]) * inverses[starts])


def powers(count: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns at least so many powers of an odd number, and of its inverse.

  They are uint64, modulo 2^64: with sums of things times powers, a difference
  of two sums times an inverse is a hash of what lies between.
  """
  return _powers(count.bit_length())


@functools.cache
def _kinds() -> np.ndarray:
  """Tells of each code point which kinds of character it is."""
  count = 0x33480  # no letter or digit has a higher code in Unicode 17

  # numpy asks as `str` does, and thirty times as fast.
  each = np.arange(count, dtype=np.uint32).view('U1')
  kinds = _WORD_KIND * np.strings.isalnum(each)
  kinds += _LETTER_KIND * np.strings.isalpha(each)
  kinds += _SPACE_KIND * np.strings.isspace(each)
  kinds[ord('_')] += _WORD_KIND
  kinds[0x3400:0xA000] |= _WORD_KIND | _CHINESE_KIND
  kinds[-1] = 0  # stands for all that follow
  return kinds


@functools.cache
def _powers(bits: int) -> tuple[np.ndarray, np.ndarray]:
  inverse = pow(_POWER, -1, 1 << 64)
  factors, inverses = (
    np.cumprod(np.full(1 << bits, x, np.uint64)) for x in (_POWER, inverse)
  )
  return factors, inverses
