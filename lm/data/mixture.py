"""Mixes datasets: a schedule in closed form says which one a sample is from.

Weights become integer quotas of a period of P samples, and bit reversal
spreads each dataset's quota evenly over the period. So sample g of a run is
found in O(1), any whole period holds every dataset's quota exactly, and any
stretch holds it nearly. Weights may change at given samples. A phase, which is
a stretch of constant weights, starts with a new period, and every dataset
continues where it was.
"""

from collections.abc import Sequence
import math
from typing import NamedTuple

import numpy as np

PERIOD = 1 << 16  # P; a dataset whose share is below 1/2P may get no slot


class Phase(NamedTuple):
  """A stretch of constant weights.

  Attributes:
    start: its first sample.
    before: int64 [K], number of samples of each dataset before the phase.
    quota: int64 [K], number of samples of each dataset in a period.
    dataset: int64 [P], dataset of each slot of the period.
    rank: int64 [P], number of earlier slots of the period with that dataset.
  """

  start: int
  before: np.ndarray
  quota: np.ndarray
  dataset: np.ndarray
  rank: np.ndarray


def quotas(weights: Sequence[float]) -> np.ndarray:
  """Shares out the P slots of a period by largest remainder: int64 [K]."""
  # `fsum` rounds once, so that the order of the weights does not change it.
  share = np.asarray(weights, np.float64) / math.fsum(weights) * PERIOD
  quota = np.floor(share).astype(np.int64)
  # The slots that are left go to the largest remainders. Stable, so that on
  # every machine the first of equal ones gets it.
  order = np.argsort(quota - share, kind='stable')
  quota[order[: PERIOD - quota.sum()]] += 1
  return quota


def make(
  phases: Sequence[tuple[int, Sequence[float]]], before: Sequence[int]
) -> tuple[Phase, ...]:
  """Makes a schedule.

  Args:
    phases: first sample and weights [K] of each phase, ascending.
    before: number of samples of each dataset before the first phase [K].
  """
  result: list[Phase] = []
  counts = np.asarray(before, np.int64)
  reversed_ = _bit_reversal()
  for start, weights in phases:
    if result:
      counts = count(result, start)
    quota = quotas(weights)
    # Slots in blocks, one a dataset, read in the order of bit reversal: that
    # takes from each block evenly, in any stretch of the period.
    dataset = np.repeat(np.arange(len(quota)), quota)[reversed_]
    rank = np.empty(PERIOD, np.int64)
    for k in range(len(quota)):
      rank[dataset == k] = np.arange(quota[k])
    result.append(Phase(start, counts, quota, dataset, rank))
  return tuple(result)


def count(phases: Sequence[Phase], sample: int) -> np.ndarray:
  """Counts the samples of each dataset before `sample`: int64 [K]."""
  phase = [p for p in phases if p.start <= sample][-1]
  periods, slot = divmod(sample - phase.start, PERIOD)
  part = np.bincount(phase.dataset[:slot], minlength=len(phase.quota))
  return phase.before + periods * phase.quota + part


def locate(
  phases: Sequence[Phase], samples: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Finds which datasets samples come from.

  Args:
    phases: the schedule.
    samples: int64 [B], numbers from the first phase on.

  Returns:
    dataset: int64 [B].
    place: int64 [B], number of the sample in its dataset.
  """
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


def find(
  phases: Sequence[Phase], dataset: int, places: np.ndarray
) -> np.ndarray:
  """Finds samples by their dataset and their number in it; undoes `locate`.

  Args:
    phases: the schedule.
    dataset: k.
    places: int64 [N], numbers of samples of the dataset, which the schedule
      reaches.

  Returns:
    int64 [N], numbers of the samples in the run.
  """
  result = np.empty(len(places), np.int64)
  # Where a phase gives the dataset nothing, the next one begins with the same
  # number, and is found because the last of equal ones is taken.
  before = np.asarray([p.before[dataset] for p in phases])
  which = np.searchsorted(before, places, 'right') - 1
  for n in np.unique(which):
    phase, chosen = phases[n], which == n
    slots = np.flatnonzero(phase.dataset == dataset)
    periods, rank = np.divmod(places[chosen] - before[n], len(slots))
    result[chosen] = phase.start + periods * PERIOD + slots[rank]
  return result


def _bit_reversal() -> np.ndarray:
  """Lists 0..P-1 with their bits reversed: the van der Corput sequence."""
  out = np.zeros(PERIOD, np.int64)
  for bit in range(PERIOD.bit_length() - 1):
    out = out << 1 | (np.arange(PERIOD) >> bit & 1)
  return out
