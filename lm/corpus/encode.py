"""Tokenizing: texts of parts become pieces of datasets, and these shards."""

from collections.abc import Iterator, Mapping, Sequence
import functools
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lm import types
from lm.corpus import maps, parts
from lm.data import manifest as manifests
from lm.data import writer
from lm.data.tokenizers import auto

VERSION = 1
SIDES = ('train', 'valid')  # of a split


class Split(NamedTuple):
  """How documents are divided between training and validation.

  Attributes:
    share: of the documents that are kept for validation.
    is_cut: whether instead the end of each document is for validation.
    names: of its sides.
  """

  share: float
  is_cut: bool = False
  names: tuple[str, ...] = ('train',)


def is_valid(draw: np.ndarray | int, share: float) -> Any:
  """Tells by the hash of documents if they are for validation."""
  return draw < share * 2.0**63


def cut_place(text: str, share: float) -> int:
  """Finds where the last `share` of a text begins, at a line if one is near."""
  at = len(text) - math.floor(share * len(text))
  room = (len(text) - at) // 2
  after = text.find('\n', at - 1, at + room) + 1
  before = text.rfind('\n', max(at - room, 0), at) + 1
  near = [x for x in (before, after) if x]
  return min(near, key=lambda x: abs(x - at)) if near else at


@functools.lru_cache(maxsize=2)
def _tokenizer(name: str, sha256: str) -> types.Tokenizer:
  """Loads a tokenizer once in a process, unless its file has changed."""
  tokenizer = auto.load(name)
  if tokenizer.sha256 != sha256:
    raise ValueError(f'tokenizer {name}: was changed meanwhile; run it again')
  return tokenizer


def run(task: Mapping[str, Any]) -> dict[str, Any]:
  """Encodes the documents of a part that are kept, for each side of a split.

  Args:
    task: {'documents' (path of their table), 'rows' (that are kept, ascending),
      'tokenizer' (name), 'sha256' (of the tokenizer), 'split' (a `Split`),
      'side' (of all documents; None splits them), 'output' (folder)}.

  Returns:
    {'documents', 'bytes'}: of all sides.

  Raises:
    ValueError: the tokenizer is not the one that was expected.
  """
  output = Path(task['output'])
  parts.make(output, lambda folder: _write(task, folder))
  sides = json.loads((output / parts.COUNTS).read_text(encoding='utf-8'))
  return {
    'documents': sum(x['documents'] for x in sides.values()),
    'bytes': sum(x['bytes'] for x in sides.values()),
  }


def _write(task: Mapping[str, Any], folder: Path) -> None:
  split = Split(*task['split'])
  tokenizer = _tokenizer(task['tokenizer'], task['sha256'])
  counts = {}
  for side in split.names:
    rows: list[int] = []
    text_bytes = lost = 0
    lengths = [np.zeros(0, np.int64)]
    with (folder / f'{side}.bin').open('wb') as out:
      for block in writer.encode(_texts(task, split, side, rows), tokenizer):
        out.write(block.tokens.tobytes())
        lengths.append(block.lengths)
        text_bytes += block.text_bytes
        lost += block.lost_bytes
    np.save(folder / f'{side}-lengths.npy', np.concatenate(lengths))
    np.save(folder / f'{side}-rows.npy', np.asarray(rows, np.int64))
    counts[side] = {'documents': len(rows), 'bytes': text_bytes, 'lost': lost}
  parts.write_json(folder / parts.COUNTS, counts)


def _texts(
  task: Mapping[str, Any], split: Split, side: str, rows: list[int]
) -> Iterator[str]:
  """Reads the texts of a side, and lists their rows."""
  path = Path(task['documents'])
  chosen = zip(task['rows'], maps.text_rows(path, task['rows']), strict=True)
  for row, text in chosen:
    if task['side']:
      if side != task['side']:
        continue
    elif split.is_cut:
      at = cut_place(text, split.share)
      text = text[at:] if side == 'valid' else text[:at]
    elif is_valid(maps.draw(text), split.share) != (side == 'valid'):
      continue
    if text:
      rows.append(row)
      yield text


def blocks(
  folders: Sequence[Path], side: str, tokenizer: types.Tokenizer
) -> Iterator[writer.Block]:
  """Reads what `run` wrote of a side, in order, for `writer.assemble`."""
  dtype = manifests.dtype(tokenizer.size - tokenizer.reserved)
  for folder in folders:
    text = (folder / parts.COUNTS).read_text(encoding='utf-8')
    counts = json.loads(text)[side]
    if counts['documents']:
      yield writer.Block(
        np.fromfile(folder / f'{side}.bin', dtype),
        np.load(folder / f'{side}-lengths.npy'),
        counts['bytes'],
        counts['lost'],
      )


def rows(folder: Path, side: str) -> np.ndarray:
  """Lists the rows of a part that a side has, in the order of its dataset."""
  return np.load(folder / f'{side}-rows.npy')


def tokens(folder: Path, side: str) -> int:
  """Counts the tokens of a part that a side has."""
  return int(np.load(folder / f'{side}-lengths.npy').sum())
