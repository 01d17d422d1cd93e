"""What an evaluator finds: its means, and item by item what to test them on.

`items` says what an item is. The same id stands for the same question in every
run, so that two runs can be compared in pairs.
"""

from collections.abc import Mapping, Sequence
import functools
import hashlib
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

Item = dict[str, Any]


class Result(NamedTuple):
  """What `params -> Result` finds.

  Attributes:
    metrics: by name; those of a category are called 'NAME/CATEGORY'.
    items: one a question, in the order of the file.
    card: what was asked, and from which file: fields of `records.Card`.
  """

  metrics: dict[str, float]
  items: list[Item]
  card: dict[str, str] | None = None


def metrics(found: 'Result | Mapping[str, float]') -> dict[str, float]:
  """Gives the metrics of what an evaluator found; some find nothing else."""
  return dict(found.metrics if isinstance(found, Result) else found)


def task(spec: Mapping[str, Any]) -> str:
  """Hashes what an evaluator does: its settings, and the bytes of their files.

  Where a file lies does not count, nor does `batch_size`, which changes nothing
  but speed. Of a folder all `*.json` count: that of token shards has the
  shards' hashes.
  """

  def content(value: Any) -> Any:
    if isinstance(value, Mapping):
      return {k: content(v) for k, v in value.items() if k != 'batch_size'}
    if isinstance(value, list | tuple):
      return [content(x) for x in value]
    if isinstance(value, str) and '/' in value and Path(value).exists():
      path = Path(value)
      files = sorted(path.glob('*.json')) if path.is_dir() else [path]
      return [hashlib.sha256(x.read_bytes()).hexdigest() for x in files]
    return value

  text = json.dumps(content(spec), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


@functools.cache
def code() -> str:
  """Hashes the code that judges."""
  here = Path(__file__).parent
  # These judge nothing.
  apart = ('export_check.py', 'items.py')
  files = [x for x in sorted(here.glob('*.py')) if x.name not in apart]
  others = (
    'loss.py',
    'inference/generate.py',
    'data/finetuning/readers.py',
    'data/finetuning/tasks.py',
  )
  files += [here.parent / name for name in others]
  found = hashlib.sha256()
  for file in files:
    found.update(file.name.encode() + file.read_bytes())
  return found.hexdigest()


def means(
  items: Sequence[Item], *names: str, by: str | None = None
) -> dict[str, float]:
  """Averages outcomes, leaving out None; nan where there are none.

  Args:
    items: of a result.
    names: of outcomes.
    by: a label that parts items into categories with means of their own, for
      those items that have it; None leaves them out.
  """
  found = {name: _mean([item[name] for item in items]) for name in names}
  for category, part in parts(items, by).items():
    for name in names:
      found[f'{name}/{category}'] = _mean([item[name] for item in part])
  return found


def parts(items: Sequence[Item], by: str | None) -> dict[str, list[Item]]:
  """Parts items by a label, in the order of its values."""
  found: dict[str, list[Item]] = {}
  for item in items:
    if by in item:
      found.setdefault(item[by], []).append(item)
  return dict(sorted(found.items()))


def _mean(values: Sequence[float | None]) -> float:
  known = [value for value in values if value is not None]
  return math.fsum(known) / len(known) if known else math.nan
