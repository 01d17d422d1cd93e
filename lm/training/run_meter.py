"""The meter of a run: what its lines say of time, arithmetic and memory.

Seconds are counted from the first start of a run, also over its restarts. Those
in which updates were computed that the run has kept are useful; their share is
the goodput. Updates that a kill or a rollback has undone are not useful, and
neither is the time in which no process ran. Each checkpoint holds the seconds
until it was saved, and who goes on from it counts on from them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
import contextlib
import datetime
import math
from pathlib import Path
import time
from typing import Any, TypeVar

import jax

from lm import errors
from lm.planning import flops, hardware
from lm.runtime import memory
from lm.training import run_record, setup

T = TypeVar('T')
# What a run loses time with: imports are done, until the first update of a
# start is done: reading data and a checkpoint, compiling; then saving,
# evaluating, and waiting for batches.
KINDS = ('starting', 'saving', 'evaluating', 'waiting')
# What a run that is repeated, with the same numbers, does not measure again.
VARYING = frozenset(
  (
    'device_memory_bytes',
    'device_memory_peak_bytes',
    'flops_per_second',
    'goodput',
    'host_memory_bytes',
    'mfu',
    'seconds',
    'time',
    'tokens_per_second',
    *(f'{kind}_seconds' for kind in KINDS),
  )
)


class Meter:
  """Measures a run between the lines of its log."""

  def __init__(self, run: setup.Run, start: int, busy: Callable[[], bool]):
    """Starts to measure.

    Args:
      run: as assembled.
      start: the step that it goes on from.
      busy: says whether the devices still work on an update.
    """
    self._run, self._busy = run, busy
    self._started = False
    self._lost: dict[str, float] = dict.fromkeys(KINDS, 0.0)
    # Of the last line, or of the start.
    self._step, self._clock = start, time.monotonic()
    # Useful seconds, and when and at which lost ones they were last counted.
    self._useful, self._since, self._lost_before = 0.0, self._clock, 0.0
    self._first = time.time() - (self._clock - run.began)
    self._model_flops = _per_token(run)
    self._peak = _peak(run.mesh)

  def resume(
    self, folder: Path, newest: Mapping[str, Any], meta: Mapping[str, Any]
  ) -> None:
    """Counts on from what earlier starts of the run have written.

    Args:
      folder: of the run, with its record.
      newest: see `metrics_log.Log`.
      meta: of the checkpoint that the run goes on from; {} without one.
    """
    with contextlib.suppress(errors.Damaged, LookupError, ValueError):
      first = run_record.read(folder)['starts'][0]['time']
      first = datetime.datetime.fromisoformat(first).timestamp()
      self._first = min(self._first, first)
    if {'time', 'seconds'} <= newest.keys():
      self._first = min(self._first, newest['time'] - newest['seconds'])
    useful = newest.get('goodput', 0.0) * newest.get('seconds', 0.0)
    lines = {kind: newest.get(f'{kind}_seconds', 0.0) for kind in KINDS}
    known = {'useful': useful, **lines, **meta.get('seconds', {})}
    self._useful = float(known['useful'])
    self._lost = {kind: float(known[kind]) for kind in KINDS}

  def state(self) -> dict[str, float]:
    """Returns the seconds until now, for a checkpoint's meta."""
    return {'useful': self._count(), **self._lost}

  def go_back(self, meta: Mapping[str, Any]) -> None:
    """Counts the updates after a checkpoint as useful no more."""
    self._count()
    self._useful = float(meta.get('seconds', {}).get('useful', self._useful))

  def _count(self) -> float:
    """Adds up the useful seconds until now, and returns them."""
    if self._started:
      now, lost = time.monotonic(), sum(self._lost.values())
      passed = now - self._since - (lost - self._lost_before)
      self._useful += max(0.0, passed)
      self._since, self._lost_before = now, lost
    return self._useful

  def updated(self) -> None:
    """Notes that an update is done; the first one ends the start of a run."""
    if not self._started:
      self._started, self._since = True, time.monotonic()
      self._lost['starting'] += self._since - self._run.began
      self._lost_before = sum(self._lost.values())

  @contextlib.contextmanager
  def losing(self, kind: str) -> Iterator[None]:
    """Counts the time inside of `with` as lost, once the run has started."""
    began = time.monotonic()
    try:
      yield
    finally:
      if self._started:
        self._lost[kind] += time.monotonic() - began

  def waits(self, batches: Iterable[T]) -> Iterator[T]:
    """Yields batches; counts as lost what the devices waited for them.

    A wait counts if nothing is left to compute at its end, and then in whole:
    it is not known when in between the devices came to their end.
    """
    iterator = iter(batches)
    while True:
      began = time.monotonic()
      try:
        batch = next(iterator)
      except StopIteration:
        return
      if self._started and not self._busy():
        self._lost['waiting'] += time.monotonic() - began
      yield batch

  def bits(self, nats: float) -> float | None:
    """Turns nats a token into bits a byte, if the loss is one of text."""
    bytes_per_token = self._run.data.bytes_per_token
    if bytes_per_token is None:
      return None
    return nats / math.log(2) / bytes_per_token

  def line(self, step: int, values: Mapping[str, float]) -> dict[str, float]:
    """Measures what a line says, and begins the next interval.

    Args:
      step: that the line is of.
      values: what the updates of the interval say, with `loss_nats`.
    """
    run, now, wall = self._run, time.monotonic(), time.time()
    passed = max(now - self._clock, 1e-9)
    rate = (step - self._step) * run.data.step_tokens / passed
    self._step, self._clock = step, now
    useful = self._count()
    seconds = max(wall - self._first, useful, 1e-9)
    bits = self.bits(values['loss_nats'])
    return {
      **({} if bits is None else {'bits_per_byte': bits}),
      'learning_rate': float(run.schedule(step - 1)),
      # Not step * tokens: batch size or length may have been changed.
      'tokens': run.data.state(step)['tokens'],
      'tokens_per_second': rate,
      'time': wall,
      'seconds': seconds,
      'goodput': useful / seconds,
      **{f'{kind}_seconds': x for kind, x in self._lost.items()},
      **_rates(run, step),
      **self._arithmetic(step, rate),
      **_memory(),
    }

  def _arithmetic(
    self, step: int, tokens_per_second: float
  ) -> dict[str, float]:
    if self._model_flops is None:
      return {}
    measured = {
      'flops': self._model_flops * self._run.data.state(step)['tokens'],
      'flops_per_second': self._model_flops * tokens_per_second,
    }
    if self._peak is not None:
      measured['mfu'] = flops.mfu(
        tokens_per_second, self._model_flops, self._peak
      )
    return measured


def _per_token(run: setup.Run) -> float | None:
  """Counts the FLOPs of training on a token; None if the model does not say.

  A backward pass counts as two forward passes, by custom; what is computed
  again does not count.
  """
  if run.model.flops is None:
    return None
  return 3 * run.model.flops(run.data.example.tokens.shape[-1])


def _peak(mesh: jax.sharding.Mesh) -> float | None:
  """Looks up the FLOP/s of all devices; None for a chip without a data sheet.

  CPUs have none.
  """
  with contextlib.suppress(ValueError):
    kind = mesh.devices.flat[0].device_kind
    return mesh.size * hardware.find(kind).flops
  return None


def _rates(run: setup.Run, step: int) -> dict[str, float]:
  """Lists the learning rates of groups of parameters that have their own.

  The rule of an optimizer names their highest: `adam_peak` of Muon is that of
  `learning_rate_adam`.
  """
  optim = run.config.optim
  return {
    f'learning_rate_{key.removesuffix("_peak")}': (
      float(run.schedule(step - 1)) / optim.peak * peak
    )
    for key, peak in optim.get('rule', {}).items()
    if key.endswith('_peak') and optim.get('peak')
  }


def _memory() -> dict[str, float]:
  """Measures the memory of this process, and of its fullest device."""
  found = [x.memory_stats() or {} for x in jax.local_devices()]
  measured: dict[str, float] = {}
  for key, name in (
    ('bytes_in_use', 'device_memory_bytes'),
    ('peak_bytes_in_use', 'device_memory_peak_bytes'),
  ):
    if all(key in stats for stats in found):
      measured[name] = max(stats[key] for stats in found)
  if (used := memory.used()) is not None:
    measured['host_memory_bytes'] = used
  return measured
