"""Batches of token streams: each a pure function of data, seed and step.

Nothing is carried from one batch to the next. So a run resumes at any step, and
hosts, threads and prefetching never change which tokens step N sees.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import functools
import hashlib
from typing import Any, NamedTuple

import numpy as np

from lm import config, types
from lm.data import names, objectives, row_lengths, shards, shares, windows
from lm.data import position as positions
from lm.data import samples as samples_lib


class Data(NamedTuple):
  """Batches addressed by step.

  Attributes:
    batch: `(step, host=0, hosts=1) -> Batch` of numpy arrays: rows
      [host B / hosts, (host + 1) B / hosts) of the global batch [B, L]. Where
      rows are shorter than L, there are more of them, with as many tokens.
    state: `(step) -> dict`, the position before `step`: plain JSON, which
      `make(position=...)` takes.
    examples: global batches of zeros, for shapes and types: first that of rows
      of length L, then one for each shorter length.
    fingerprint: sha256 over the names and manifests of the datasets.
    steps: number of steps; None: endless.
    text_bytes: bytes of UTF-8 that all steps read together; None: endless.
    step_tokens: number of tokens of the datasets that a step uses.
    likelihood: whether each token is scored once, see `objectives.Objective`.
    bytes_per_token: mean over the datasets, by the weights where it starts;
      None where the losses are not those of the text: without `likelihood`, or
      where the ids of a dataset do not give back its text.
    reading: `() -> list[str]`, the shards that are being read now.
    drawn: `(records, expected)` where a step draws each record by itself, and
      `expected` of them on average; None: it does not.
    samples: which windows each step reads; None where there are no windows of
      mixed datasets.
  """

  batch: Callable[..., types.Batch]
  state: Callable[[int], dict[str, Any]]
  examples: tuple[types.Batch, ...]
  fingerprint: str
  steps: int | None
  text_bytes: int | None
  step_tokens: int
  likelihood: bool
  bytes_per_token: float | None
  reading: Callable[[], list[str]]
  drawn: tuple[int, int] | None = None
  samples: samples_lib.Samples | None = None

  @property
  def example(self) -> types.Batch:
    """The batch of the longest rows."""
    return self.examples[0]


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
  temperature: float | None = None,
  max_epochs: float | None = None,
  position: Mapping[str, Any] | None = None,
  steps: int | None = None,
) -> Data:
  """Opens datasets for training: shuffled, mixed, without end.

  Args:
    sources: name -> {'path': directory, 'weight': share of the samples}. A
      weight may be 0 before a change.
    tokenizer: that wrote the datasets; those of another one are refused.
    seed: of the order within every epoch.
    batch_size: B, windows a step, over all hosts.
    length: L, tokens of a row, which is passed to the objective.
    objective: spec of what makes examples of windows, see `lm.data.objectives`.
    changes: (first step, name -> weight of every source), ascending.
    lengths: (first step, length of rows), ascending; before the first, rows
      have length L. A row of length L is cut into equal parts, which become
      rows of the same batch. So each step reads the same tokens, whatever the
      lengths, and they may be changed in any run. Reference: Li et al. 2022,
      arXiv 2108.06084, where the number of rows stays and that of tokens
      changes.
    temperature: T; shares are then weight times tokens^(1 / T), see `shares`.
      None: they are the weights.
    max_epochs: how often each source is read at most in the steps of the run;
      what exceeds goes to the others, see `shares`. None: as often as its
      weight says.
    position: what `state` returned. With the same batch size, window and seed,
      the stream continues bit for bit; with others it continues at the same
      token counts, in new windows.
    steps: of the whole run, which `max_epochs` needs; others do not.

  Raises:
    ValueError: a dataset cannot be used, a setting is out of range, or
      `position` belongs to other datasets or weights.
  """
  _check_sizes(batch_size, length)
  row_parts = row_lengths.parts(lengths, length)
  built = row_lengths.build(objective, tokenizer, length, row_parts)
  window = built[1].window  # of whole rows, which parts only cut
  opened = _open(sources, tokenizer)
  given = positions.weights([*opened], sources, changes)
  fingerprints = {name: x.fingerprint for name, x in opened.items()}
  # While these stay, samples have the same numbers and orders; see `anchor`.
  identity = {'batch_size': batch_size, 'window': window, 'seed': seed}
  rule = shares.Rule(temperature, max_epochs, steps)
  weights = shares.make(given, opened, identity, rule)
  anchor = positions.anchor(position, fingerprints, weights, identity)
  samples = samples_lib.make(opened, weights, anchor, identity)

  def batch(step: int, host: int = 0, hosts: int = 1) -> types.Batch:
    first, stop = host_rows(batch_size, host, hosts)
    # Whole windows are read and then cut, so that the position of a run does
    # not depend on the lengths of rows.
    count = [count for since, count in row_parts if since <= step][-1]
    numbers = samples.before(step) + np.arange(first, stop, dtype=np.int64)
    rows = samples.read(numbers)
    return built[count].make(*windows.split(*rows, count))

  def state(step: int) -> dict[str, Any]:
    return {
      'fingerprint': _fingerprint(fingerprints),
      'datasets': fingerprints,
      # Only the past must stay; later changes may still be edited.
      'weights': [[s, share] for s, share in weights if s < step],
      **samples.position(step),
      **identity,
    }

  is_text = built[1].likelihood and _give_back(opened.values(), tokenizer)
  start = [share for step, share in weights if step <= anchor['step']][-1]
  return Data(
    batch=batch,
    state=state,
    examples=tuple(
      objectives.example(built[n], batch_size * n) for n in sorted(built)
    ),
    fingerprint=_fingerprint(fingerprints),
    steps=None,
    text_bytes=None,
    step_tokens=batch_size * window,
    likelihood=built[1].likelihood,
    bytes_per_token=_mean_bytes_per_token(opened, start) if is_text else None,
    reading=functools.partial(_reading, [*opened.values()]),
    samples=samples,
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

  The last batch is filled up with padding. What an objective draws does not
  depend on the seed of a run.

  Args:
    path: directory of the dataset.
    tokenizer: that wrote the dataset.
    batch_size: B, windows a step, over all hosts.
    length: L, tokens of a row, which is passed to the objective.
    objective: spec of what makes examples of windows.

  Raises:
    ValueError: the dataset cannot be used or a setting is out of range.
  """
  _check_sizes(batch_size, length)
  built = config.build(objective, tokenizer=tokenizer, length=length)
  source = shards.load(path, tokenizer)
  # Without a key windows are in order, and draws are the same in every run.
  cut = windows.Windows(source, built.window, key=None)
  steps = -(-cut.count // batch_size)
  is_text = built.likelihood and _give_back([source], tokenizer)

  def batch(step: int, host: int = 0, hosts: int = 1) -> types.Batch:
    assert 0 <= step < steps, step
    first, stop = host_rows(batch_size, host, hosts)
    samples = step * batch_size + np.arange(first, stop, dtype=np.int64)
    # Rows beyond the last window read it again, and count as empty.
    rows, sizes = cut.read(np.minimum(samples, cut.count - 1))
    sizes = np.where(samples < cut.count, sizes, 0)
    return built.make(rows, sizes, cut.keys(samples))

  def state(step: int) -> dict[str, Any]:
    return {'fingerprint': source.fingerprint, 'step': step}

  return Data(
    batch=batch,
    state=state,
    examples=(objectives.example(built, batch_size),),
    fingerprint=source.fingerprint,
    steps=steps,
    text_bytes=source.manifest.text_bytes,
    step_tokens=batch_size * built.window,
    likelihood=built.likelihood,
    bytes_per_token=_bytes_per_token(source) if is_text else None,
    reading=functools.partial(_reading, [source]),
  )


def _reading(opened: Sequence[shards.Shards]) -> list[str]:
  """Lists the shards that are being read now, each with its reader."""
  # A copy of the items, because readers change the dict in their threads.
  reading = [x for source in opened for x in [*source.reading.items()]]
  return sorted(f'{path} ({reader})' for reader, path in reading)


def _give_back(
  sources: Iterable[shards.Shards], tokenizer: types.Tokenizer
) -> bool:
  """Tells whether the ids of datasets are known to give back all their text.

  Only then is their likelihood that of the text. What was never measured counts
  as lost.
  """
  return tokenizer.lossless or all(x.manifest.lost_bytes == 0 for x in sources)


def _bytes_per_token(source: shards.Shards) -> float:
  return source.manifest.text_bytes / source.manifest.tokens


def _mean_bytes_per_token(
  opened: Mapping[str, shards.Shards], weights: Mapping[str, float]
) -> float:
  """Averages over the sources, by their weights."""
  total = sum(weights[name] * _bytes_per_token(x) for name, x in opened.items())
  return total / sum(weights.values())


def _fingerprint(fingerprints: Mapping[str, str]) -> str:
  """Hashes the names and fingerprints of all sources."""
  text = '\n'.join(
    f'{fingerprints[name]} {name}' for name in sorted(fingerprints)
  )
  return hashlib.sha256(text.encode()).hexdigest()


def host_rows(batch_size: int, host: int, hosts: int) -> tuple[int, int]:
  """Returns the range of a host's rows in the global batch: (first, stop).

  Raises:
    ValueError: the rows cannot be divided equally.
  """
  if batch_size % hosts:
    raise ValueError(
      f'batch_size: {batch_size} does not divide over {hosts} hosts; '
      'give a multiple'
    )
  assert 0 <= host < hosts, (host, hosts)
  rows = batch_size // hosts
  return host * rows, (host + 1) * rows


def _open(
  sources: Mapping[str, Mapping[str, Any]], tokenizer: types.Tokenizer
) -> dict[str, shards.Shards]:
  """Opens datasets, sorted by name.

  Raises:
    ValueError: there is no source, or one has other keys or cannot be used.
  """
  if not sources:
    raise ValueError('data.sources: empty; give name -> {path, weight}')
  # Sorted, so that the order in which a config names them does not count.
  order = sorted(sources)
  for name in order:
    if set(sources[name]) != {'path', 'weight'}:
      raise ValueError(
        f'data.sources.{names.short(name)}: has keys '
        f'{str(sorted(sources[name]))[:60]}; give path and weight'
      )
  return {name: shards.load(sources[name]['path'], tokenizer) for name in order}


def _check_sizes(batch_size: int, length: int) -> None:
  for key, value in (('batch_size', batch_size), ('data.length', length)):
    if type(value) is not int or value < 1:
      raise ValueError(f'{key}: {value} is not a positive integer')
