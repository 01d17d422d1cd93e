"""Reads the curves of a run, and thins them to what a screen can show.

A curve is a metric by step. A run's clock says how many tokens, FLOPs and
seconds each step had taken, so that a curve can be drawn against these, too.
"""

from collections.abc import Iterable, Mapping, Sequence
import contextlib
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lm import checkpoint, config, errors
from lm.reporting import metrics_log
from lm.runtime import regular_files

# Points of the main curves of a page, and of the others: some 5 MB.
_MOST_POINTS = 80_000
_MOST_CURVE, _LEAST_CURVE = 600, 50  # of one curve
_MOST_METRICS = 40
_CLOCK_POINTS = 200
_LARGEST = 10**18  # whole number
_CLOCK = ('tokens', 'flops', 'seconds')
_NOT_SHOWN = ('step', 'crc32', 'time', *_CLOCK)

# A metric by step.
Curve = Mapping[int, float]


class History(NamedTuple):
  """Holds what a run wrote down as it trained.

  Attributes:
    curves: by metric.
    clock: lists of the same length, of steps, tokens, FLOPs and seconds; FLOPs
      and seconds may be missing.
    flops_per_token: of training; None if the clock has FLOPs, or the model does
      not say.
    evaluators: of its config, which may have measured something in training.
  """

  curves: Mapping[str, Curve]
  clock: Mapping[str, Sequence[float]]
  flops_per_token: float | None
  evaluators: frozenset[str] = frozenset()


def read(folder: Path) -> History:
  """Reads metrics.jsonl of a run's folder; there may be none."""
  lines = metrics_log.read(folder / 'metrics.jsonl')
  found: dict[str, dict[int, float]] = {}
  for line in lines:
    for key, value in line.items():
      if key not in _NOT_SHOWN and _is_number(value):
        found.setdefault(key, {})[line['step']] = float(value)
  ordered = {key: dict(sorted(curve.items())) for key, curve in found.items()}
  clock, evaluators = _clock(lines), frozenset()
  with contextlib.suppress(ValueError, OSError):
    text = config_text(folder)
    evaluators = frozenset(config.from_json(text).evals)
  flops = None
  if clock and 'flops' not in clock:
    flops = _flops_per_token(folder)
  return History(ordered, clock, flops, evaluators)


def config_text(folder: Path) -> str:
  """Reads config.json of a run's folder.

  Raises:
    OSError: it is not there, or is no plain file.
    ValueError: it is no text.
  """
  with regular_files.open_read(folder / 'config.json') as file:
    return file.read().decode()


def _is_number(value: Any) -> bool:
  # A whole number of a stranger may be too large for a float.
  is_large = isinstance(value, int) and abs(value) > _LARGEST
  kind = isinstance(value, int | float) and not isinstance(value, bool)
  return kind and not is_large


def _clock(lines: Iterable[Mapping[str, Any]]) -> dict[str, list[float]]:
  """Lists what the lines that have tokens say of each step.

  Older runs wrote no seconds. Theirs follow from the tokens a second, which
  leaves out the time of saving and evaluating.
  """
  by_step = {x['step']: x for x in lines if _is_number(x.get('tokens'))}
  rows = [by_step[step] for step in sorted(by_step)]
  if not rows:
    return {}
  clock = {
    'step': [0, *(x['step'] for x in rows)],
    'tokens': [0, *(x['tokens'] for x in rows)],
  }
  for name in ('flops', 'seconds'):
    if all(_is_number(x.get(name)) for x in rows):
      clock[name] = [0, *(x[name] for x in rows)]
  if 'seconds' not in clock and all(
    _is_number(x.get('tokens_per_second')) for x in rows
  ):
    seconds, before = [0.0], 0
    for x in rows:
      speed = max(float(x['tokens_per_second']), 1e-9)
      seconds.append(seconds[-1] + (x['tokens'] - before) / speed)
      before = x['tokens']
    clock['seconds'] = seconds
  if len(rows) >= _CLOCK_POINTS:
    keep = np.linspace(0, len(rows), _CLOCK_POINTS).round().astype(int)
    clock = {k: [values[n] for n in keep] for k, values in clock.items()}
  return clock


def _flops_per_token(folder: Path) -> float | None:
  """Computes the FLOPs of training by the model of a run's config.

  A backward pass takes twice the arithmetic of a forward pass. What is computed
  again in it does not count.
  """
  # A model that cannot be built here has curves all the same: its tokenizer may
  # be gone, or its code be that of others.
  with contextlib.suppress(ValueError, errors.Failure, OSError):
    c = config.read_untrusted(config_text(folder))
    path = checkpoint.tokenizer_path(c, folder)
    if path is not None:
      with c.unlocked():
        c.tokenizer.path = str(path)
    config.check_files(c.tokenizer, folder, key='tokenizer')
    config.check_files(c.model, folder, key='model')
    model = checkpoint.tokenizer_and_model(c)[1]
    if model.flops is not None and isinstance(c.data.get('length'), int):
      return 3.0 * model.flops(c.data.length)
  return None


def shared(curves: Sequence[Curve]) -> Curve:
  """Averages the curves of seeds over the steps that all of them have."""
  if not all(curves):
    return {}
  first, *others = curves
  steps = [step for step in first if all(step in x for x in others)]
  with np.errstate(invalid='ignore', over='ignore'):
    return {
      step: float(np.mean([curve[step] for curve in curves])) for step in steps
    }


def chosen(names: Iterable[str], runs: int) -> tuple[list[str], list[str]]:
  """Chooses the metrics of a page by their order: those shown, and the rest."""
  order = list(dict.fromkeys(names))
  most = min(_MOST_METRICS, 2 * _MOST_POINTS // _LEAST_CURVE // max(runs, 1))
  return order[: max(most, 1)], order[max(most, 1) :]


def points(curves: int) -> int:
  """Says how many points a curve may have among so many of its kind."""
  fair = _MOST_POINTS // max(curves, 1)
  return max(_LEAST_CURVE, min(_MOST_CURVE, fair))


def thinned(curve: Curve, most: int) -> dict[str, Any]:
  """Writes a curve for a page, with at most so many points.

  The least and the greatest value of each part stay, and so does one that is
  not finite, so that no spike gets lost. The means of the parts are there too,
  for smoothing: extremes alone would say nothing of them.

  Returns:
    Lists `step` and `y`, and if points were left out, `means` with the same.
  """
  steps, y = list(curve), np.array(list(curve.values()), float)
  if len(steps) <= most:
    return {'step': steps, 'y': _short(y)}
  parts = np.array_split(np.arange(len(steps)), max(1, (most - 2) // 2))
  keep, middles, means = {0, len(steps) - 1}, [], []
  for part in parts:
    finite = part[np.isfinite(y[part])]
    if len(finite) < len(part):
      keep.add(int(part[~np.isfinite(y[part])][0]))
    if len(finite):
      keep |= {int(finite[y[finite].argmin()]), int(finite[y[finite].argmax()])}
      middles.append(steps[finite[len(finite) // 2]])
      with np.errstate(over='ignore'):
        means.append(float(y[finite].mean()))
  places = sorted(keep)
  return {
    'step': [steps[n] for n in places],
    'y': _short(y[places]),
    'means': {'step': middles, 'y': _short(means)},
  }


def _short(values: Iterable[float]) -> list[float | None]:
  """Rounds to what a reader can see; null where a number is not finite."""
  return [
    float(f'{value:.6g}') if math.isfinite(value) else None for value in values
  ]
