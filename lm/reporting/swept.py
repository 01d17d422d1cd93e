"""Draws the results of a sweep against the key that it changes."""

from collections.abc import Mapping, Sequence
import math
from pathlib import Path
from typing import Any

from matplotlib.backends import backend_agg
from matplotlib.figure import Figure

_MOST_LINES = 12  # of a legend that can be read
_WIDE = 8.0  # last value / first value of what is drawn on a log scale


def draw(
  path: Path,
  rows: Sequence[Mapping[str, Any]],
  keys: Sequence[str],
  metric: str,
) -> bool:
  """Draws the metric of each row over the key with the most values.

  Rows that differ in other keys are other lines. Intervals are bars.

  Args:
    path: of the picture.
    rows: with the keys, the metric, and `METRIC low` and `METRIC high` where
      there is an interval. Rows without a finite metric are left out.
    keys: that differ between rows.
    metric: what is drawn.

  Returns:
    Whether there was something to draw.
  """
  rows = [r for r in rows if math.isfinite(r.get(metric, math.nan))]
  if not rows or not keys:
    return False
  key = _axis(rows, keys)
  others = [other for other in keys if other != key]
  numeric = all(_is_number(row[key]) for row in rows)
  places = {
    repr(x): n for n, x in enumerate(dict.fromkeys(r[key] for r in rows))
  }
  lines: dict[str, list[tuple[float, Mapping[str, Any]]]] = {}
  for row in rows:
    name = ', '.join(f'{other}={row[other]}' for other in others)
    x = float(row[key]) if numeric else float(places[repr(row[key])])
    lines.setdefault(name, []).append((x, row))
  figure = Figure(figsize=(7, 4.5), layout='constrained')
  backend_agg.FigureCanvasAgg(figure)  # no display, no global state of pyplot
  axes = figure.subplots()
  for name, found in lines.items():
    found.sort(key=lambda point: point[0])
    xs = [x for x, _ in found]
    ys = [row[metric] for _, row in found]
    low = [
      y - row.get(f'{metric} low', y)
      for y, (_, row) in zip(ys, found, strict=True)
    ]
    high = [
      row.get(f'{metric} high', y) - y
      for y, (_, row) in zip(ys, found, strict=True)
    ]
    axes.errorbar(xs, ys, yerr=(low, high), marker='o', capsize=3, label=name)
  axes.set(xlabel=key, ylabel=metric)
  if numeric:
    values = [x for found in lines.values() for x, _ in found]
    if min(values) > 0 and max(values) / min(values) >= _WIDE:
      axes.set_xscale('log')
  else:
    axes.set_xticks([*places.values()], [*places])
  axes.grid(alpha=0.3)
  if others and len(lines) <= _MOST_LINES:
    axes.legend(fontsize='small')
  figure.savefig(path, dpi=120)
  return True


def _axis(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> str:
  """Chooses the key with the most values; numbers come before words."""

  def rank(key: str) -> tuple[bool, int]:
    values = {repr(row[key]) for row in rows}
    return all(_is_number(row[key]) for row in rows), len(values)

  return max(keys, key=rank)  # the first of equals


def _is_number(value: Any) -> bool:
  return type(value) in (int, float)
