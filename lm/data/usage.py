"""Tells what a run reads of each of its sources."""

from collections.abc import Sequence
from typing import NamedTuple

from lm.data import locate, names
from lm.data import samples as samples_lib


class Usage(NamedTuple):
  """A source, and how much of it some steps read.

  Attributes:
    source: its name in the config.
    tokens: that it has.
    weight: in the last of the steps, after temperature and caps.
    share: of all windows that were read, 0..1.
    read: how many tokens were read, each time counted.
    epochs: how often the whole source was read.
  """

  source: str
  tokens: int
  weight: float
  share: float
  read: int
  epochs: float


def before(now: samples_lib.Samples, step: int) -> list[Usage]:
  """Counts what all steps before a step read.

  Args:
    now: of the run's newest era.
    step: the first that does not count.

  Raises:
    ValueError: the step lies before the first era that is known.
  """
  samples = locate.era_of(now, step)
  counts = samples.counts(step)
  total = max(1, sum(counts.values()))
  known = [share for first, share in samples.weights if first < step]
  weights = known[-1] if known else samples.weights[0][1]
  found = []
  for name, cut in samples.cuts.items():
    tokens = cut.source.manifest.tokens
    epochs, rest = divmod(counts[name], cut.count)
    found.append(
      Usage(
        source=name,
        tokens=tokens,
        weight=weights[name],
        share=counts[name] / total,
        read=epochs * tokens + min(tokens, rest * cut.length),
        epochs=counts[name] / cut.count,
      )
    )
  return found


def table(found: Sequence[Usage]) -> list[str]:
  """Lays usages out in columns, as lines."""
  rows = [('source', 'tokens', 'weight', 'share', 'read', 'epochs')]
  rows += [
    (
      names.short(x.source),
      f'{x.tokens:,}',
      f'{x.weight:.6g}',
      f'{x.share:.2%}',
      f'{x.read:,}',
      f'{x.epochs:.2f}',
    )
    for x in found
  ]
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return [
    '  '.join(
      [row[0].ljust(widths[0])]
      + [cell.rjust(n) for cell, n in zip(row[1:], widths[1:], strict=True)]
    )
    for row in rows
  ]
