"""Samples: which windows of which sources the rows of a step are."""

from collections.abc import Mapping, Sequence
import hashlib
from typing import Any, NamedTuple

import numpy as np

from lm.data import mixture, shards, windows

Weights = Sequence[tuple[int, Mapping[str, float]]]  # (first step, by name)


class Samples(NamedTuple):
  """The windows of mixed datasets, numbered from an anchor on.

  Attributes:
    batch_size: B, samples a step.
    anchor: step of sample 0, see `position.anchor`.
    cuts: the datasets, cut into windows, by name.
    phases: the schedule of the mixture, in the order of `cuts`.
    weights: of every source from a step on, ascending, the first at step 0.
  """

  batch_size: int
  anchor: Mapping[str, Any]
  cuts: Mapping[str, windows.Windows]
  phases: Sequence[mixture.Phase]
  weights: Weights

  def before(self, step: int) -> int:
    """Counts the samples between the anchor and a step.

    Raises:
      ValueError: the step lies before the anchor.
    """
    if step < self.anchor['step']:
      raise ValueError(
        f'data: step {step} lies before step {self.anchor["step"]}, where '
        'batch size, window or seed changed; resume from an older checkpoint'
      )
    return (step - self.anchor['step']) * self.batch_size

  def counts(self, step: int) -> dict[str, int]:
    """Counts the windows of each source that are read before a step."""
    counts = mixture.count(self.phases, self.before(step)).tolist()
    return dict(zip(self.cuts, counts, strict=True))

  def position(self, step: int) -> dict[str, Any]:
    """Describes for a checkpoint what was read before a step."""
    counts = self.counts(step)
    return {
      'step': step,
      'samples': sum(counts.values()),
      'tokens': self.anchor['tokens'] + self.before(step) * self.window,
      'counts': counts,
      'anchor': self.anchor,
    }

  def read(
    self, samples: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reads samples int64 [B] by their numbers.

    Returns:
      rows [B, W + 1], sizes [B] and keys [B], see `windows.Windows`.
    """
    # All rows of one dataset are read together, and put at their places.
    dataset, place = mixture.locate(self.phases, samples)
    rows = np.empty((len(samples), self.window + 1), np.int32)
    sizes = np.empty(len(samples), np.int64)
    keys = np.empty(len(samples), np.uint64)
    for k, cut in enumerate(self.cuts.values()):
      chosen = dataset == k
      if chosen.any():
        rows[chosen], sizes[chosen] = cut.read(place[chosen])
        keys[chosen] = cut.keys(place[chosen])
    return rows, sizes, keys

  @property
  def window(self) -> int:
    """W, the tokens of a window."""
    return next(iter(self.cuts.values())).length


def make(
  opened: Mapping[str, shards.Shards],
  weights: Weights,
  anchor: Mapping[str, Any],
  identity: Mapping[str, int],
) -> Samples:
  """Numbers the windows of datasets.

  Args:
    opened: the datasets, in the order of their names.
    weights: see `Samples`.
    anchor: see `position.anchor`.
    identity: batch size, window and seed.
  """
  cuts = {
    name: windows.Windows(
      source, identity['window'], _key(identity['seed'], name)
    )
    for name, source in opened.items()
  }
  # Earlier weights do not count: what they read is in the anchor's counts.
  start, size = anchor['step'], identity['batch_size']
  current = max(n for n, (first, _) in enumerate(weights) if first <= start)
  phases = mixture.make(
    [
      (max(0, step - start) * size, [share[name] for name in opened])
      for step, share in weights[current:]
    ],
    [anchor['counts'][name] for name in opened],
  )
  return Samples(size, anchor, cuts, phases, weights)


def _key(seed: int, name: str) -> int:
  """Returns the key of a source's order.

  It does not depend on the other sources, so that adding one leaves the order
  of the others as it is.
  """
  digest = hashlib.sha256(f'{seed} {name}'.encode()).digest()
  return int.from_bytes(digest[:8], 'little')
