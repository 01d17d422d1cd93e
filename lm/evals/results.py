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
    card: what was asked, and from which file: fields of `probes.Card`.
  """

  metrics: dict[str, float]
  items: list[Item]
  card: dict[str, str] | None = None


def metrics(found: 'Result | Mapping[str, float]') -> dict[str, float]:
  """Gives the metrics of what an evaluator found; some find nothing else."""
  return dict(found.metrics if isinstance(found, Result) else found)


def task(function: str, found: Result) -> str:
  """Hashes what was asked: by whom, the file's name and bytes, which items.

  Neither where the file lies nor how a model reads it counts.
  """
  card = {k: (found.card or {}).get(k) for k in ('name', 'split', 'sha256')}
  asked = [function, card, [item['id'] for item in found.items]]
  return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


@functools.cache
def code() -> str:
  """Hashes the code that judges."""
  here = Path(__file__).parent
  files = [*sorted(here.glob('*.py')), here.parent / 'loss.py']
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
