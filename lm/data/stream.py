"""The batch at a step: a pure function of data, seed and settings.

Nothing is carried from one batch to the next, so a run resumes at any step,
and neither hosts nor threads nor prefetch can change what step N sees.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent import futures
import functools
import hashlib
import operator
from typing import Any, NamedTuple

import grain
import numpy as np

from lm import config, errors, types
from lm.data import mixture, names, objectives, shards, windows
from lm.data import position as positions


class Data(NamedTuple):
  """Batches addressed by step.

  Attributes:
    batch: `(step, host=0, hosts=1) -> Batch` of numpy arrays: the rows
      [host B / hosts, (host + 1) B / hosts) of the global batch [B, L]. Where
      rows are shorter than L there are more of them, of as many tokens.
    state: `(step) -> dict`, the position before `step`, for JSON and for
      `make(position=...)`.
    examples: global batches of zeros, for shapes and types: of rows of L, then
      of each shorter length.
    fingerprint: sha256 over the datasets' names and manifests.
    steps: how many there are; None: endless.
    text_bytes: UTF-8 bytes of what all steps read; None: endless.
    step_tokens: tokens of the datasets that a step uses.
    bytes_per_token: the mean of the datasets, by the weights where it starts;
      None where the objective's losses are not the text's, see
      `objectives.Objective`.
    reading: `() -> list[str]`, the shards that are being read now.
    drawn: `(records, expected)` where a step draws each record by itself, and
      so many of them on average.
  """

  batch: Callable[..., types.Batch]
  state: Callable[[int], dict[str, Any]]
  examples: tuple[types.Batch, ...]
  fingerprint: str
  steps: int | None
  text_bytes: int | None
  step_tokens: int
  bytes_per_token: float | None
  reading: Callable[[], list[str]]
  drawn: tuple[int, int] | None = None

  @property
  def example(self) -> types.Batch:
    """The batch of the longest rows."""
    return self.examples[0]


class Stalled(errors.Storage):
  """No batch came in time.

  A thread that hangs in the file system cannot be stopped, and Python waits
  for it at exit: a program that wants to end now leaves by `os._exit`.
  """


def make(
  sources: Mapping[str, Mapping[str, Any]],
  *,
  tokenizer: types.Tokenizer,
  seed: int,
  batch_size: int,
  length: int,
  objective: Mapping[str, Any] = objectives.CAUSAL,
  changes: Sequence[tuple[int, Mapping[str, float]]] = (),
  lengths: Sequence[tuple[int, int]] = (),
  position: Mapping[str, Any] | None = None,
) -> Data:
  """Opens datasets for training: shuffled, mixed, without end.

  Args:
    sources: name -> {'path': directory, 'weight': share of the samples}. A
      weight may be 0 before a change.
    tokenizer: datasets written with another one are refused.
    seed: of the order within every epoch.
    batch_size: B, windows a step, over all hosts.
    length: L, as the objective takes it.
    objective: spec of what makes examples of windows, see `lm.data.objectives`.
    changes: (first step, name -> weight of every source), ascending.
    lengths: (first step, length of rows), ascending; L before the first. A row
      of L is cut in whole parts, which are rows of the same batch then: so each
      step reads the same tokens, whatever the lengths, and they may be changed
      in any run. Reference: Li et al. 2022, arXiv 2108.06084, where the number
      of rows stays and the tokens change.
    position: what `state` gave. With the same batch size, window and seed the
      stream goes on bit for bit; with others it goes on at the same token
      counts, in new windows.

  Raises:
    ValueError: a dataset cannot be used, a setting is out of range, or
      `position` belongs to other datasets or other weights.
  """
  _check_sizes(batch_size, length)
  made = config.build(objective, tokenizer=tokenizer, length=length)
  parts = _parts(lengths, length)
  pieces = {
    count: _piece(objective, tokenizer, length // count, count, made.window)
    if count > 1
    else made
    for _, count in parts
  }
  if not sources:
    raise ValueError('data.sources: empty; give name -> {path, weight}')
  order = sorted(sources)
  for name in order:
    if set(sources[name]) != {'path', 'weight'}:
      raise ValueError(
        f'data.sources.{names.short(name)}: has keys '
        f'{str(sorted(sources[name]))[:60]}; give path and weight'
      )
  weights = positions.weights(order, sources, changes)
  opened = [shards.load(sources[name]['path'], tokenizer) for name in order]
  prints = {
    k: source.fingerprint for k, source in zip(order, opened, strict=True)
  }
  identity = {'batch_size': batch_size, 'window': made.window, 'seed': seed}
  anchor = positions.anchor(position, prints, weights, identity)

  cut = [
    windows.Windows(source, made.window, _key(seed, name))
    for name, source in zip(order, opened, strict=True)
  ]
  now = max(n for n, (step, _) in enumerate(weights) if step <= anchor['step'])
  schedule = mixture.make(
    [
      (
        max(0, step - anchor['step']) * batch_size,
        [share[name] for name in order],
      )
      for step, share in weights[now:]
    ],
    [anchor['counts'][name] for name in order],
  )

  def samples_before(step: int) -> int:
    if step < anchor['step']:
      raise ValueError(
        f'data: step {step} lies before step {anchor["step"]}, where batch '
        'size, window or seed changed; resume from an older checkpoint'
      )
    return (step - anchor['step']) * batch_size

  def batch(step: int, host: int = 0, hosts: int = 1) -> types.Batch:
    first, stop = host_rows(batch_size, host, hosts)
    samples = samples_before(step) + np.arange(first, stop, dtype=np.int64)
    dataset, place = mixture.locate(schedule, samples)
    rows = np.empty((len(samples), made.window + 1), np.int32)
    sizes = np.empty(len(samples), np.int64)
    keys = np.empty(len(samples), np.uint64)
    for k in np.unique(dataset):
      chosen = dataset == k
      rows[chosen], sizes[chosen] = cut[k].read(place[chosen])
      keys[chosen] = cut[k].keys(place[chosen])
    count = [count for first, count in parts if first <= step][-1]
    return pieces[count].make(*windows.split(rows, sizes, keys, count))

  def state(step: int) -> dict[str, Any]:
    samples = samples_before(step)
    counts = mixture.count(schedule, samples).tolist()
    return {
      'fingerprint': _fingerprint(prints),
      'datasets': prints,
      'step': step,
      'samples': sum(counts),
      'tokens': anchor['tokens'] + samples * made.window,
      'counts': dict(zip(order, counts, strict=True)),
      'weights': [[s, share] for s, share in weights if s < step],
      'anchor': anchor,
      **identity,
    }

  return Data(
    batch=batch,
    state=state,
    examples=tuple(
      objectives.example(piece, batch_size * count)
      for count, piece in sorted(pieces.items())
    ),
    fingerprint=_fingerprint(prints),
    steps=None,
    text_bytes=None,
    step_tokens=batch_size * made.window,
    bytes_per_token=sum(
      weights[now][1][name] * _bytes_per_token(source)
      for name, source in zip(order, opened, strict=True)
    )
    / sum(weights[now][1].values())
    if made.likelihood
    else None,
    reading=functools.partial(_reading, opened),
  )


def once(
  path: str,
  *,
  tokenizer: types.Tokenizer,
  batch_size: int,
  length: int,
  objective: Mapping[str, Any] = objectives.CAUSAL,
) -> Data:
  """Opens a dataset for evaluation: in order, every token read once.

  The last batch is filled up with padding. Arguments as for `make`; what an
  objective draws is the same whatever the seed of a run.

  Raises:
    ValueError: the dataset cannot be used or a setting is out of range.
  """
  _check_sizes(batch_size, length)
  made = config.build(objective, tokenizer=tokenizer, length=length)
  source = shards.load(path, tokenizer)
  cut = windows.Windows(source, made.window, key=None)
  steps = -(-cut.count // batch_size)

  def batch(step: int, host: int = 0, hosts: int = 1) -> types.Batch:
    assert 0 <= step < steps, step
    first, stop = host_rows(batch_size, host, hosts)
    samples = step * batch_size + np.arange(first, stop, dtype=np.int64)
    rows, sizes = cut.read(np.minimum(samples, cut.count - 1))
    sizes = np.where(samples < cut.count, sizes, 0)
    return made.make(rows, sizes, cut.keys(samples))

  def state(step: int) -> dict[str, Any]:
    return {'fingerprint': source.fingerprint, 'step': step}

  return Data(
    batch=batch,
    state=state,
    examples=(objectives.example(made, batch_size),),
    fingerprint=source.fingerprint,
    steps=steps,
    text_bytes=source.manifest.text_bytes,
    step_tokens=batch_size * made.window,
    bytes_per_token=_bytes_per_token(source) if made.likelihood else None,
    reading=functools.partial(_reading, [source]),
  )


def stream(
  data: Data,
  start: int,
  stop: int,
  *,
  threads: int = 2,
  prefetch: int = 4,
  host: int = 0,
  hosts: int = 1,
  deadline_seconds: float = 60.0,
) -> Generator[tuple[int, types.Batch], None, None]:
  """Reads steps [start, stop) ahead of their use.

  Args:
    data: what to read.
    start: first step.
    stop: the step after the last.
    threads: readers; 0: read only when asked.
    prefetch: batches held ready, in memory.
    host: whose rows to read,
    hosts: of how many.
    deadline_seconds: how long to wait for one batch.

  Yields:
    (step, Batch), in order.

  Raises:
    ValueError: a shard is damaged.
    Stalled: a batch did not come within the deadline.
  """
  threads = min(threads, prefetch)
  dataset = grain.MapDataset.source(_Steps(data, start, stop, host, hosts))
  batches = iter(
    dataset.to_iter_dataset(
      grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=prefetch if threads else 0
      )
    )
  )
  # grain waits for its readers without a deadline, so it is waited for here.
  waiter = futures.ThreadPoolExecutor(1, thread_name_prefix='lm-data')
  try:
    for step in range(start, stop):
      pending = waiter.submit(next, batches)
      try:
        batch = pending.result(deadline_seconds)
      except TimeoutError as e:
        where = ', '.join(data.reading()[:2]) or 'no shard'
        raise Stalled(
          f'data: no batch for step {step} in {deadline_seconds:g} s, reading '
          f'{where}; check that storage'
        ) from e
      yield step, batch
  finally:
    waiter.shutdown(wait=False, cancel_futures=True)
    batches.close()


class _Steps:
  """Random access for grain: one element is one whole batch."""

  def __init__(self, data: Data, start: int, stop: int, host: int, hosts: int):
    self._batch = functools.partial(data.batch, host=host, hosts=hosts)
    self._steps = range(start, stop)

  def __len__(self) -> int:
    return len(self._steps)

  def __getitem__(self, index: int) -> types.Batch:
    return self._batch(self._steps[operator.index(index)])


def _reading(opened: Sequence[shards.Shards]) -> list[str]:
  return sorted({p for source in opened for p in [*source.reading.values()]})


def _bytes_per_token(source: shards.Shards) -> float:
  return source.manifest.text_bytes / source.manifest.tokens


def _fingerprint(prints: Mapping[str, str]) -> str:
  text = '\n'.join(f'{prints[name]} {name}' for name in sorted(prints))
  return hashlib.sha256(text.encode()).hexdigest()


def _key(seed: int, name: str) -> int:
  """Gives each source its own order, whichever others it is mixed with."""
  digest = hashlib.sha256(f'{seed} {name}'.encode()).digest()
  return int.from_bytes(digest[:8], 'little')


def host_rows(batch_size: int, host: int, hosts: int) -> tuple[int, int]:
  """Gives the first of a host's rows in the global batch, and what follows.

  Raises:
    ValueError: the rows do not divide.
  """
  if batch_size % hosts:
    raise ValueError(
      f'batch_size: {batch_size} does not divide over {hosts} hosts; '
      'give a multiple'
    )
  assert 0 <= host < hosts, (host, hosts)
  rows = batch_size // hosts
  return host * rows, (host + 1) * rows


def _parts(
  lengths: Sequence[tuple[int, int]], length: int
) -> list[tuple[int, int]]:
  """Lists (first step, parts that rows are cut into), the first at step 0."""
  parts = [(0, 1)]
  for step, short in lengths:
    if type(step) is not int or step < parts[-1][0] + (len(parts) > 1):
      raise ValueError(
        f'data.lengths: step {step} is not after the one before it'
      )
    if type(short) is not int or short < 1 or length % short:
      raise ValueError(
        f'data.lengths: {short} at step {step} does not divide '
        f'data.length={length}'
      )
    parts.append((step, length // short))
  return parts


def _piece(objective, tokenizer, length, parts, window) -> objectives.Objective:
  """Makes the objective of rows that are a part of a window."""
  made = config.build(objective, tokenizer=tokenizer, length=length)
  if made.window * parts != window:
    raise ValueError(
      f'data.lengths: with rows of {length} {objective["fn"]} reads windows of '
      f'{made.window} tokens, not {window} / {parts}; it has one length'
    )
  return made


def _check_sizes(batch_size: int, length: int) -> None:
  for key, value in (('batch_size', batch_size), ('data.length', length)):
    if type(value) is not int or value < 1:
      raise ValueError(f'{key}: {value} is not a positive integer')
