"""The last steps of a build: tokenizer, datasets, index and audit."""

from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
import shutil
from typing import Any, NamedTuple

import numpy as np

from lm import config, types
from lm.corpus import encode, engines, index, maps, parts, progress
from lm.data import manifest as manifests
from lm.data import shards, writer
from lm.data.tokenizers import auto

SIDES = ('train', 'valid')
# The copy of a dataset's manifest, which must not be taken for a dataset.
_COPY = 'written.json'


class Target(NamedTuple):
  """Where the datasets of a build go.

  Attributes:
    folder: of datasets and tokenizer.
    settings: for the manifests, beside what each dataset is a part of.
    is_flat: whether the folder is itself the only dataset.
    replaces: whether an older dataset there is replaced.
  """

  folder: Path
  settings: Mapping[str, Any]
  is_flat: bool = False
  replaces: bool = False


class Writer:
  """Writes what a build gives to training."""

  def __init__(
    self,
    c: config.Config,
    root: Path,
    target: Target,
    engine: engines.Engine,
    steps: progress.Steps,
    pieces: Sequence[index.Piece],
    drops: index.Drops,
  ):
    self._c = c
    self._root = root
    self._target = target
    self._engine = engine
    self._steps = steps
    self._pieces = pieces
    self._drops = drops
    self._kept = [index.kept(x, drops) for x in pieces]
    self.used: set[str] = set()  # parts that the build needs
    self.tokens: dict[tuple[str, str], int] = {}  # by dataset and source
    self.tokenizer: types.Tokenizer

  def run(self) -> dict[str, manifests.Manifest]:
    """Writes all, and returns the manifests of the datasets by name."""
    split = self._split()
    name = self._tokenizer_name(split)
    self.tokenizer = auto.load(name)
    folders = self._encode(name, split)
    planned, names = {}, {}
    sources = sorted({x.source for x in self._pieces})
    for side in split.names:
      for source in sources if self._c.by_source else ['']:
        dataset = '' if self._target.is_flat else f'{side}/{source}'
        dataset = dataset.rstrip('/')
        chosen = [
          folders[x.first] for x in self._pieces if source in ('', x.source)
        ]
        # A source of few documents may have none for validation.
        if not any(len(encode.rows(x, side)) for x in chosen):
          continue
        planned[dataset] = side, chosen
        for x in [source] if source else sources:
          names[side, x] = dataset
      for piece in self._pieces:
        if (side, piece.source) not in names:
          continue
        key = names[side, piece.source], piece.source
        count = encode.tokens(folders[piece.first], side)
        self.tokens[key] = self.tokens.get(key, 0) + count
    if self._target.replaces:
      _remove_others(self._target.folder, planned)
    datasets = {}
    for dataset, (side, chosen) in planned.items():
      with self._steps.one(f'{dataset or side}: write'):
        datasets[dataset] = self._assemble(dataset, side, chosen, split)
    # Not before: a dataset that is there already may be refused.
    self._copy_tokenizer(name)
    with self._steps.one('index: write'):
      index.write(
        self._root / index.NAME, self._pieces, self._drops, folders, names
      )
    return datasets

  def _split(self) -> encode.Split:
    """Decides how documents are divided.

    The hash of a document decides on its side, so that copies of a document
    are on the same side. Where that would leave a side empty, because there
    are few documents or one, each is cut instead.

    Raises:
      ValueError: nothing was kept, or a side would be empty.
    """
    share = self._c.split_valid
    if not any(self._kept):
      raise ValueError(
        'no documents to write: every one was dropped; see the rules that '
        'dropped them and change their settings'
      )
    sides: set[bool] = set()
    can_cut = False
    for piece, rows in zip(self._pieces, self._kept, strict=True):
      if not share or not rows or self._side(piece):
        continue
      draws = index.facts(piece).column('draw').to_numpy()[rows]
      sides.update(encode.is_valid(draws, share).tolist())
      if len(sides) == 2:
        break
      for text in maps.text_rows(piece.folder / parts.DOCUMENTS, rows):
        can_cut = can_cut or 0 < encode.cut_place(text, share) < len(text)
        if can_cut:
          break
    written = zip(self._pieces, self._kept, strict=True)
    fixed = {self._side(piece) for piece, rows in written if rows}
    names = ('train', 'valid') if share or 'valid' in fixed else ('train',)
    if not share or len(sides) == 2 or None not in fixed:
      return encode.Split(share, False, names)
    if not can_cut:
      raise ValueError(
        f'split_valid={share}: no documents to write for one side; give '
        'another share or more text'
      )
    return encode.Split(share, True, names)

  def _side(self, piece: index.Piece) -> str | None:
    """Names the side on which all documents of a part's source are."""
    return self._c.sources[piece.source].get('side')

  def _tokenizer_name(self, split: encode.Split) -> str:
    """Finds the tokenizer of the config, or trains it on a sample.

    Returns:
      What `auto.load` takes: 'bytes', or the path of a file.
    """
    given = self._c.tokenizer_file
    return str(self._train(split) if given is None else given)

  def _copy_tokenizer(self, name: str) -> None:
    """Puts a copy of the tokenizer's file beside the datasets."""
    if name == 'bytes' or self._target.is_flat:
      return
    copy = self._target.folder / f'tokenizer{Path(name).suffix}'
    if not (copy.exists() and copy.read_bytes() == Path(name).read_bytes()):
      shutil.copyfile(name, copy)

  def _train(self, split: encode.Split) -> Path:
    """Trains a tokenizer on a sample of the kept documents, once."""
    settings = self._c.train_tokenizer
    rows = [np.asarray(x).tolist() for x in self._kept]
    identity = (
      'tokenizer',
      parts.versions('sentencepiece'),
      [x.folder.name for x in self._pieces],
      rows,
      [*split],
      [self._side(x) for x in self._pieces],
      config.plain(settings),
    )
    folder = self._root / 'tables' / parts.name(*identity)
    self.used.add(folder.name)
    if settings.kind not in auto.KINDS:
      raise ValueError(
        f'train_tokenizer.kind={settings.kind!r}: unknown; give one of '
        f'{", ".join(auto.KINDS)}'
      )
    name = f'tokenizer{auto.KINDS[settings.kind]}'

    def write(place: Path) -> None:
      auto.train(
        self._sample(settings.sample_bytes, split),
        str(place / name),
        settings.kind,
        vocab=settings.vocab,
        coverage=settings.coverage,
        max_bytes=settings.sample_bytes,
        least_count=settings.least_count,
      )

    with self._steps.one('tokenizer: train'):
      try:
        parts.make(folder, write)
      except ValueError as e:
        # It names a file that is only being made.
        cause = str(e).partition(': ')[2]
        raise ValueError(f'train_tokenizer.vocab: {cause}') from e
    return folder / name

  def _sample(self, most_bytes: int, split: encode.Split) -> Iterator[str]:
    """Samples kept training documents, by their hash and with that many bytes.

    The hash spreads the sample over all sources, and gives the same documents
    whatever else is built.
    """
    draws, sizes = [], []
    for piece, rows in zip(self._pieces, self._kept, strict=True):
      facts = index.facts(piece)
      draw = facts.column('draw').to_numpy()[rows]
      side = self._side(piece)
      # From the end: what is for validation has small hashes.
      draws.append(np.full(len(rows), -1) if side == 'valid' else draw)
      sizes.append(facts.column('bytes').to_numpy()[rows])
    order = np.argsort(np.concatenate(draws), kind='stable')
    before = np.cumsum(np.concatenate(sizes)[order][::-1])[::-1]
    is_chosen = np.zeros(len(order), bool)
    is_chosen[order[before <= most_bytes]] = True
    is_chosen[order[-1]] = True  # also if it is too long
    share = 0.0 if split.is_cut else split.share
    is_chosen &= ~encode.is_valid(np.concatenate(draws), share)
    first = 0
    for piece, rows in zip(self._pieces, self._kept, strict=True):
      chosen = np.flatnonzero(is_chosen[first : first + len(rows)])
      first += len(rows)
      wanted = [rows[n] for n in chosen]
      for text in maps.text_rows(piece.folder / parts.DOCUMENTS, wanted):
        if split.is_cut and not self._side(piece):
          text = text[: encode.cut_place(text, split.share)]
        yield text

  def _encode(self, tokenizer: str, split: encode.Split) -> dict[int, Path]:
    """Encodes all parts; returns the folders by the first id of the part."""
    tasks = []
    packages = parts.versions(*auto.packages(tokenizer))
    for piece, rows in zip(self._pieces, self._kept, strict=True):
      name = parts.name(
        'encode',
        encode.VERSION,
        piece.folder.name,
        rows,
        self.tokenizer.sha256,
        packages,
        [*split],
        self._side(piece),
      )
      folder = self._root / 'parts' / name
      self.used.add(folder.name)
      tasks.append(
        {
          'documents': str(piece.folder / parts.DOCUMENTS),
          'rows': rows,
          'tokenizer': tokenizer,
          'sha256': self.tokenizer.sha256,
          'split': [*split],
          'side': self._side(piece),
          'output': str(folder),
        }
      )
    self._steps.run('tokenize', self._engine.run(encode.run, tasks), len(tasks))
    return {
      piece.first: Path(task['output'])
      for piece, task in zip(self._pieces, tasks, strict=True)
    }

  def _assemble(
    self, dataset: str, side: str, folders: Sequence[Path], split: encode.Split
  ) -> manifests.Manifest:
    """Writes a dataset."""
    about = {**self._target.settings, 'part': dataset}
    if split.is_cut:
      about['split'] = 'each document is cut'
    name = parts.name(
      'dataset',
      manifests.FORMAT,
      [x.name for x in folders],
      side,
      self.tokenizer.sha256,
      self._c.shard_tokens,
      about,
    )
    self.used.add(name)
    target = self._target.folder / dataset
    made, there = self._root / 'tables' / name / _COPY, target / manifests.NAME
    # A dataset that is there, of the very same parts, stays as it is.
    is_made = parts.is_whole(made.parent) and there.is_file()
    if is_made and made.read_bytes() == there.read_bytes():
      return shards.load(target).manifest
    result = writer.assemble(
      target,
      encode.blocks(folders, side, self.tokenizer),
      self.tokenizer,
      shard_tokens=self._c.shard_tokens,
      settings=about,
      replaces=self._target.replaces,
    )

    def keep(folder: Path) -> None:
      shutil.copyfile(there, folder / _COPY)

    parts.make(made.parent, keep)
    return result


def _remove_others(folder: Path, names: Container[str]) -> None:
  """Removes the datasets of an earlier build which this one does not write.

  Training reads every dataset that it finds below a side.

  Args:
    folder: of the build.
    names: of its datasets.
  """
  for side in SIDES:
    inside = [x for x in (folder / side).glob('*') if x.is_dir()]
    for path in (folder / side, *inside):
      is_dataset = (path / manifests.NAME).is_file()
      if is_dataset and path.relative_to(folder).as_posix() not in names:
        shutil.rmtree(path)
    if inside and not any((folder / side).glob('*')):
      (folder / side).rmdir()
