"""Lists the pieces of a tokenizer's file: the text that each id stands for."""

from typing import NamedTuple

from lm.data.tokenizers import (
  auto,
  characters,
  files,
  sentencepiece,
  words,
)

TEXT, BYTE, SPECIAL, UNKNOWN = 'text', 'byte', 'special', 'unknown'
KINDS = (TEXT, BYTE, SPECIAL, UNKNOWN)


class Piece(NamedTuple):
  """The piece of an id.

  Attributes:
    kind: TEXT; BYTE, which spells a part of any character that has no piece;
      SPECIAL, which no text is encoded to; or UNKNOWN, which stands for what
      the tokenizer cannot spell.
    utf8: the bytes of a text, which may begin or end inside a character; those
      of the name of a special piece, where the file has one.
  """

  kind: str
  utf8: bytes


def read(name: str) -> list[Piece]:
  """Reads the pieces of a tokenizer, in the order of their ids.

  Args:
    name: see `lm.data.tokenizers.auto.load`.

  Raises:
    ValueError: the file is missing, broken or of another kind.
  """
  spelled = [Piece(BYTE, bytes([b])) for b in range(256)]
  special = [Piece(SPECIAL, x) for x in (b'<pad>', b'</s>', b'<s>')]
  if name == 'bytes':
    return special + spelled
  if name.endswith('.model'):
    return [Piece(*piece) for piece in sentencepiece.pieces(name)]
  if files.is_tokenizer_json(name):
    auto.load(name)  # says so where the package is not installed
    from lm.data.tokenizers import huggingface

    return [Piece(*piece) for piece in huggingface.pieces(name)]
  if words.is_words(name):
    text = ['\n', *words.read(name).words]
    found = [Piece(TEXT, x.encode()) for x in text]
    found.insert(1, Piece(UNKNOWN, words.UNKNOWN_WORD.encode()))
    return special + found
  text = characters.alphabet(name)
  return special + spelled + [Piece(TEXT, c.encode()) for c in text]


def is_partial(piece: Piece) -> bool:
  """Tells whether a text piece begins or ends inside a character."""
  try:
    piece.utf8.decode()
  except UnicodeDecodeError:
    return piece.kind == TEXT
  return False
