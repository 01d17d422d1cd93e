"""Tokenizers of single characters, which a text's alphabet is enough to train.

A character outside the alphabet is spelled by its UTF-8 bytes, which always
have ids, so that no text is lost.
"""

from collections.abc import Iterable
import hashlib
import json

import numpy as np

from lm import types
from lm.data.tokenizers import files, vocabulary

_FIRST_BYTE = 3  # ids 3..258 are the bytes; those of characters follow


def make(path: str, reserved: int = 0) -> types.Tokenizer:
  """Loads a character tokenizer that `train` wrote.

  Args:
    path: of the file, `*.json`.
    reserved: number of ids to add, see `lm.data.tokenizers.auto.load`.

  Raises:
    ValueError: the file is missing or is not a list of characters.
  """
  data = files.read(path)
  return from_alphabet(_alphabet(path, data), _sha256(data), reserved)


def train(texts: Iterable[str], path: str) -> None:
  """Writes the sorted characters of `texts` as a character tokenizer."""
  alphabet: set[str] = set()
  for text in texts:
    alphabet |= set(vocabulary.checked_text(text))
  body = json.dumps({'characters': sorted(alphabet)}, ensure_ascii=False)
  files.write(path, body.encode() + b'\n')


def alphabet(path: str) -> list[str]:
  """Reads the characters of a character tokenizer, in the order of their ids.

  Raises:
    ValueError: the file is missing or is not a list of characters.
  """
  return _alphabet(path, files.read(path))


def from_alphabet(
  alphabet: Iterable[str], sha256: str, reserved: int
) -> types.Tokenizer:
  """Makes a tokenizer of 3 special ids, 256 bytes and single characters.

  Args:
    alphabet: the characters, in the order of their ids.
    sha256: fingerprint of the tokenizer.
    reserved: number of ids to add at the end.
  """
  vocabulary.check_reserved(reserved)
  pieces = [b'', b'', b'', *(bytes([b]) for b in range(256))]
  first = len(pieces)
  pieces += [c.encode() for c in alphabet]
  ids_of = {c: first + n for n, c in enumerate(alphabet)}
  highest = max(map(ord, ids_of), default=-1)
  # Ids by code point; the last entry is that of all code points above.
  table = np.full(highest + 2, -1, np.int32)
  for c, i in ids_of.items():
    table[ord(c)] = i

  def encode(text: str) -> list[int]:
    data = vocabulary.utf8(text)
    if not ids_of:
      ids = np.frombuffer(data, np.uint8).astype(np.int32)
      return (ids + _FIRST_BYTE).tolist()
    code_points = np.frombuffer(text.encode('utf-32-le'), np.uint32)
    ids = table[np.minimum(code_points, highest + 1)]
    if ids.size == 0 or ids.min() >= 0:
      return ids.tolist()
    spelled: list[int] = []
    for c, i in zip(text, ids.tolist(), strict=True):
      spelled += [i] if i >= 0 else [_FIRST_BYTE + b for b in c.encode()]
    return spelled

  word_starts = vocabulary.word_starts(pieces, reserved)
  pieces += [b''] * reserved

  def decode(ids: list[int]) -> str:
    vocabulary.check_ids(ids, len(pieces))
    return b''.join([pieces[i] for i in ids]).decode('utf-8', 'replace')

  mask, sentinels = vocabulary.reserved_ids(len(pieces), reserved)
  return types.Tokenizer(
    encode=encode,
    encode_batch=lambda texts: [encode(text) for text in texts],
    decode=decode,
    decode_next=decode,
    size=len(pieces),
    bos=vocabulary.BOS,
    eos=vocabulary.EOS,
    ends=(vocabulary.EOS,),
    pad=vocabulary.PAD,
    sha256=sha256,
    reserved=reserved,
    mask=mask,
    sentinels=sentinels,
    word_starts=word_starts,
    lossless=True,
  )


def _alphabet(path: str, data: bytes) -> list[str]:
  """Reads and checks the list of characters."""
  try:
    alphabet = json.loads(data)['characters']
    is_good = all(isinstance(c, str) and len(c) == 1 for c in alphabet)
    is_good = is_good and len(set(alphabet)) == len(alphabet)
    ''.join(alphabet).encode()  # fails for a lone surrogate
  except (ValueError, KeyError, TypeError, RecursionError):
    is_good, alphabet = False, []
  if not is_good:
    raise files.error(
      path,
      'not a list of distinct characters; write it again with '
      "lm.corpus.prepare.train_tokenizer, kind='characters'",
    )
  return alphabet


def _sha256(data: bytes) -> str:
  return hashlib.sha256(data).hexdigest()
