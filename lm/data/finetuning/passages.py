"""Passages that are longer than a row, and the answers inside them."""

from collections.abc import Iterator, Sequence
import functools
import re

from lm import types
from lm.data.finetuning import records as record_lib

# Words; signs and Chinese characters one by one. Answers can end at each.
_PIECES = re.compile(r'[一-鿿㐀-䶿]|[^\W一-鿿㐀-䶿]+|[^\w\s]')


@functools.lru_cache(4096)
def pieces(passage: str) -> tuple[tuple[int, int], ...]:
  """Cuts a passage where an answer may begin and end: (first, stop) each.

  A piece is a word, a sign or a Chinese character.
  """
  return tuple(match.span() for match in _PIECES.finditer(passage))


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
    None: no token of the passage belongs to the answer.
  """
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
