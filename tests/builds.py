"""Builds of the data factory, as `lm.corpus` lays them out, made by hand."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
from pyarrow import parquet

from lm.corpus import stages
from lm.data import writer
from lm.data.tokenizers import utf8_bytes

INDEX = pa.schema(
  [
    ('id', pa.int64()),
    ('source', pa.string()),
    ('file', pa.string()),
    ('place', pa.string()),
    ('part', pa.string()),
    ('row', pa.int32()),
    ('reason', pa.string()),
    ('witness', pa.int64()),
    ('value', pa.float64()),
    ('dataset', pa.string()),
    ('number', pa.int64()),
  ]
)


class Document(NamedTuple):
  """A document of a build; those without a reason are kept."""

  source: str
  text: str
  reason: str = ''
  witness: int | None = None
  value: float | None = None


def write(
  folder: Path,
  documents: Sequence[Document],
  part_rows: int = 7,
  *,
  shards: bool = True,
) -> None:
  """Writes a build with one dataset a source and parts of some rows each.

  Without `shards` the datasets are left out, which is quicker.
  """
  kept: dict[str, list[str]] = {}
  rows = []
  for n, document in enumerate(documents):
    dataset, number = '', None
    if not document.reason:
      dataset = f'train/{document.source}'
      number = len(kept.setdefault(dataset, []))
      kept[dataset].append(document.text)
    part, row = f'{n // part_rows:04d}', n % part_rows
    place = f'line {n + 1}'
    file = f'raw/{document.source}.jsonl'
    fate = (document.reason, document.witness, document.value, dataset, number)
    rows.append((n, document.source, file, place, part, row, *fate))
  for first in range(0, len(documents), part_rows):
    some = documents[first : first + part_rows]
    place = folder / 'parts' / f'{first // part_rows:04d}'
    place.mkdir(parents=True)
    table = pa.Table.from_batches(
      [
        stages.batch(
          pa.array([f'line {first + n + 1}' for n in range(len(some))]),
          [stages.Document(x.text, 'en', x.reason, x.value) for x in some],
        )
      ]
    )
    parquet.write_table(table, place / 'documents.parquet', row_group_size=3)
  columns = [list(column) for column in zip(*rows, strict=True)]
  index = pa.Table.from_arrays(
    [pa.array(x, f.type) for x, f in zip(columns, INDEX, strict=True)],
    schema=INDEX,
  )
  parquet.write_table(index, folder / 'documents.parquet', row_group_size=10)
  for name, texts in kept.items() if shards else ():
    writer.write(folder / name, texts, utf8_bytes.make(), shard_tokens=600)
