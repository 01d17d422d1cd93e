"""Passages that are longer than a row, and the answers inside them."""

from collections.abc import Iterator, Sequence
import functools
import re
import unicodedata

from lm import types
from lm.data.finetuning import records as record_lib

# Scripts whose words are not parted by spaces. Each character is a piece, so
# that answers can end at each.
_SPACELESS = ''.join(
  (
    '\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\U00020000-\U0003ffff',  # Chinese
    '\u3005-\u3007\u3031-\u3035\u3041-\u30ff\u31f0-\u31ff\uff66-\uff9f',  # kana
    '\u3105-\u312f\u31a0-\u31bf',  # Bopomofo
    '\u0e00-\u0eff',  # Thai and Lao
    '\u0f00-\u0fff',  # Tibetan
    '\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f',  # Burmese and Shan
    '\u1780-\u17ff',  # Khmer
    '\u1950-\u19df\u1a20-\u1aaf\uaa80-\uaadf',  # Tai
    '\u1b00-\u1b7f\ua980-\ua9df',  # Balinese and Javanese
  )
)
# Words of other scripts, and signs one by one.
_PIECES = re.compile(rf'[{_SPACELESS}]|[^\W{_SPACELESS}]+|[^\w\s]')
_IS_SPACELESS = re.compile(rf'[{_SPACELESS}]')
_JOINERS = '\u200c\u200d'  # stand inside words of Persian and Indian scripts
_FIRST_JOINED = '\u0600'  # those scripts come after this character


@functools.lru_cache(4096)
def pieces(passage: str) -> tuple[tuple[int, int], ...]:
  """Cuts a passage where an answer may begin and end: (first, stop) each.

  A piece is a word or a sign, and in scripts without spaces between words, such
  as those of Chinese, Japanese and Thai, a character. Marks that combine with
  the character before them, such as the vowels of Hindi, belong to its piece.
  """
  found: list[tuple[int, int]] = []
  marked = False  # whether the last piece is a word that ends with a mark
  for match in _PIECES.finditer(passage):
    first, stop = match.span()
    touches = bool(found) and found[-1][1] == first
    joins = touches and _is_mark(passage, first)
    if joins or (touches and marked and _continues(passage, found[-1], first)):
      found[-1] = found[-1][0], stop
    else:
      found.append((first, stop))
    marked = joins
  return tuple(found)


def is_spaceless(piece: str) -> bool:
  """Tells whether a piece is of a script without spaces between words."""
  return bool(_IS_SPACELESS.match(piece))


def _is_mark(passage: str, place: int) -> bool:
  letter = passage[place]
  # Between Latin letters a joiner is a mistake and parts two words.
  joins = letter in _JOINERS and passage[place - 1] >= _FIRST_JOINED
  return joins or unicodedata.category(letter).startswith('M')


def _continues(passage: str, piece: tuple[int, int], first: int) -> bool:
  """Tells whether a letter behind a mark belongs to the word before it."""
  is_letter = re.match(r'\w', passage[first]) is not None
  begun = passage[piece[0]]
  return (
    is_letter
    and re.match(r'\w', begun) is not None
    and not _IS_SPACELESS.match(passage[first])
    and not _IS_SPACELESS.match(begun)
  )


def encode(
  passage: str, tokenizer: types.Tokenizer
) -> tuple[list[int], list[int]]:
  """Encodes a passage piece by piece: its ids, and the piece of each id."""
  texts = [
    (' ' if first and passage[first - 1].isspace() else '')
    + passage[first:stop]
    for first, stop in pieces(passage)
  ]
  ids, owners = [], []
  for n, part in enumerate(tokenizer.encode_batch(texts) if texts else []):
    ids += part
    owners += [n] * len(part)
  return ids, owners


def find_answer(
  record: record_lib.Reading, owners: Sequence[int]
) -> tuple[int, int] | None:
  """Finds the first and the last token of a record's first answer.

  Args:
    record: whose passage `encode` has encoded.
    owners: the piece of each token.

  Returns:
    None: there is no answer, or no token of the passage belongs to it.
  """
  if not record.answers:
    return None
  start, text = record.answers[0]
  stop = start + len(text)
  inside = [
    n
    for n, (first, last) in enumerate(pieces(record.passage))
    if first < stop and start < last
  ]
  tokens = [i for i, owner in enumerate(owners) if owner in inside]
  return (tokens[0], tokens[-1]) if tokens else None


def overlapping(
  size: int, room: int, stride: int | None
) -> Iterator[tuple[int, int, range]]:
  """Cuts the tokens of a record into rows that overlap.

  Args:
    size: number of tokens of the record.
    room: number of tokens of a row.
    stride: tokens from one row to the next; None is half of `room`.

  Yields:
    first and stop of a row, and the range of its tokens that are scored in it:
    those that no other row shows with more context.
  """
  step = max(1, min(room, room // 2 if stride is None else stride))
  firsts = list(range(0, max(size - room, 0) + step, step)) if size else [0]
  # The last row ends where the record ends, so that it is as long as others.
  firsts = [min(first, max(size - room, 0)) for first in firsts]
  firsts = list(dict.fromkeys(firsts))
  edge = 0
  for n, first in enumerate(firsts):
    stop = min(first + room, size)
    # Two rows share the tokens from the start of the second to the end of the
    # first; each scores the half that is farther from its own edge.
    after = size if n + 1 == len(firsts) else (firsts[n + 1] + stop + 1) // 2
    yield first, stop, range(edge, after)
    edge = after
