"""Measures what a tokenizer makes of texts, language by language."""

from collections import Counter
from collections.abc import Sequence
import functools
import importlib
import itertools
import logging
import math
import re
from typing import Any, NamedTuple
import unicodedata

import numpy as np

from lm import errors, types
from lm.data.tokenizers import pieces as pieces_lib
from lm.data.tokenizers import vocabulary, words

# Fewer blanks than one in so many characters: words are not written apart.
_FEW_BLANKS = 30
_AT_ONCE = 16  # texts whose ids are held in memory
_EXAMPLE = 24  # characters around the first difference
_SCRIPTS = {'CJK': 'chinese', 'HIRAGANA': 'kana', 'KATAKANA': 'kana'}


class Text(NamedTuple):
  """A text in one language.

  Attributes:
    language: its name.
    sentences: the lines of its file; those of parallel texts translate each
      other.
  """

  language: str
  sentences: Sequence[str]


class Subject(NamedTuple):
  """A tokenizer to measure.

  Attributes:
    name: as it was given.
    tokenizer: to measure.
    pieces: of its ids, those reserved left out.
  """

  name: str
  tokenizer: types.Tokenizer
  pieces: Sequence[pieces_lib.Piece]


def counts(subject: Subject, texts: Sequence[str]) -> np.ndarray:
  """Counts the ids of texts: int [V]."""
  size = len(subject.pieces)
  found = np.zeros(size, np.int64)
  for start in range(0, len(texts), _AT_ONCE):
    part = list(texts[start : start + _AT_ONCE])
    for ids in subject.tokenizer.encode_batch(part):
      found += np.bincount(np.asarray(ids, np.int64), minlength=size)
  return found


def measure(subject: Subject, text: Text) -> dict[str, Any]:
  """Measures a tokenizer on a text.

  Returns:
    A row: numbers of sentences, bytes, characters and tokens, and
    - tokens_per_word, where words are written apart;
    - tokens_per_character, tokens_per_sentence, bytes_per_token;
    - bits_per_byte of the adaptive code of `code_bits`, None if the tokens do
      not give back the text;
    - split_words: share of words that several tokens spell (Rust et al. 2021,
      ACL 2021.acl-long.243, section 3), None as in tokens_per_word;
    - fallback: share of tokens that are unknown, or that spell only a part of a
      character;
    - used: share of the pieces that occur;
    - lost_bytes, see `vocabulary.lost_bytes`, and the first loss, `lost`: what
      stood in the text, and what is decoded instead.
  """
  tokenizer, sentences = subject.tokenizer, list(text.sentences)
  rows = tokenizer.encode_batch(sentences)
  size = len(subject.pieces)
  flat = np.fromiter(itertools.chain.from_iterable(rows), np.int64)
  found = np.bincount(flat, minlength=size)
  tokens = int(found.sum())
  size_bytes = sum(len(x.encode()) for x in sentences)
  characters = sum(map(len, sentences))
  lost_bytes, lost = _losses(tokenizer, sentences, rows)
  is_fallback = np.array(
    [
      piece.kind in (pieces_lib.BYTE, pieces_lib.UNKNOWN)
      or pieces_lib.is_partial(piece)
      for piece in subject.pieces
    ]
  )
  result = {
    'tokenizer': subject.name,
    'language': text.language,
    'sentences': len(sentences),
    'bytes': size_bytes,
    'characters': characters,
    'tokens': tokens,
    'tokens_per_word': None,
    'tokens_per_character': tokens / characters,
    'tokens_per_sentence': tokens / len(sentences),
    'bytes_per_token': size_bytes / max(tokens, 1),
    'bits_per_byte': None
    if lost_bytes
    else code_bits(found, _usable(subject)) / size_bytes,
    'split_words': None,
    'fallback': float(found[is_fallback].sum() / max(tokens, 1)),
    'used': float((found > 0).sum() / _usable(subject)),
    'lost_bytes': lost_bytes,
    'lost': lost,
  }
  apart = Counter(word for sentence in sentences for word in sentence.split())
  blanks = sum(sentence.count(' ') for sentence in sentences)
  if blanks * _FEW_BLANKS > characters:
    result['tokens_per_word'] = tokens / apart.total()
    result['split_words'] = _split_words(tokenizer, apart)
  return result


def code_bits(found: np.ndarray, size: int) -> float:
  """Computes the length of tokens in an adaptive code of single tokens.

  Each token costs -log2 of its share of the tokens before it, where every id
  has been seen half a time in advance. So the code pays for its vocabulary, and
  the order of the tokens does not matter.

  Args:
    found: int [V], how often each id occurs.
    size: number of ids that text can have.

  Returns:
    Bits.

  Reference: Krichevsky and Trofimov 1981, IEEE Trans. Inf. Theory 27(2).
  """
  total = int(found.sum())
  some = found[found > 0]
  nats = math.lgamma(total + size / 2) - math.lgamma(size / 2)
  nats -= sum(math.lgamma(n + 0.5) - math.lgamma(0.5) for n in some.tolist())
  return nats / math.log(2)


def add_premiums(rows: Sequence[dict[str, Any]], base: str | None) -> None:
  """Adds `premium`: tokens of a text by those of the base's, its translation.

  It is 1 for each language if a tokenizer is fair. None if a text has not as
  many sentences as that of the base.

  Args:
    rows: from `measure`.
    base: the language to compare with; None: there is none.

  Reference: Petrov et al. 2023, arXiv 2305.15425, section 2. They average over
  sentences; here it is the ratio of totals.
  """
  of = {(x['tokenizer'], x['language']): x for x in rows}
  for row in rows:
    other = of.get((row['tokenizer'], base))
    row['premium'] = None
    if other and other['sentences'] == row['sentences']:
      row['premium'] = row['tokens'] / other['tokens']


def used_by_script(
  subject: Subject, found: np.ndarray
) -> dict[str, tuple[int, int]]:
  """Counts the pieces by script: how many occur, and how many there are.

  The script is that of a piece's first letter. Pieces without one are digits,
  blank or signs; those that are no whole characters are bytes.

  Args:
    subject: the tokenizer.
    found: int [V], how often each id occurs.
  """
  used: Counter[str] = Counter()
  total: Counter[str] = Counter()
  for piece, n in zip(subject.pieces, found.tolist(), strict=True):
    if piece.kind in (pieces_lib.TEXT, pieces_lib.BYTE):
      name = _script(piece)
      total[name] += 1
      used[name] += n > 0
  return {name: (used[name], n) for name, n in total.most_common()}


def jieba_words(texts: Sequence[str], vocab: int, path: str) -> Subject:
  """Trains a tokenizer of Chinese words, which jieba cuts apart.

  A word that is not among the most frequent ones is unknown. Blanks are lost.

  Args:
    texts: to train on.
    vocab: number of ids, see `words.train`.
    path: of the file to write, `*.json`.

  Raises:
    errors.Missing: jieba is not installed.
    ValueError: see `words.train`.
  """
  try:
    importlib.import_module('jieba').setLogLevel(logging.WARNING)
  except ModuleNotFoundError as e:
    raise errors.Missing(
      f'--tokenizer=jieba:{vocab}: needs the package jieba:'
      f' {errors.install("data")}'
    ) from e
  words.train(map(_cut, texts), path, vocab=vocab, least_count=1)
  own = words.make(path)
  # Blanks of the text, and those between words, are both left out.
  blank = re.compile('[ \t]+')
  tokenizer = own._replace(
    encode=lambda text: own.encode(_cut(text)),
    encode_batch=lambda all_: own.encode_batch([_cut(text) for text in all_]),
    decode=lambda ids: blank.sub('', own.decode(ids)),
    decode_next=lambda ids: blank.sub('', own.decode_next(ids)),
  )
  return Subject(f'jieba:{vocab}', tokenizer, pieces_lib.read(path))


@functools.lru_cache(maxsize=100_000)  # cutting is slow, and texts come again
def _cut(text: str) -> str:
  """Puts a space between Chinese words."""
  return ' '.join(importlib.import_module('jieba').cut(text))


def _usable(subject: Subject) -> int:
  """Counts the ids that text can have."""
  return sum(x.kind != pieces_lib.SPECIAL for x in subject.pieces)


def _losses(
  tokenizer: types.Tokenizer,
  sentences: Sequence[str],
  rows: Sequence[list[int]],
) -> tuple[int, list[str] | None]:
  """Counts the bytes that do not come back, and shows the first of them."""
  total, first = 0, None
  for sentence, ids in zip(sentences, rows, strict=True):
    decoded = tokenizer.decode(ids)
    lost = vocabulary.lost_bytes(sentence, decoded)
    if lost and first is None:
      pairs = zip(sentence, decoded, strict=False)
      same = next((n for n, (a, b) in enumerate(pairs) if a != b), None)
      at = min(len(sentence), len(decoded)) if same is None else same
      part = slice(max(at - _EXAMPLE // 2, 0), at + _EXAMPLE // 2)
      first = [sentence[part], decoded[part]]
    total += lost
  return total, first


def _split_words(tokenizer: types.Tokenizer, apart: Counter[str]) -> float:
  """Computes the share of words that are not one token after a space.

  A token for the space alone is not counted.
  """
  rows = tokenizer.encode_batch([f' {word}' for word in apart])
  is_blank = functools.cache(lambda i: not tokenizer.decode_next([i]).strip())
  split = sum(
    n
    for ids, n in zip(rows, apart.values(), strict=True)
    if len(ids) - is_blank(ids[0]) > 1
  )
  return split / apart.total()


def _script(piece: pieces_lib.Piece) -> str:
  """Names the script of a piece."""
  if piece.kind == pieces_lib.BYTE or pieces_lib.is_partial(piece):
    return 'bytes'
  text = piece.utf8.decode()
  for c in text:
    if unicodedata.category(c)[0] == 'L':
      name = unicodedata.name(c, 'OTHER').split()[0].split('-')[0]
      return _SCRIPTS.get(name, name.lower())
  if any(c.isdigit() for c in text):
    return 'digits'
  return 'signs' if text.strip() else 'blank'
