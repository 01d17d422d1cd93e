"""Tokenizers of sentencepiece that lose no text: loading and training them."""

from collections.abc import Iterable, Iterator
import hashlib
import io
import re

import numpy as np
import sentencepiece as spm

from lm import types
from lm.data import names
from lm.data.tokenizers import files, vocabulary

# Training sentences are cut to this many characters, at most 4 bytes each:
# sentencepiece silently drops a sentence above `max_sentence_length` bytes.
_SENTENCE = 4096


def make(path: str, reserved: int = 0) -> types.Tokenizer:
  """Loads a sentencepiece model, and checks on a probe that it loses no text.

  Args:
    path: of the file, `*.model`.
    reserved: number of ids to add, see `lm.data.tokenizers.auto.load`.

  Raises:
    ValueError: the file is missing or broken, lacks pad, eos, bos or byte
      pieces, or its normalization changes text.
  """
  fix = 'train one with lm.data.prepare.train_tokenizer'
  data = files.read(path)
  model = _parse(path, data, fix)
  pad, eos, bos = model.pad_id(), model.eos_id(), model.bos_id()
  if min(pad, eos, bos) < 0 or len({pad, eos, bos}) < 3:
    raise files.error(path, f'lacks one of the pieces pad, eos and bos; {fix}')
  mark = [
    model.PieceToId(f'<0x{byte:02X}>')
    for byte in vocabulary.SPACE_MARK.encode()
  ]

  def encode(text: str) -> list[int]:
    # A space mark in the text would be decoded as a space. Byte pieces are
    # decoded as the character that they spell, so the mark is spelled by them.
    ids: list[int] = []
    parts = vocabulary.checked_text(text).split(vocabulary.SPACE_MARK)
    for n, part in enumerate(parts):
      ids += (mark if n else []) + model.Encode(part)
    return ids

  def encode_batch(texts: list[str]) -> list[list[int]]:
    is_plain = [
      vocabulary.SPACE_MARK not in vocabulary.checked_text(text)
      for text in texts
    ]
    # One call for all texts without a mark: sentencepiece uses all cores.
    plain = iter(
      model.Encode([t for t, easy in zip(texts, is_plain, strict=True) if easy])
    )
    return [
      next(plain) if easy else encode(text)
      for text, easy in zip(texts, is_plain, strict=True)
    ]

  size = model.GetPieceSize()

  def decode(ids: list[int]) -> str:
    vocabulary.check_ids(ids, size + reserved)
    return model.Decode([int(i) for i in ids if i < size])

  probe = encode(vocabulary.PROBE)
  if decode(probe) != vocabulary.PROBE or {pad, eos, bos} & set(probe):
    raise files.error(
      path,
      'changes text (normalization, spaces or no byte fallback), so decoding '
      f'loses it; {fix}',
    )
  mask, sentinels = vocabulary.reserved_ids(size + reserved, reserved)
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
    word_starts=_word_starts(model, reserved),
  )


def train(
  texts: Iterable[str],
  path: str,
  vocab: int,
  kind: str = 'bpe',
  *,
  coverage: float = 0.9995,
  max_bytes: int = 1_000_000_000,
) -> None:
  """Trains a sentencepiece model that loses no text, and writes it.

  The same texts give the same file, byte for byte.

  Args:
    texts: documents. Newlines and tabs inside them are learnt like other
      characters.
    path: the file to write, `*.model`.
    vocab: number of pieces, 4 specials and 256 bytes included.
    kind: 'bpe' (trains 10x faster) or 'unigram' (encodes 5x faster).
    coverage: share of the occurrences of characters that get pieces. The rarest
      characters of a large script, such as Chinese, are spelled by bytes.
    max_bytes: stop reading after this many bytes of UTF-8, because the trainer
      holds them in memory.

  Raises:
    ValueError: there is no text, the vocabulary is too small or too large for
      it, or the kind is unknown.

  Reference: Kudo and Richardson 2018, arXiv 1808.06226.
  """
  if kind not in ('bpe', 'unigram'):
    raise ValueError(f'kind {names.short(kind)}: unknown; give bpe or unigram')
  used = 0

  def sentences() -> Iterator[str]:
    nonlocal used
    for text in texts:
      # sentencepiece would learn the space mark as a space, and it drops a
      # sentence that holds NUL.
      pattern = f'[{vocabulary.SPACE_MARK}\0]'
      for part in re.split(pattern, vocabulary.checked_text(text)):
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
      pad_id=vocabulary.PAD,
      eos_id=vocabulary.EOS,
      bos_id=vocabulary.BOS,
      unk_id=3,
      # A fixed number, because it is written into the file, which must not
      # depend on the machine.
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
  files.write(path, model.getvalue())


def _parse(path: str, data: bytes, fix: str) -> spm.SentencePieceProcessor:
  """Reads a model's file.

  Raises:
    ValueError: the file is no sentencepiece model.
  """
  try:
    model = spm.SentencePieceProcessor()
    if not data or not model.LoadFromSerializedProto(data):
      raise RuntimeError('empty')
  except (RuntimeError, UnicodeDecodeError) as e:  # the latter from its message
    raise files.error(path, f'not a sentencepiece model; {fix}') from e
  return model


def _word_starts(
  model: spm.SentencePieceProcessor, reserved: int
) -> np.ndarray:
  """Finds the pieces that begin a word: bool [V]."""
  pieces = []
  for i in range(model.GetPieceSize()):
    piece = model.IdToPiece(i)
    if model.IsByte(i):
      pieces.append(bytes([int(piece[3:5], 16)]))  # written as '<0x41>'
    else:
      pieces.append(piece.replace(vocabulary.SPACE_MARK, ' ').encode())
  return vocabulary.word_starts(pieces, reserved)
