"""Prepares text for training: trains a tokenizer, and writes token shards.

  from lm.data import prepare

  prepare.train_tokenizer(['raw/*.txt'], 'bpe.model', vocab=8192)
  prepare.write_dataset(
    ['raw/*.txt'], 'data/web', 'bpe.model', split_valid=0.01
  )

tools/train_tokenizer.py and tools/prepare_data.py are these functions as
programs.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
import hashlib
import math
import os
from pathlib import Path
import shutil
import time
from typing import Any, NamedTuple

from lm import types
from lm.data import documents, writer
from lm.data import manifest as manifests
from lm.data.tokenizers import auto, characters, sentencepiece, words

KINDS = ('bpe', 'unigram', 'characters', 'words')


class TrainedTokenizer(NamedTuple):
  """A tokenizer, and what was read to train it.

  Attributes:
    tokenizer: loaded from its file.
    counts: of files, documents and bytes, and of what was left out.
  """

  tokenizer: types.Tokenizer
  counts: Mapping[str, int]


class WrittenDataset(NamedTuple):
  """A dataset, and what was read to write it.

  Attributes:
    directory: where it lies.
    manifest: of its shards.
    counts: of files, documents and bytes, and of what was left out, those of
      the other part of a split included.
    seconds: that writing took.
  """

  directory: Path
  manifest: manifests.Manifest
  counts: Mapping[str, int]
  seconds: float


def train_tokenizer(
  inputs: Sequence[str],
  output: str | os.PathLike[str],
  *,
  vocab: int | None = None,
  kind: str = 'bpe',
  coverage: float = 0.9995,
  max_bytes: int = 1_000_000_000,
  least_count: int = 3,
  settings: documents.Settings | None = None,
) -> TrainedTokenizer:
  """Trains a tokenizer, writes it and loads it.

  The same input gives the same file, byte for byte. All kinds but words, see
  `lm.data.tokenizers.words`, lose no text.

  Args:
    inputs: files, folders or patterns, see `documents.find`.
    output: the file to write: `*.json` for characters and words, else
      `*.model`.
    vocab: number of pieces, 261 or more; None: 8,192. Characters need none. Of
      words it is the most ids; None: no limit.
    kind: one of `KINDS`.
    coverage: share of the occurrences of characters that get pieces, from 0.98
      to 1; the rest are spelled by bytes.
    max_bytes: stop reading there, because training holds the text in memory.
    least_count: words that occur more seldom get no id.
    settings: how files become documents; None: those of
      `documents.Settings()`.

  Raises:
    ValueError: the input is bad, the vocabulary does not fit it, or a setting
      is out of range.
    OSError: the output cannot be written.
  """
  path = os.fspath(output)
  if kind not in KINDS:
    raise ValueError(f'kind={kind!r}: unknown; give one of {", ".join(KINDS)}')
  # By its suffix a tokenizer is loaded, see `auto.load`.
  suffix = '.json' if kind in ('characters', 'words') else '.model'
  if not path.endswith(suffix):
    raise ValueError(
      f'output: a {kind} tokenizer is loaded by its suffix {suffix}; end the '
      'name in it'
    )
  counts: Counter[str] = Counter()
  files = documents.find(inputs, counts)
  texts = documents.read(files, settings or documents.Settings(), counts)
  if kind == 'characters':
    characters.train(texts, path)
  elif kind == 'words':
    words.train(texts, path, vocab=vocab, least_count=least_count)
  else:
    sentencepiece.train(
      texts,
      path,
      8192 if vocab is None else vocab,
      kind,
      coverage=coverage,
      max_bytes=max_bytes,
    )
  return TrainedTokenizer(auto.load(path), counts)


def write_dataset(
  inputs: Sequence[str],
  output: str | os.PathLike[str],
  tokenizer: str | types.Tokenizer,
  *,
  split_valid: float = 0.0,
  shard_tokens: int = 1 << 28,
  settings: documents.Settings | None = None,
) -> dict[str, WrittenDataset]:
  """Writes text as token shards, split for validation if asked to.

  The hash of a document decides on its side of the split, so that copies of a
  document are on the same side. Where that would leave a side empty, because
  there are few documents or one, each is cut instead: the last `split_valid` of
  its characters are for validation, from the line end that is nearest, if one
  is near. The counts say so. Writing the same again changes nothing. A split
  gets a copy of the tokenizer's file, so that the folder has all that a run
  needs: `--data=FOLDER`.

  Args:
    inputs: files, folders or patterns, see `documents.find`.
    output: directory to write.
    tokenizer: a tokenizer, or a name that `auto.load` loads.
    split_valid: share of the documents, or of the text of each of few, that is
      kept for validation.
    shard_tokens: a shard is closed with the document that reaches this.
    settings: how files become documents; None: those of
      `documents.Settings()`.

  Returns:
    The dataset under the name '', or those of a split under 'train' and
    'valid', which are also the names of their directories below `output`.

  Raises:
    ValueError: the input is bad, a setting is out of range, or the directory
      holds another dataset.
    OSError: the output cannot be written.
  """
  settings = settings or documents.Settings()
  if not 0 <= split_valid < 1:
    raise ValueError(f'split_valid={split_valid} must be from 0 on and below 1')
  if shard_tokens < 1:
    raise ValueError(f'shard_tokens={shard_tokens} must be positive')
  found: Counter[str] = Counter()
  files = documents.find(inputs, found)
  file = None
  if isinstance(tokenizer, str):
    file = (
      Path(tokenizer) if split_valid and Path(tokenizer).is_file() else None
    )
    tokenizer = auto.load(tokenizer)
  how: dict[str, Any] = {**settings._asdict(), 'split_valid': split_valid}
  is_cut = False
  if split_valid:
    is_cut = _must_cut(documents.read(files, settings, Counter()), split_valid)
  if is_cut:
    how['split'] = 'each document is cut'
  written = {}
  # A split reads its input twice, so that memory stays bounded.
  for part in ('train', 'valid') if split_valid else ('',):
    counts = Counter(found)
    texts = documents.read(files, settings, counts)
    if is_cut:
      texts = _cut(texts, split_valid, part, counts)
    elif split_valid:
      texts = (
        x for x in texts if _is_valid(x, split_valid) == (part == 'valid')
      )
    start = time.perf_counter()
    directory = Path(output) / part
    manifest = writer.write(
      directory,
      texts,
      tokenizer,
      shard_tokens=shard_tokens,
      settings={**how, 'part': part},
    )
    seconds = time.perf_counter() - start
    written[part] = WrittenDataset(directory, manifest, counts, seconds)
  if file is not None:
    copy = Path(output) / f'tokenizer{file.suffix}'
    if not (copy.exists() and copy.samefile(file)):
      shutil.copyfile(file, copy)
  return written


def _must_cut(texts: Iterable[str], share: float) -> bool:
  """Tells if a split by documents would leave a side empty.

  It reads no further than to the first document of either side.

  Raises:
    ValueError: to cut every document would leave one empty, too.
  """
  sides, can_cut = set(), False
  for text in texts:
    sides.add(_is_valid(text, share))
    can_cut = can_cut or 0 < _place(text, share) < len(text)
    if len(sides) == 2:
      return False
  if not can_cut:
    raise ValueError(
      f'split_valid={share}: no documents to write for one side; give another '
      'share or more text'
    )
  return True


def _cut(
  texts: Iterable[str], share: float, part: str, counts: Counter[str]
) -> Iterator[str]:
  """Cuts every text in two, and gives what is of a part."""
  counts['documents, whose ends are for validation'] = 0
  for text in texts:
    at = _place(text, share)
    counts['documents, whose ends are for validation'] += at < len(text)
    yield text[at:] if part == 'valid' else text[:at]


def _place(text: str, share: float) -> int:
  """Finds where the last `share` of a text begins, at a line if one is near."""
  at = len(text) - math.floor(share * len(text))
  room = (len(text) - at) // 2
  after = text.find('\n', at - 1, at + room) + 1
  before = text.rfind('\n', max(at - room, 0), at) + 1
  near = [x for x in (before, after) if x]
  return min(near, key=lambda x: abs(x - at)) if near else at


def _is_valid(text: str, share: float) -> bool:
  # Salted: a corpus that was already split by a bare hash can be split again.
  digest = hashlib.sha256(b'valid\0' + text.encode()).digest()
  return int.from_bytes(digest[:8], 'big') < share * 2**64
