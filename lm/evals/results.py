"""The result of an evaluator: its metrics, and one item for each question.

`items` says what an item is. The same id stands for the same question in every
run, so that two runs can be compared in pairs.
"""

from collections.abc import Callable, Mapping, Sequence
import math
from typing import Any, NamedTuple

from lm import types

Item = dict[str, Any]


class Result(NamedTuple):
  """The result of one evaluator for one checkpoint.

  Attributes:
    metrics: by name; a metric of one category is called 'NAME/CATEGORY'.
    items: one for each question, in the order of the file.
    card: what the questions are and where they are from: the fields of
      `records.Card`.
  """

  metrics: dict[str, float]
  items: list[Item]
  card: dict[str, str] | None = None


# An evaluator without items returns its metrics alone.
Evaluator = Callable[[types.Params], Result | Mapping[str, float]]


def metrics(result: Result | Mapping[str, float]) -> dict[str, float]:
  """Gives the metrics of a result."""
  return dict(result.metrics if isinstance(result, Result) else result)


def means(
  items: Sequence[Item], *names: str, by: str | None = None
) -> dict[str, float]:
  """Averages outcomes, leaving out None; nan where there are none.

  Args:
    items: of a result.
    names: of outcomes.
    by: a label that divides items into categories, each with a mean of its own;
      items without the label belong to none. None: there are no categories.
  """
  result = {name: _mean([item[name] for item in items]) for name in names}
  for category, group in parts(items, by).items():
    for name in names:
      result[f'{name}/{category}'] = _mean([item[name] for item in group])
  return result


def parts(items: Sequence[Item], by: str | None) -> dict[str, list[Item]]:
  """Divides items by a label, in the order of its values."""
  groups: dict[str, list[Item]] = {}
  for item in items:
    if by in item:
      groups.setdefault(item[by], []).append(item)
  return dict(sorted(groups.items()))


def _mean(values: Sequence[float | None]) -> float:
  known = [value for value in values if value is not None]
  return math.fsum(known) / len(known) if known else math.nan
