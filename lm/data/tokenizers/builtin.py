"""Text to ids and back, without loss.

`decode(encode(x)) == x` for every Unicode string, and no text can spell a
special id: `'</s>'` in a document becomes ordinary pieces. Ids 0, 1 and 2 are
pad, eos and bos in every tokenizer made here. Those of other houses, which
promise less, are `lm.data.tokenizers.huggingface`'s.
"""

from collections.abc import Iterable, Iterator, Sequence
import hashlib
import io
import json
import os
from pathlib import Path
import re

import numpy as np
import sentencepiece as spm

from lm import errors, types
from lm.data import names

PAD, EOS, BOS = 0, 1, 2
_FIRST_BYTE = 3  # of the byte and character tokenizers: ids 3..258 are bytes
_SPACE_MARK = '\u2581'  # sentencepiece writes a space so, and reads it back so
# Training sentences are cut to this many characters, at most 4 bytes each:
# sentencepiece silently drops a sentence above `max_sentence_length` bytes.
_SENTENCE = 4096
# What is hardest to keep: spaces, the mark, and text that spells pieces.
PROBE = (
  ' a  b \n\n\t c\r\n\0 e\u0301 \ufb01 \uff21 </s><s><pad><unk><0x41> 12345 '
  '\u4f60\u597d\u3002\u2581\u2047 \U0001f600\ufeff '
)


def load(name: str, reserved: int = 0) -> types.Tokenizer:
  """Loads by file name: `*.model`, `*.json`, or the word `bytes`.

  A `*.json` is a list of characters, or a tokenizer of `lm.data.tokenizers.huggingface`
  where it has a `model`.

  Args:
    name: of the file.
    reserved: ids to add at the end of the vocabulary: the first is the mask,
      the last ones, downwards, are the sentinels. They change no encoding, so
      that shards serve any number of them.

  Raises:
    ValueError: the file is missing, broken or of another kind, or the package
      that reads it is missing.
  """
  if name == 'bytes':
    return bytes_(reserved)
  if name.endswith('.model'):
    return sentencepiece(name, reserved)
  if is_foreign(name):
    try:
      from lm.data.tokenizers import huggingface
    except ModuleNotFoundError as e:
      raise ValueError(
        f'tokenizer {names.short(name)}: needs the package {e.name}: '
        f'{errors.install("interop")}'
      ) from e
    return huggingface.make(name, reserved=reserved)
  if name.endswith('.json'):
    return characters(name, reserved)
  raise ValueError(
    f'tokenizer {names.short(name)}: unknown kind; give x.model '
    "(sentencepiece), x.json (characters, Hugging Face) or the word 'bytes'"
  )


def is_foreign(path: str) -> bool:
  """Tells if a file is a `tokenizer.json` of `lm.data.tokenizers.huggingface`.

  Raises:
    ValueError: it cannot be read.
  """
  if not path.endswith('.json'):
    return False
  data = read(path)
  try:
    tree = json.loads(data)
  except (ValueError, RecursionError):
    return False
  return isinstance(tree, dict) and 'model' in tree


def bytes_(reserved: int = 0) -> types.Tokenizer:
  """Makes the tokenizer of UTF-8 bytes: 3 specials and 256 bytes."""
  return _table((), hashlib.sha256(b'lm bytes 1').hexdigest(), reserved)


def characters(path: str, reserved: int = 0) -> types.Tokenizer:
  """Loads a character tokenizer written by `train_characters`.

  A character outside the list is spelled by its UTF-8 bytes, which always
  have ids, so that nothing is lost.

  Raises:
    ValueError: the file is missing or not such a list.
  """
  data = read(path)
  try:
    alphabet = json.loads(data)['characters']
    good = all(isinstance(c, str) and len(c) == 1 for c in alphabet)
    good = good and len(set(alphabet)) == len(alphabet)
    ''.join(alphabet).encode()
  except (ValueError, KeyError, TypeError, RecursionError):
    good, alphabet = False, ()
  if not good:
    raise ValueError(
      f'tokenizer {names.short(path)}: not a list of distinct characters; '
      'write it again with tools/train_tokenizer.py --kind characters'
    )
  return _table(alphabet, hashlib.sha256(data).hexdigest(), reserved)


def sentencepiece(path: str, reserved: int = 0) -> types.Tokenizer:
  """Loads a sentencepiece model, and tries that it loses nothing.

  Raises:
    ValueError: the file is missing or broken, lacks pad, eos, bos or byte
      pieces, or its normalization changes text.
  """
  data = read(path)
  fix = 'train one with tools/train_tokenizer.py'
  try:
    model = spm.SentencePieceProcessor()
    if not data or not model.LoadFromSerializedProto(data):
      raise RuntimeError('empty')
  except (RuntimeError, UnicodeDecodeError) as e:  # the latter from its message
    raise ValueError(
      f'tokenizer {names.short(path)}: not a sentencepiece model; {fix}'
    ) from e
  mark = [model.PieceToId(f'<0x{byte:02X}>') for byte in _SPACE_MARK.encode()]
  pad, eos, bos = model.pad_id(), model.eos_id(), model.bos_id()
  if min(pad, eos, bos) < 0 or len({pad, eos, bos}) < 3:
    raise ValueError(
      f'tokenizer {names.short(path)}: lacks one of the pieces pad, eos and '
      f'bos; {fix}'
    )

  def encode(text: str) -> list[int]:
    # A mark in the text would come back as a space. Its own byte pieces are
    # read back as the mark, so it is spelled by them.
    ids: list[int] = []
    for n, part in enumerate(checked(text).split(_SPACE_MARK)):
      ids += (mark if n else []) + model.Encode(part)
    return ids

  def encode_batch(texts: list[str]) -> list[list[int]]:
    plain = [_SPACE_MARK not in checked(text) for text in texts]
    fast = iter(
      model.Encode([t for t, easy in zip(texts, plain, strict=True) if easy])
    )
    return [
      next(fast) if easy else encode(text)
      for text, easy in zip(texts, plain, strict=True)
    ]

  size = model.GetPieceSize()

  def decode(ids: list[int]) -> str:
    check_ids(ids, size + reserved)
    return model.Decode([int(i) for i in ids if i < size])

  probe = encode(PROBE)
  if decode(probe) != PROBE or {pad, eos, bos} & set(probe):
    raise ValueError(
      f'tokenizer {names.short(path)}: changes text (normalization, spaces or '
      f'no byte fallback), so decoding loses it; {fix}'
    )
  mask, sentinels = reserve(size + reserved, reserved)
  return types.Tokenizer(
    encode=encode,
    encode_batch=encode_batch,
    decode=decode,
    size=size + reserved,
    bos=bos,
    eos=eos,
    pad=pad,
    sha256=hashlib.sha256(data).hexdigest(),
    reserved=reserved,
    mask=mask,
    sentinels=sentinels,
    word_starts=word_starts(
      [
        bytes([int(model.IdToPiece(i)[3:5], 16)])
        if model.IsByte(i)
        else model.IdToPiece(i).replace(_SPACE_MARK, ' ').encode()
        for i in range(size)
      ],
      reserved,
    ),
  )


def train_sentencepiece(
  texts: Iterable[str],
  path: str,
  vocab: int,
  kind: str = 'bpe',
  *,
  coverage: float = 0.9995,
  max_bytes: int = 1_000_000_000,
) -> None:
  """Trains a lossless sentencepiece model and writes it, byte for byte the
  same for the same texts.

  Args:
    texts: documents; newlines and tabs inside are learnt like other characters.
    path: the file to write, `*.model`.
    vocab: the number of pieces, with 4 specials and 256 bytes among them.
    kind: `bpe` (trains 10x faster) or `unigram` (encodes 5x faster).
    coverage: share of the characters' occurrences that get a piece of their
      own; the rarest of a large script (Chinese) are spelled by bytes.
    max_bytes: stop reading after this many UTF-8 bytes: the trainer holds them
      in memory.

  Raises:
    ValueError: no text, a vocabulary too small or too large for it, or an
      unknown kind.

  Reference: Kudo and Richardson 2018, arXiv 1808.06226.
  """
  if kind not in ('bpe', 'unigram'):
    raise ValueError(f'kind {names.short(kind)}: unknown; give bpe or unigram')
  used = 0

  def sentences() -> Iterator[str]:
    nonlocal used
    for text in texts:
      # The mark would be learnt as a space; a sentence with NUL is dropped.
      for part in re.split(f'[{_SPACE_MARK}\0]', checked(text)):
        for start in range(0, len(part), _SENTENCE):
          if used >= max_bytes:
            return
          sentence = part[start : start + _SENTENCE]
          used += len(sentence.encode())
          yield sentence

  model = io.BytesIO()
  try:
    spm.SentencePieceTrainer.Train(
      sentence_iterator=sentences(),
      model_writer=model,
      vocab_size=vocab,
      model_type=kind,
      character_coverage=coverage,
      normalization_rule_name='identity',
      byte_fallback=True,
      remove_extra_whitespaces=False,
      add_dummy_prefix=False,
      allow_whitespace_only_pieces=True,
      split_digits=True,
      pad_id=PAD,
      eos_id=EOS,
      bos_id=BOS,
      unk_id=3,
      # A fixed number, written into the file: the machine must not show in it.
      num_threads=2,
      max_sentence_length=4 * _SENTENCE,
      input_sentence_size=0,
      shuffle_input_sentence=False,
      minloglevel=2,
    )
  except (RuntimeError, OSError, TypeError) as e:
    if not used:
      cause = 'no text to train on; check the input'
    else:
      cause = str(e).split('] ', 1)[-1].strip() or 'training failed'
      cause = f'vocabulary {vocab} does not fit this text: {cause[:85]}'
    raise ValueError(f'tokenizer {names.short(path)}: {cause}') from e
  _write(path, model.getvalue())


def train_characters(texts: Iterable[str], path: str) -> None:
  """Writes the sorted characters of `texts` as a character tokenizer."""
  alphabet: set[str] = set()
  for text in texts:
    alphabet |= set(checked(text))
  body = json.dumps({'characters': sorted(alphabet)}, ensure_ascii=False)
  _write(path, body.encode() + b'\n')


def _table(
  alphabet: Iterable[str], sha256: str, reserved: int
) -> types.Tokenizer:
  """Makes a tokenizer of 3 specials, 256 bytes and single characters."""
  spelled = [b'', b'', b'', *(bytes([b]) for b in range(256))]
  first = len(spelled)
  spelled += [c.encode() for c in alphabet]
  ids_of = {c: first + n for n, c in enumerate(alphabet)}
  top = max(map(ord, ids_of), default=-1)
  table = np.full(top + 2, -1, np.int32)  # the last entry: every other one
  for c, i in ids_of.items():
    table[ord(c)] = i

  def encode(text: str) -> list[int]:
    data = _utf8(text)
    if not ids_of:
      return [_FIRST_BYTE + byte for byte in data]
    code = np.frombuffer(text.encode('utf-32-le'), np.uint32)
    ids = table[np.minimum(code, top + 1)]
    if ids.size == 0 or ids.min() >= 0:
      return ids.tolist()
    spelling: list[int] = []
    for c, i in zip(text, ids.tolist(), strict=True):
      spelling += [i] if i >= 0 else [_FIRST_BYTE + b for b in c.encode()]
    return spelling

  starts = word_starts(spelled, reserved)
  spelled += [b''] * reserved

  def decode(ids: list[int]) -> str:
    check_ids(ids, len(spelled))
    return b''.join([spelled[i] for i in ids]).decode('utf-8', 'replace')

  mask, sentinels = reserve(len(spelled), reserved)
  return types.Tokenizer(
    encode=encode,
    encode_batch=lambda texts: [encode(text) for text in texts],
    decode=decode,
    size=len(spelled),
    bos=BOS,
    eos=EOS,
    pad=PAD,
    sha256=sha256,
    reserved=reserved,
    mask=mask,
    sentinels=sentinels,
    word_starts=starts,
  )


def reserve(size: int, reserved: int) -> tuple[int | None, Sequence[int]]:
  """Gives out the last `reserved` of `size` ids: a mask, and sentinels."""
  mask = size - reserved if reserved else None
  return mask, range(size - 1, size - reserved, -1)


def word_starts(spelled: list[bytes], reserved: int) -> np.ndarray:
  """Finds the pieces that begin a word: bool [V].

  A word is a run of letters and digits with what stands before it, a space as
  a rule; a character of a script without spaces is a word of its own. Bytes
  that are a part of a character go on with what there is.

  Args:
    spelled: the UTF-8 bytes of each piece, none of a special.
    reserved: how many ids follow them.
  """

  def begins(piece: bytes) -> bool:
    first = piece.decode('utf-8', 'replace')[:1]
    if first == '\ufffd' and not piece.startswith(first.encode()):
      return False
    return not first.isalnum() or first >= '\u2e80'  # from CJK radicals on

  return np.array([begins(p) for p in spelled] + [True] * reserved)


def _utf8(text: str) -> bytes:
  try:
    return text.encode()
  except UnicodeEncodeError as e:
    raise ValueError(
      f'text has a lone surrogate at character {e.start}, so it is not '
      'Unicode; replace it before encoding (prepare_data --errors=replace)'
    ) from e


def checked(text: str) -> str:
  """Returns `text` as it is.

  Raises:
    ValueError: it has a lone surrogate.
  """
  if not text.isascii():
    _utf8(text)
  return text


def check_ids(ids: list[int], size: int) -> None:
  """Checks ids before they are decoded.

  Raises:
    ValueError: an id is outside the vocabulary of `size`.
  """
  if len(ids) and not 0 <= min(ids) <= max(ids) < size:
    raise ValueError(
      f'id {max(ids) if max(ids) >= size else min(ids)} is outside the '
      f'vocabulary of {size}; decode with the tokenizer that encoded'
    )


def read(path: str) -> bytes:
  """Reads a tokenizer's file.

  Raises:
    ValueError: it cannot be read.
  """
  try:
    return Path(path).read_bytes()
  except OSError as e:
    raise ValueError(
      f'tokenizer {names.short(path)}: cannot be read ({e.strerror}); give the '
      'path of a file written by tools/train_tokenizer.py'
    ) from e


def _write(path: str, data: bytes) -> None:
  """Writes all or nothing, so that a kill leaves no half of a tokenizer."""
  target = Path(path)
  target.parent.mkdir(parents=True, exist_ok=True)
  part = target.with_name(f'.{target.name}.{os.getpid()}')
  try:
    part.write_bytes(data)
    part.replace(target)
  finally:
    part.unlink(missing_ok=True)
