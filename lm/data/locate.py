"""Says which steps read a document, and which documents a step reads.

Nothing is searched: each function is the inverse of one that finds the batch of
a step. From a token to a step it goes over the phase of an epoch and the order
of its windows (`windows.unpermuted`) to the number of a window in its source,
and over the schedule of the mixture (`mixture.find`) to the number of a sample.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from lm.data import mixture, windows
from lm.data import samples as samples_lib

_AT_ONCE = 1 << 16  # windows that are found together, which bounds memory


class Visit(NamedTuple):
  """A window of a step that holds tokens of a document.

  Attributes:
    step: whose batch the window is in; `Data.batch` takes it.
    row: number of the window in the batch.
    epoch: of the source, from 0 on.
    start: first token of the document in the window.
    stop: after its last token there; eos is the last of the document.
  """

  step: int
  row: int
  epoch: int
  start: int
  stop: int


class Piece(NamedTuple):
  """The part of a document in a window.

  Attributes:
    row: number of the window in the batch.
    source: name of the dataset in the config.
    document: number in the dataset.
    start: first token of the document in the window.
    stop: after its last token there.
  """

  row: int
  source: str
  document: int
  start: int
  stop: int


class Era(NamedTuple):
  """The steps of a run that share a batch size, a window and a seed.

  Attributes:
    start: the first step.
    stop: the step after the last; None: it has no end.
    samples: what the steps read.
  """

  start: int
  stop: int | None
  samples: samples_lib.Samples


def eras(now: samples_lib.Samples) -> list[Era]:
  """Lists the eras of a run, from its first step on.

  Only a run whose settings an older version changed, which kept no past, does
  not begin with step 0.

  Args:
    now: of the newest era, as `stream.Data` has it.
  """
  opened = {name: cut.source for name, cut in now.cuts.items()}
  found = [
    samples_lib.make(opened, now.weights, past, past)
    for past in now.anchor.get('past', ())
  ]
  found.append(now)
  starts = [samples.anchor['step'] for samples in found]
  ends = [*starts[1:], None]
  return [Era(*era) for era in zip(starts, ends, found, strict=True)]


def era_of(now: samples_lib.Samples, step: int) -> samples_lib.Samples:
  """Finds what the era of a step reads; of an unknown one, the newest."""
  known = [era for era in eras(now) if era.start <= step]
  return known[-1].samples if known else now


def visits(
  now: samples_lib.Samples,
  source: str,
  tokens: tuple[int, int],
  steps: tuple[int, int],
) -> Iterator[Visit]:
  """Finds the windows that hold tokens of a document, in the order of steps.

  Args:
    now: of the run's newest era.
    source: name of the dataset in the config.
    tokens: first token of the document in the dataset's stream, and the token
      after its last, as `shards.Place` has them.
    steps: the first step, and the step after the last.
  """
  for era in eras(now):
    stop = steps[1] if era.stop is None else min(steps[1], era.stop)
    first = max(steps[0], era.start)
    if first < stop:
      yield from _in_era(era.samples, source, tokens, (first, stop))


def _in_era(
  samples: samples_lib.Samples,
  source: str,
  tokens: tuple[int, int],
  steps: tuple[int, int],
) -> Iterator[Visit]:
  cut = samples.cuts[source]
  dataset = list(samples.cuts).index(source)
  low, high = (samples.counts(step)[source] for step in steps)
  stop = -(-high // cut.count)
  size = max(1, _AT_ONCE // ((tokens[1] - tokens[0]) // cut.length + 3))
  for first in range(low // cut.count, stop, size):
    epochs = np.arange(first, min(first + size, stop))
    place, epoch, start, end = _windows(cut, tokens, epochs)
    chosen = (low <= place) & (place < high)
    # Two samples of a source are read in the order of their places.
    order = np.lexsort((start[chosen], place[chosen]))
    numbers = mixture.find(samples.phases, dataset, place[chosen][order])
    step, row = np.divmod(numbers, samples.batch_size)
    columns = [step + samples.anchor['step'], row]
    columns += [column[chosen][order] for column in (epoch, start, end)]
    for values in zip(*(column.tolist() for column in columns), strict=True):
      yield Visit(*values)


def _windows(
  cut: windows.Windows, tokens: tuple[int, int], epochs: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Finds the windows that hold tokens of a document in some epochs.

  Args:
    cut: the dataset.
    tokens: see `visits`.
    epochs: int64 [E].

  Returns:
    For each window, int64: its place, which is its number in the source; its
    epoch; and the first and the last tokens of the document in it, as in
    `Visit`.
  """
  total, length, size = (
    cut.source.manifest.tokens,
    cut.length,
    tokens[1] - tokens[0],
  )
  keys, phases = cut.epochs(epochs)
  # Counted from the phase, the document may run over the end of the stream:
  # then it is two stretches, and the second begins with window 0.
  first = (tokens[0] - phases) % total
  before = np.minimum(size, total - first)  # tokens in the first stretch
  which = np.tile(np.arange(len(epochs)), 2)
  begin = np.concatenate((first, np.zeros_like(first)))
  end = np.concatenate((first + before, size - before))
  offset = np.concatenate((-first, before))  # turns a place into a token
  window = begin // length
  count = np.where(end > begin, -(-end // length) - window, 0)
  stretch = np.repeat(np.arange(len(count)), count)
  window = np.arange(len(stretch)) - np.repeat(
    np.cumsum(count) - count - window, count
  )
  start = np.maximum(begin[stretch], window * length) + offset[stretch]
  stop = np.minimum(end[stretch], (window + 1) * length) + offset[stretch]
  which = which[stretch]
  if keys is not None:
    window = windows.unpermuted(
      window.astype(np.uint64), cut.count, keys[which]
    ).astype(np.int64)
  return epochs[which] * cut.count + window, epochs[which], start, stop


def pieces(now: samples_lib.Samples, step: int) -> list[Piece]:
  """Lists the documents of the batch of a step, in the order of its rows.

  Args:
    now: of the run's newest era.
    step: that `Data.batch` takes.

  Raises:
    ValueError: the step lies before the first era that is known.
  """
  samples = era_of(now, step)
  numbers = samples.before(step) + np.arange(samples.batch_size)
  dataset, place = mixture.locate(samples.phases, numbers)
  names = list(samples.cuts)
  found = []
  for row, (k, sample) in enumerate(zip(dataset, place, strict=True)):
    cut = samples.cuts[names[k]]
    starts, sizes = cut.locate(np.asarray([sample]))
    found += [
      Piece(row, names[k], *part)
      for part in _documents(cut, int(starts[0]), int(sizes[0]))
    ]
  return found


def _documents(
  cut: windows.Windows, start: int, size: int
) -> Iterator[tuple[int, int, int]]:
  """Yields (document, first token, token after its last) of a window."""
  source = cut.source
  while size:
    number = source.document_at(start)
    place = source.place(number)
    stop = min(start + size, place.stop)
    yield number, start - place.start, stop - place.start
    size -= stop - start
    start = stop % source.manifest.tokens
