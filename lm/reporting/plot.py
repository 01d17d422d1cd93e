"""Draws a run: loss and bits per byte over the tokens that it has seen."""

from pathlib import Path
from typing import Any

from matplotlib.backends import backend_agg
from matplotlib.figure import Figure
import numpy as np

from lm import config
from lm.evals import records as eval_records
from lm.reporting import metrics_log


def _line(
  records: list[dict[str, Any]], name: str
) -> tuple[list[float], list[float]]:
  points = [r for r in records if name in r and 'tokens' in r]
  return [r['tokens'] for r in points], [r[name] for r in points]


def report(
  workdir: Path | str,
  *,
  loss: str = 'loss_nats',
  bits: str = 'bits_per_byte',
  bzip2_bits_per_byte: float | None = None,
) -> Path:
  """Draws workdir/report.png from metrics.jsonl and evals.jsonl.

  Args:
    workdir: a run's folder. Lines of metrics.jsonl need `tokens`, the tokens
      seen so far. Lines of evals.jsonl hold `step` and `metrics`.
    loss: name of the training loss in metrics.jsonl, in nats per token.
    bits: name of the bits per byte; evaluations have it as the last part of a
      name ('valid/bits_per_byte').
    bzip2_bits_per_byte: of the same text compressed by bzip2, drawn as a line;
      None draws none.

  Returns:
    The path of the picture.

  Raises:
    config.ConfigError: metrics.jsonl has no line with `tokens` and the loss.
  """
  workdir = Path(workdir)
  records = metrics_log.read(workdir / 'metrics.jsonl')
  tokens, losses = _line(records, loss)
  if not tokens:
    raise config.ConfigError(
      f'{workdir / "metrics.jsonl"}: no line has tokens and {loss}; train first'
    )
  figure = Figure(figsize=(10, 4), layout='constrained')
  backend_agg.FigureCanvasAgg(figure)  # no display, no global state of pyplot
  left, right = figure.subplots(1, 2)
  left.plot(tokens, losses, linewidth=1, label='training')
  left.set(xlabel='tokens seen', ylabel='loss (nats per token)')
  train = _line(records, bits)
  if train[0]:
    right.plot(*train, linewidth=1, label='training')
  # An evaluated step may lie between two logged ones, or before the first.
  seen = [(0, 0), *((r['step'], r['tokens']) for r in records if 'tokens' in r)]
  steps, seen_tokens = zip(*seen, strict=True)
  points: dict[str, list[tuple[float, float]]] = {}
  for record in eval_records.lines(workdir / 'evals.jsonl'):
    for name, value in record['metrics'].items():
      if name.rpartition('/')[2] == bits:
        x = float(np.interp(record['step'], steps, seen_tokens))
        points.setdefault(name, []).append((x, value))
  for name, pairs in sorted(points.items()):
    right.plot(*zip(*sorted(pairs), strict=True), 'o-', label=name)
  if bzip2_bits_per_byte is not None:
    right.axhline(
      bzip2_bits_per_byte, linestyle='--', color='gray', label='bzip2'
    )
  right.set(xlabel='tokens seen', ylabel='bits per byte')
  for axes in (left, right):
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
      axes.legend()
  path = workdir / 'report.png'
  figure.savefig(path, dpi=120)
  return path
