"""Tokenizers of sentencepiece that lose no text: loading and training them."""

from collections.abc import Iterable, Iterator
import hashlib
import io
import re
from typing import Any

from google.protobuf import message
import numpy as np
import sentencepiece as spm
from sentencepiece import sentencepiece_model_pb2

from lm import types
from lm.data import names
from lm.data.tokenizers import files, vocabulary

# Its classes are made at run time, where a type checker does not see them.
_MESSAGES: Any = sentencepiece_model_pb2

# Training sentences are cut to this many characters, at most 4 bytes each:
# sentencepiece silently drops a sentence above `max_sentence_length` bytes.
_SENTENCE = 4096
# Training text is cut at these characters. sentencepiece would learn the space
# mark as a space, and it silently drops a sentence that holds NUL or U+2585.
_CUTS = re.compile(f'[{vocabulary.SPACE_MARK}\0\u2585]')
_FEWEST = 4 + 256 + 1  # pieces: specials (with unknown), bytes and the space
_MOST = 2**31 - 1  # sentencepiece counts pieces in int32


def make(path: str, reserved: int = 0) -> types.Tokenizer:
  """Loads a sentencepiece model, and checks that it loses no text.

  Its file must say that it rewrites no character and spells unknown ones by
  bytes, and it must give back a probe. Then it gives back every text.

  Args:
    path: of the file, `*.model`.
    reserved: number of ids to add, see `lm.data.tokenizers.auto.load`.

  Raises:
    ValueError: the file is missing or broken, lacks pad, eos, bos or byte
      pieces, or its normalization changes text.
  """
  fix = 'train one with lm.corpus.prepare.train_tokenizer'
  vocabulary.check_reserved(reserved)
  data = files.read(path)
  model = _parse(path, data, fix)
  pad, eos, bos = model.pad_id(), model.eos_id(), model.bos_id()
  if min(pad, eos, bos) < 0 or len({pad, eos, bos}) < 3:
    raise files.error(path, f'lacks one of the pieces pad, eos and bos; {fix}')
  spelled = [f'<0x{byte:02X}>' for byte in vocabulary.SPACE_MARK.encode()]
  mark = [model.PieceToId(byte) for byte in spelled]

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
  forged = {pad, eos, bos} & set(probe)
  is_kept = _is_lossless(path, data, fix) and decode(probe) == vocabulary.PROBE
  if forged or not is_kept:
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
    decode_next=decode,  # it puts no space before a text
    size=size + reserved,
    bos=bos,
    eos=eos,
    ends=(eos,),
    pad=pad,
    sha256=hashlib.sha256(data).hexdigest(),
    reserved=reserved,
    mask=mask,
    sentinels=sentinels,
    word_starts=_word_starts(model, reserved),
    lossless=True,
    special={model.IdToPiece(i): i for i in (pad, eos, bos) if i < size},
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
    vocab: number of pieces, 4 specials, 256 bytes and the space included.
    kind: 'bpe' (trains 10x faster) or 'unigram' (encodes 5x faster).
    coverage: share of the occurrences of characters that get pieces, from 0.98
      to 1. The rarest characters of a large script, such as Chinese, are
      spelled by bytes. The space always gets a piece.
    max_bytes: stop reading after this many bytes of UTF-8, because the trainer
      holds them in memory.

  Raises:
    ValueError: a setting is out of range, which is found before any text is
      read; there is no text; or the vocabulary is too small or too large for
      it.

  Reference: Kudo and Richardson 2018, arXiv 1808.06226.
  """
  _check_settings(vocab, kind, coverage, max_bytes)
  used = 0

  def sentences() -> Iterator[str]:
    nonlocal used
    for text in texts:
      for part in _CUTS.split(vocabulary.checked_text(text)):
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
      # Text without a space, or with fewer than the coverage asks for, would
      # give the space no piece. sentencepiece would spell it by the bytes of
      # its mark, and decode those as the mark.
      required_chars=vocabulary.SPACE_MARK,
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
    # sentencepiece gives no reason where it is left without any sentence.
    if reason := used and str(e).split('] ', 1)[-1].strip():
      cause = f'vocabulary {vocab} does not fit this text: {reason[:85]}'
    else:
      cause = (
        'no text to train on (line ends, NUL and names of special pieces teach '
        'nothing); check the input'
      )
    raise ValueError(f'tokenizer {names.short(path)}: {cause}') from e
  files.write(path, model.getvalue())


def _check_settings(
  vocab: int, kind: str, coverage: float, max_bytes: int
) -> None:
  """Checks what `train` is given beside text.

  Raises:
    ValueError: a setting is out of range.
  """
  if kind not in ('bpe', 'unigram'):
    raise ValueError(f'kind {names.short(kind)}: unknown; give bpe or unigram')
  if type(vocab) is not int or not _FEWEST <= vocab <= _MOST:
    raise ValueError(
      f'vocab={names.short(str(vocab))}: give a whole number from {_FEWEST} (4 '
      f'special pieces, 256 bytes and the space) to {_MOST}'
    )
  # What lies outside of this range sentencepiece refuses without a word.
  if type(coverage) not in (int, float) or not 0.98 <= coverage <= 1:
    raise ValueError(
      f'coverage={names.short(str(coverage))}: give a share from 0.98 to 1'
    )
  if type(max_bytes) is not int or max_bytes < 1:
    raise ValueError(
      f'max_bytes={names.short(str(max_bytes))}: give a whole number above 0'
    )


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


def _is_lossless(path: str, data: bytes, fix: str) -> bool:
  """Tells whether a model rewrites no character and spells others by bytes.

  Raises:
    ValueError: the file is no sentencepiece model.
  """
  try:
    model = _MESSAGES.ModelProto.FromString(data)
  except message.DecodeError as e:
    raise files.error(path, f'not a sentencepiece model; {fix}') from e
  specs = model.normalizer_spec, model.denormalizer_spec
  rewrites = any(spec.precompiled_charsmap for spec in specs)
  return model.trainer_spec.byte_fallback and not rewrites


def _word_starts(
  model: spm.SentencePieceProcessor, reserved: int
) -> np.ndarray:
  """Finds the pieces that begin a word: bool [V]."""
  return vocabulary.word_starts([x for _, x in _pieces(model)], reserved)


def pieces(path: str) -> list[tuple[str, bytes]]:
  """Lists (kind, UTF-8) of the pieces of a model, see `pieces.Piece`.

  Raises:
    ValueError: the file is missing or is no sentencepiece model.
  """
  fix = 'train one with lm.data.prepare.train_tokenizer'
  return _pieces(_parse(path, files.read(path), fix))


def _pieces(model: spm.SentencePieceProcessor) -> list[tuple[str, bytes]]:
  result = []
  for i in range(model.GetPieceSize()):
    piece = model.IdToPiece(i)
    if model.IsByte(i):  # written as '<0x41>'
      result.append(('byte', bytes([int(piece[3:5], 16)])))
      continue
    is_special = model.IsControl(i) or model.IsUnused(i)
    kind = (
      'special' if is_special else 'unknown' if model.IsUnknown(i) else 'text'
    )
    result.append((kind, piece.replace(vocabulary.SPACE_MARK, ' ').encode()))
  return result
