"""Which dataset a sample comes from: a schedule in closed form.

Weights become integer quotas of a period of P samples, and bit reversal
spreads each dataset's quota evenly over the period. So sample g of a run is
found in O(1), any whole period holds every dataset's quota exactly, and any
stretch holds it nearly. Weights may change at given samples: a phase starts a
period anew, and every dataset goes on where it was.
"""

from collections.abc import Sequence
import math
from typing import NamedTuple

import numpy as np

PERIOD = 1 << 16  # P; a weight below half of 1/P gets nothing


class Phase(NamedTuple):
  """A stretch of constant weights.

  Attributes:
    start: its first sample.
    before: int64 [K], samples of each dataset before it.
    quota: int64 [K], samples of each dataset in a period.
    dataset: int64 [P], the dataset of each slot of the period.
    rank: int64 [P], how many earlier slots of the period have that dataset.
  """

  start: int
  before: np.ndarray
  quota: np.ndarray
  dataset: np.ndarray
  rank: np.ndarray


def quotas(weights: Sequence[float]) -> np.ndarray:
  """Shares out the P slots by largest remainder: int64 [K]."""
  # `fsum` rounds once: a sum's order must not show in the schedule.
  share = np.asarray(weights, np.float64) / math.fsum(weights) * PERIOD
  quota = np.floor(share).astype(np.int64)
  # Stable, so that equal remainders go to the first on every machine.
  order = np.argsort(quota - share, kind='stable')
  quota[order[: PERIOD - quota.sum()]] += 1
  return quota


def make(
  phases: Sequence[tuple[int, Sequence[float]]], before: Sequence[int]
) -> tuple[Phase, ...]:
  """Makes a schedule.

  Args:
    phases: first sample and weights [K] of each stretch, ascending.
    before: samples of each dataset [K] before the first phase.
  """
  made: list[Phase] = []
  counts = np.asarray(before, np.int64)
  reversed_ = _bit_reversal()
  for start, weights in phases:
    if made:
      counts = count(made, start)
    quota = quotas(weights)
    dataset = np.repeat(np.arange(len(quota)), quota)[reversed_]
    rank = np.empty(PERIOD, np.int64)
    for k in range(len(quota)):
      rank[dataset == k] = np.arange(quota[k])
    made.append(Phase(start, counts, quota, dataset, rank))
  return tuple(made)


def count(phases: Sequence[Phase], sample: int) -> np.ndarray:
  """Counts the samples of each dataset before `sample`: int64 [K]."""
  phase = [p for p in phases if p.start <= sample][-1]
  periods, slot = divmod(sample - phase.start, PERIOD)
  part = np.bincount(phase.dataset[:slot], minlength=len(phase.quota))
  return phase.before + periods * phase.quota + part


def locate(
  phases: Sequence[Phase], samples: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Finds samples [B]: their dataset, and their place n in it, int64 [B]."""
  dataset = np.empty(len(samples), np.int64)
  place = np.empty(len(samples), np.int64)
  starts = np.asarray([p.start for p in phases])
  which = np.searchsorted(starts, samples, 'right') - 1
  for n in np.unique(which):
    phase, rows = phases[n], which == n
    periods, slot = np.divmod(samples[rows] - phase.start, PERIOD)
    k = phase.dataset[slot]
    dataset[rows] = k
    place[rows] = phase.before[k] + periods * phase.quota[k] + phase.rank[slot]
  return dataset, place


def _bit_reversal() -> np.ndarray:
  """Lists 0..P-1 with their bits reversed: van der Corput's sequence."""
  out = np.zeros(PERIOD, np.int64)
  for bit in range(PERIOD.bit_length() - 1):
    out = out << 1 | (np.arange(PERIOD) >> bit & 1)
  return out
