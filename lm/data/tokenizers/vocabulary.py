"""Special ids, words, and checks of text and ids, for all tokenizers.

Ids 0, 1 and 2 are pad, eos and bos in every tokenizer that is trained here.
`decode(encode(x)) == x` holds for every Unicode string, and no text can spell a
special id: `'</s>'` in a document becomes ordinary pieces. The tokenizers of
`lm.data.tokenizers.huggingface`, which others trained, promise less: they are
not `lossless`, and what a text lost is measured by `lost_bytes`.
"""

import collections
from collections.abc import Callable, Sequence

import numpy as np

from lm import types

PAD, EOS, BOS = 0, 1, 2
MOST = 1 << 22  # ids; a broken file must not cause a table of 4 billion rows
SPACE_MARK = '\u2581'  # sentencepiece writes a space as this character
# The text on which a tokenizer is tried when it is opened. It has what is lost
# most easily: spaces, the space mark, and text that looks like special pieces.
PROBE = (
  ' a  b \n\n\t c\r\n\0 e\u0301 \ufb01 \uff21 </s><s><pad><unk><0x41> 12345 '
  '\u4f60\u597d\u3002\u2581\u2047 \U0001f600\ufeff '
)
# Scripts without spaces begin here: CJK radicals, kana, Chinese characters.
_FIRST_CJK = '\u2e80'


def check_reserved(reserved: int) -> None:
  """Checks a number of reserved ids before tables of that size are made.

  Raises:
    ValueError: it is below 0, or larger than any vocabulary.
  """
  if type(reserved) is not int or not 0 <= reserved <= MOST:
    raise ValueError(
      f'tokenizer.reserved={reserved!r:.40}: must be a whole number from 0 to '
      f'{MOST}'
    )


def reserved_ids(size: int, reserved: int) -> tuple[int | None, Sequence[int]]:
  """Assigns the reserved ids at the end of a vocabulary.

  Args:
    size: of the whole vocabulary, V.
    reserved: how many of the last ids are reserved.

  Returns:
    The id of the mask, which is the first of them (None without any), and the
    ids of the sentinels: the others, from the last one downwards.
  """
  mask = size - reserved if reserved else None
  return mask, range(size - 1, size - reserved, -1)


def word_starts(pieces: Sequence[bytes], reserved: int) -> np.ndarray:
  """Finds the pieces that begin a word: bool [V].

  A word is a run of letters and digits together with what stands before it, as
  a rule a space. A character of a script without spaces is a word of its own.
  A piece of bytes that are only a part of a character continues a word.

  Args:
    pieces: the UTF-8 bytes of each piece; b'' for a special one.
    reserved: the number of ids that follow the pieces.
  """

  def begins_word(piece: bytes) -> bool:
    first = piece.decode('utf-8', 'replace')[:1]
    # U+FFFD that the piece does not itself spell stands for half a character.
    if first == '\ufffd' and not piece.startswith(first.encode()):
      return False
    return not first.isalnum() or first >= _FIRST_CJK

  return np.array([begins_word(p) for p in pieces] + [True] * reserved)


def utf8(text: str) -> bytes:
  """Encodes text as UTF-8.

  Raises:
    ValueError: the text has a lone surrogate.
  """
  try:
    return text.encode()
  except UnicodeEncodeError as e:
    raise ValueError(
      f'text has a lone surrogate at character {e.start}, so it is not '
      'Unicode; replace it before encoding, as lm.data.documents does'
    ) from e


def checked_text(text: str) -> str:
  """Returns the text unchanged, if it can be encoded.

  Raises:
    ValueError: the text has a lone surrogate.
  """
  if not text.isascii():  # nearly free, and true of most English text
    utf8(text)
  return text


def gives_back(tokenizer: types.Tokenizer, text: str) -> bool:
  """Tells whether the ids of a text are decoded to exactly that text.

  Only then is the likelihood of the ids one of the text. Otherwise it is that
  of all texts with these ids together, and bits per byte would be too low.
  """
  return tokenizer.lossless or tokenizer.decode(tokenizer.encode(text)) == text


def decoder_of_rest(
  encode: Callable[[str], list[int]], decode: Callable[[list[int]], str]
) -> Callable[[list[int]], str]:
  """Makes a decoder of ids that follow other text.

  Many tokenizers put a space before each text, and take it from the beginning
  when they decode; WordPiece puts spaces only between words. So the ids are
  decoded behind a word, which is then taken away.
  """
  # A vocabulary may lack a letter, whose id is then skipped.
  known = (ids for c in 'ae1.\u7684' if decode(ids := encode(c)).strip())
  word = next(known, [])
  before = decode(word)

  def decode_next(ids: list[int]) -> str:
    whole = decode([*word, *ids])
    return whole[len(before) :] if whole.startswith(before) else decode(ids)

  return decode_next


def lost_bytes(text: str, decoded: str) -> int:
  """Counts the bytes of a text that its ids do not give back.

  0 says that they give back the text exactly. Otherwise it is a lower bound, of
  1 or more: the bytes of UTF-8 of the characters that occur more often in the
  text, wherever they stand.

  Args:
    text: what was encoded.
    decoded: what its ids are decoded to.
  """
  if decoded == text:
    return 0
  lost = collections.Counter(text) - collections.Counter(decoded)
  return max(1, sum(n * len(c.encode()) for c, n in lost.items()))


def check_ids(ids: Sequence[int], size: int) -> None:
  """Checks ids before they are decoded.

  Raises:
    ValueError: an id is outside the vocabulary of `size` ids.
  """
  if len(ids) and not 0 <= min(ids) <= max(ids) < size:
    raise ValueError(
      f'id {max(ids) if max(ids) >= size else min(ids)} is outside the '
      f'vocabulary of {size}; decode with the tokenizer that encoded'
    )
