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


def nearest(
  subject: measures.Subject,
  found: np.ndarray,
  table_VD: np.ndarray,
  most: int = 100,
) -> list[dict[str, Any]]:
  """Lists pieces of the texts whose vectors are like those of untrained ids.

  Untrained are the ids that the texts do not have, but for bos and eos. A piece
  that the texts have, and that is near them all the same, was hardly in the
  text that the model has really seen.

  Args:
    subject: the tokenizer of the run.
    found: int [V], how often each id occurs in the texts.
    table_VD: the run's table of words.
    most: length of the list.

  Returns:
    `{'id', 'piece', 'count', 'distance'}` of pieces that the texts have, the
    nearest first, where 1 is the median distance of all of them.

  Reference: Land and Bartolo 2024, arXiv 2405.05417, section 3.2; the distance
  to the mean untrained vector, here Euclidean for tied and untied tables.
  """
  table_VD = table_VD[: len(subject.pieces)]
  known = {subject.tokenizer.bos, *subject.tokenizer.ends}
  is_untrained = found == 0
  is_untrained[list(known)] = False
  if not is_untrained.any() or not found.any():
    return []
  mean_D = table_VD[is_untrained].mean(0)
  distance_V = np.linalg.norm(table_VD - mean_D, axis=1)
  distance_V /= max(float(np.median(distance_V[found > 0])), 1e-30)
  order = np.argsort(distance_V, kind='stable').tolist()
  order = [i for i in order if found[i]]
  return [
    {
      'id': i,
      'piece': shown(subject.pieces[i]),
      'count': int(found[i]),
      'distance': float(distance_V[i]),
    }
    for i in order[:most]
  ]


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
