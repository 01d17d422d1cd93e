"""Prepares text for training: trains a tokenizer, and writes token shards.

  from lm.corpus import prepare

  prepare.train_tokenizer(['raw/*.txt'], 'bpe.model', vocab=8192)
  prepare.write_dataset(
    ['raw/*.txt'], 'data/web', 'bpe.model', split_valid=0.01
  )

tools/train_tokenizer.py and tools/prepare_data.py are these functions as
programs.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
import os
from pathlib import Path
import time
from typing import Any, NamedTuple

from lm import config, types
from lm.corpus import build, write
from lm.data import documents, shards, writer
from lm.data import manifest as manifests
from lm.data.tokenizers import auto


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

  Args:
    inputs: files, folders or patterns, see `documents.find`.
    output: the file to write: `*.json` for characters and words, else
      `*.model`.
    vocab: number of pieces, or most words; see `auto.train`.
    kind: one of `auto.KINDS`.
    coverage: share of characters that get pieces, see `auto.train`.
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
  counts: Counter[str] = Counter()

  def texts() -> Iterator[str]:
    files = documents.find(inputs, counts)
    yield from documents.read(files, settings or documents.Settings(), counts)

  auto.train(
    texts(),
    path,
    kind,
    vocab=vocab,
    coverage=coverage,
    max_bytes=max_bytes,
    least_count=least_count,
  )
  return TrainedTokenizer(auto.load(path), counts)


def write_dataset(
  inputs: str | Sequence[str],
  output: str | os.PathLike[str],
  tokenizer: str,
  *,
  split_valid: float = 0.0,
  shard_tokens: int = 1 << 28,
  settings: documents.Settings | None = None,
  workers: int = 1,
) -> dict[str, WrittenDataset]:
  """Writes text as token shards, split for validation if asked to.

  It is a build of the factory (`lm.corpus.build`) of one source, without
  stages, whose parts are removed at the end. After a kill the same call goes on
  with what is finished. Writing the same again changes nothing.

  The hash of a document decides on its side of the split, so that copies of a
  document are on the same side. Where that would leave a side empty, because
  there are few documents or one, each is cut instead: the last `split_valid` of
  its characters are for validation, from the line end that is nearest, if one
  is near. The counts say so. A split gets a copy of the tokenizer's file, so
  that the folder has all that a run needs: `--data=FOLDER`.

  Args:
    inputs: files, folders or patterns, see `documents.find`.
    output: directory to write.
    tokenizer: a name that `auto.load` loads.
    split_valid: share of the documents, or of the text of each of few, that is
      kept for validation.
    shard_tokens: a shard is closed with the document that reaches this.
    settings: how files become documents; None: those of
      `documents.Settings()`.
    workers: processes; 1 works in this process alone.

  Returns:
    The dataset under the name '', or those of a split under 'train' and
    'valid', which are also the names of their directories below `output`.

  Raises:
    ValueError: the input is bad, a setting is out of range, or the directory
      holds another dataset.
    errors.Locked: another process writes the same.
    OSError: the output cannot be written.
  """
  start = time.perf_counter()
  settings = settings or documents.Settings()
  target = Path(output)
  c = config.load('configs/data/base.py', required=()).unlock()
  c.sources = {
    'text': {
      'inputs': [inputs] if isinstance(inputs, str) else [*inputs],
      'rank': 0,
      **settings._asdict(),
    }
  }
  c.split_valid, c.shard_tokens = split_valid, shard_tokens
  c.tokenizer_file = tokenizer
  about = {**settings._asdict(), 'split_valid': split_valid}
  if settings.extract == documents.Settings().extract:
    del about['extract']  # so that data from before it keep their fingerprints
  _check_target(target, bool(split_valid), tokenizer, about)
  work = target.parent / f'.{target.name}.unfinished'
  result = build.run(
    c,
    work,
    workers=workers,
    target=write.Target(target, about, is_flat=not split_valid),
  )
  counts = dict(result.counts)
  if 'split' in next(iter(result.datasets.values())).settings:
    ends = result.datasets['valid'].documents
    counts['documents, whose ends are for validation'] = ends
  seconds = time.perf_counter() - start
  return {
    name: WrittenDataset(target / name, manifest, counts, seconds)
    for name, manifest in result.datasets.items()
  }


def _check_target(
  target: Path, is_split: bool, tokenizer: str, about: Mapping[str, Any]
) -> None:
  """Checks before any work that a directory holds no other dataset.

  Raises:
    ValueError: it does, or the tokenizer cannot be loaded.
  """
  for side in ('train', 'valid') if is_split else ('',):
    place = target / side
    if not place.is_dir() or not any(place.iterdir()):
      continue
    old = shards.load(place).manifest
    settings = {x: y for x, y in old.settings.items() if x in about}
    if (old.tokenizer, settings) != (auto.load(tokenizer).sha256, about):
      raise writer.occupied(place)
