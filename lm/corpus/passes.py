"""Passes: which stages work on a part in one go, and what they are given."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lm.corpus import index, maps, parts, stages


def check(
  listed: Sequence[stages.Stage],
  order: Sequence[str],
  skipped: Mapping[str, Sequence[str]],
) -> None:
  """Checks that stages can be told apart, and that what is skipped exists.

  Args:
    listed: the stages.
    order: their keys in the config.
    skipped: keys of the stages that a source skips, by source.

  Raises:
    ValueError: two stages have tables of one name, or a key is unknown.
  """
  names = [x.name for x in listed if x.keys]
  for name in names:
    if names.count(name) > 1:
      raise ValueError(f'order: two stages are {name}; leave one out')
  for source, keys in skipped.items():
    for key in keys:
      if key not in order:
        raise ValueError(
          f'sources.{source}.skip: {key} is no stage of this config; give some '
          f'of {", ".join(order)}'
        )


def losses(
  listed: Sequence[stages.Stage], order: Sequence[str]
) -> Iterator[str]:
  """Says where the order of stages may lose text that was cut as a repetition.

  Args:
    listed: the stages.
    order: their keys in the config.

  Yields:
    A line for each stage that cuts too early.
  """
  for n, stage in enumerate(listed):
    later = [m for m in range(n + 1, len(listed)) if listed[m].loses]
    # What loses nothing itself relies on another document that has the text.
    if stage.edit and not stage.loses and later:
      yield (
        f'order: {order[n]} cuts what an earlier document has, and '
        f'{order[later[-1]]} may drop that one; put {order[n]} behind it'
      )


def plan(listed: Sequence[stages.Stage]) -> list[list[int]]:
  """Groups stages into passes, each by its places in the list.

  A pass ends before a stage that changes texts, if an earlier stage of it has
  to decide first; and behind a stage that cuts texts by what it decides. There
  is at least one pass, because it finds the facts about each document.
  """
  groups: list[list[int]] = [[]]
  for n, stage in enumerate(listed):
    earlier = [listed[m] for m in groups[-1]]
    is_late = bool(stage.map) and any(x.decide for x in earlier)
    if is_late or any(x.edit for x in earlier):
      groups.append([])
    groups[-1].append(n)
  return groups


def task(
  piece: index.Piece,
  specs: Sequence[maps.Spec],
  edit: tuple[maps.Spec, pa.Table] | None,
  folder: Path,
) -> dict[str, Any]:
  """Makes the task of a part in a pass, see `maps.run`.

  Args:
    piece: the part.
    specs: of the stages.
    edit: a stage and its table of places to cut, before the stages.
    folder: for the parts.
  """
  is_first = piece.folder == piece.path.parent
  given = piece.path if is_first else piece.folder / parts.DOCUMENTS
  cuts = None
  cut_by: Any = None
  if edit:
    ids = edit[1].column('id').to_numpy()
    ends = slice(*np.searchsorted(ids, (piece.first, piece.first + parts.ROWS)))
    cuts = {
      'stage': edit[0],
      'rows': (ids[ends] - piece.first).tolist(),
      'places': edit[1].column('place').to_numpy()[ends].tolist(),
    }
    cut_by = [edit[0].identity, cuts['rows'], cuts['places']]
  name = parts.name(
    'map',
    maps.VERSION,
    given.parent.name,
    given.name,
    [x.identity for x in specs],
    cut_by,
  )
  return {
    'input': str(given),
    'part': piece.part,
    'stages': [*specs],
    'edit': cuts,
    'output': str(folder / name),
  }


def merged(drops: Sequence[pa.Table]) -> index.Drops:
  """Joins the decisions of stages; no two are about one document."""
  columns = ('id', 'reason', 'witness', 'value')
  types = (pa.int64(), pa.string(), pa.int64(), pa.float64())
  table = pa.Table.from_arrays(
    [
      pa.chunked_array(
        [y for x in drops for y in x.column(name).cast(kind).chunks], kind
      )
      for name, kind in zip(columns, types, strict=True)
    ],
    names=columns,
  ).sort_by('id')
  witnesses = table.column('witness').fill_null(-1).to_numpy()
  values = table.column('value').fill_null(np.nan).to_numpy()
  return index.Drops(
    table.column('id').to_numpy(),
    np.asarray(table.column('reason').to_pylist(), object),
    witnesses,
    values,
  )
