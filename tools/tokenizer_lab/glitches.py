"""Finds the pieces of a vocabulary that a model hardly learns.

A model that reads such a piece may do anything. The kinds are those of Land and
Bartolo 2024, arXiv 2405.05417, section 3, found without a model: pieces that
the training text has never or hardly, that no text gives, that are no whole
characters, and that look like special tokens.
"""

from collections.abc import Sequence
import re
from typing import Any

import numpy as np

from lm import types
from lm.data.tokenizers import pieces as pieces_lib
from tools.tokenizer_lab import measures

# Texts behind which a piece is looked for. Some pieces stand only at the
# beginning of a text or after a space, a letter, a sign or a line end.
_BEFORE = ('', ' ', 'a', '的', '«', '.', '\n')
_SPECIAL = re.compile(
  r'\s*(<\|[^|<>]*\|>|</?[a-z][a-z_0-9 ]*>|\[/?[A-Z_]{3,}\d*\]|'
  r'<0x[0-9A-Fa-f]{2}>|<｜[^｜<>]*｜>)\s*'
)


def find(
  subject: measures.Subject, found: np.ndarray, rare: int
) -> dict[str, Any]:
  """Looks for pieces that are not, or hardly, learnt.

  A piece is listed under the first that holds:
    - unreachable: its text is encoded otherwise, also behind other texts;
    - partial: it begins or ends inside a character. Whether a text gives it
      cannot be told from its own text;
    - never: it occurs in none of the texts;
    - hardly: it occurs at most `rare` times.
  Beside that, special_like lists pieces of ordinary text that are spelled as
  special tokens are. Byte pieces, which are there for rare characters, and
  special ones are not listed.

  Args:
    subject: the tokenizer.
    found: int [V], how often each id occurs in the texts that a model would be
      trained on.
    rare: most occurrences of a piece that is listed under hardly.

  Returns:
    Lists of {'id', 'piece', 'count'} by kind, the most seldom first.
  """
  kinds = ('unreachable', 'partial', 'never', 'hardly', 'special_like')
  result: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
  own = own_ids(subject.tokenizer)
  text = [
    i
    for i, piece in enumerate(subject.pieces)
    if piece.kind == pieces_lib.TEXT and i not in own
  ]
  unused = [
    i
    for i in text
    if not found[i] and not pieces_lib.is_partial(subject.pieces[i])
  ]
  lost = _unreachable(subject, unused)
  for i in text:
    piece, n = subject.pieces[i], int(found[i])
    entry = {'id': i, 'piece': shown(piece), 'count': n}
    if i in lost:
      result['unreachable'].append(entry)
    elif pieces_lib.is_partial(piece):
      result['partial'].append(entry)
    elif n <= rare:
      result['hardly' if n else 'never'].append(entry)
    if _SPECIAL.fullmatch(piece.utf8.decode('utf-8', 'replace')):
      result['special_like'].append(entry)
  for entries in result.values():
    entries.sort(key=lambda x: (x['count'], x['id']))
  return result


def shown(piece: pieces_lib.Piece) -> str:
  """Spells a piece for a reader; half characters as bytes."""
  if pieces_lib.is_partial(piece) or piece.kind == pieces_lib.BYTE:
    return ' '.join(f'<0x{byte:02X}>' for byte in piece.utf8)
  return piece.utf8.decode('utf-8', 'replace')


def own_ids(tokenizer: types.Tokenizer) -> set[int]:
  """Lists the ids that no text is meant to have."""
  ids = {tokenizer.bos, tokenizer.eos, tokenizer.pad, *tokenizer.ends}
  ids |= {*tokenizer.sentinels, *tokenizer.special.values()}
  return ids if tokenizer.mask is None else ids | {tokenizer.mask}


def _unreachable(
  subject: measures.Subject, candidates: Sequence[int]
) -> set[int]:
  """Selects the pieces that the encoding of their own text does not have."""
  left = list(candidates)
  for before in _BEFORE:
    texts = [before + subject.pieces[i].utf8.decode() for i in left]
    rows = subject.tokenizer.encode_batch(texts)
    left = [i for i, ids in zip(left, rows, strict=True) if i not in ids]
  return set(left)
