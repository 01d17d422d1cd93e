"""Turns measured numbers into rows, and rows into markdown."""

from collections.abc import Mapping, Sequence
import statistics
from typing import Any

Row = dict[str, Any]
Blocks = Sequence[Mapping[str, Any]]  # answers of a worker, one a round


def rates(blocks: Blocks, tokens: int) -> Row:
  """Returns tokens a second at the best and at the median step."""
  seconds = [s for block in blocks for s in block['seconds']]
  return {
    'best_tokens_per_second': tokens / min(seconds),
    'median_tokens_per_second': tokens / statistics.median(seconds),
    'steps': len(seconds),
  }


def paired(ours: Blocks, theirs: Blocks) -> Row:
  """Compares two workers whose steps have equally many tokens.

  Returns:
    How many times faster we are: by the median steps of each pair of blocks
    (the median of all rounds, and the least and the greatest), and by the best
    steps of all.
  """
  pairs = [
    statistics.median(b['seconds']) / statistics.median(a['seconds'])
    for a, b in zip(ours, theirs, strict=True)
  ]
  best = min(s for b in theirs for s in b['seconds']) / min(
    s for a in ours for s in a['seconds']
  )
  return {
    'ratio': statistics.median(pairs),
    'least_ratio': min(pairs),
    'greatest_ratio': max(pairs),
    'best_ratio': best,
  }


def peak(blocks: Blocks, precision: str) -> float | None:
  """Returns the best FLOP/s of matrix products between blocks, or None."""
  peaks = [b['peak'][precision] for b in blocks if b.get('peak')]
  return max(peaks, default=None)


def share(tokens_per_second: float, flops_per_token: float, of: float) -> float:
  """Returns the fraction of a rate `of` (FLOP/s) that is used."""
  return tokens_per_second * flops_per_token / of


def quantity(value: float | None) -> str:
  """Formats a number with three digits: 1234567 is '1.23M'."""
  if value is None:
    return '-'
  for size, letter in ((1e12, 'T'), (1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
    if value >= size * 0.9995:
      return f'{_digits(value / size)}{letter}'
  return _digits(value)


def percent(value: float | None) -> str:
  """Formats 0.41 as '41 %'."""
  return '-' if value is None else f'{100 * value:.0f} %'


def _digits(value: float) -> str:
  return f'{value:.0f}' if value >= 99.95 else f'{value:.3g}'


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """Draws a table whose columns line up as plain text too."""
  lines = [list(heads), *map(list, rows)]
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  lines.insert(1, ['-' * width for width in widths])
  return '\n'.join(
    '| '
    + ' | '.join(
      cell.ljust(width) for cell, width in zip(line, widths, strict=True)
    )
    + ' |'
    for line in lines
  )


def training(rows: Sequence[Row], accelerator: bool) -> str:
  """Draws rows of training; a failed row has only `who` and `failed`."""
  heads = [
    'who',
    'precision',
    'tokens/s, best',
    'median',
    'GEMM peak',
    'best, of GEMM peak',
    *(['best, MFU', 'memory'] if accelerator else []),
    'first step, s',
    'from start, s',
    *_RATIO_HEADS,
  ]
  lines = []
  for row in rows:
    if 'failed' in row:
      lines.append(_failed(row, len(heads)))
      continue
    lines.append(
      [
        row['who'],
        row['precision'],
        quantity(row['best_tokens_per_second']),
        quantity(row['median_tokens_per_second']),
        quantity(row['gemm_flops']),
        percent(row['gemm_share']),
        *(
          [percent(row['mfu']), quantity(row['memory_bytes'])]
          if accelerator
          else []
        ),
        f'{row["first_step_seconds"]:.1f}',
        f'{row["start_seconds"]:.1f}',
        *_ratios(row),
      ]
    )
  return markdown(heads, lines)


def throughput(rows: Sequence[Row]) -> str:
  """Draws rows of the loader or of generation."""
  heads = ['who', 'setting', 'tokens/s, best', 'median', *_RATIO_HEADS]
  return markdown(
    heads,
    [
      _failed(row, len(heads))
      if 'failed' in row
      else [
        row['who'],
        row['setting'],
        quantity(row['best_tokens_per_second']),
        quantity(row['median_tokens_per_second']),
        *_ratios(row),
      ]
      for row in rows
    ],
  )


def checkpoint(rows: Sequence[Row]) -> str:
  """Draws the times of a checkpoint."""
  heads = ['who', 'bytes', 'what', 's, best', 'median']
  lines = []
  for row in rows:
    if 'failed' in row:
      lines.append(_failed(row, len(heads)))
      continue
    for what, name in (
      ('save blocks the step', 'blocking_seconds'),
      ('save, to the end', 'save_seconds'),
      ('restore, verified', 'restore_seconds'),
    ):
      times = row[name]
      lines.append(
        [
          row['who'],
          quantity(row['bytes']),
          what,
          f'{min(times):.3f}',
          f'{statistics.median(times):.3f}',
        ]
      )
  return markdown(heads, lines)


_RATIO_HEADS = ('lm / this, paired (range)', 'lm / this, best')


def _ratios(row: Row) -> list[str]:
  if 'ratio' not in row:
    return ['-', '-']
  low, high = row['least_ratio'], row['greatest_ratio']
  return [
    f'{row["ratio"]:.2f} ({low:.2f}-{high:.2f})',
    f'{row["best_ratio"]:.2f}',
  ]


def _failed(row: Row, columns: int) -> list[str]:
  text = row['failed'].replace('|', '/')
  return [row['who'], f'failed: {text}', *[''] * (columns - 2)]
