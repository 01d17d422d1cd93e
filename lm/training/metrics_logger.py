"""The metrics logger: sums metrics up, writes them down, shows progress."""

from collections.abc import Mapping
import io
import math
import time
from types import TracebackType
from typing import Any

import jax

from lm import checkpoint, types
from lm import metrics as metrics_lib
from lm.reporting import metrics_log, progress
from lm.training import dropped, setup


class MetricsLogger:
  """Writes a run's metrics.jsonl and draws its progress bar; use it in `with`.

  Only the process that leads writes and draws. The others sum up all the same,
  so that all of them go back alike when updates are dropped.

  Attributes:
    dropped: counts of the updates that were dropped.
  """

  def __init__(
    self,
    run: setup.Run,
    checkpointer: checkpoint.Checkpointer,
    meta: Mapping[str, Any],
    start: int,
  ):
    """Opens the log.

    Args:
      run: as assembled.
      checkpointer: of the run's folder; of the process that leads, it says
        whether this one may write any more.
      meta: of the checkpoint that the run goes on from; {} without one.
      start: the last step whose lines stay; later ones are dropped.
    """
    self._run, self._folder = run, checkpointer.workdir
    self.dropped = dropped.Dropped(run.config.max_skipped, meta)
    leads, self._log = checkpointer.leads, None
    if leads:
      self._log = metrics_log.Log(self._folder, start, checkpointer.check)
    self._tokens = run.data.step_tokens
    self._bar = progress.Progress(
      run.config.steps, self._tokens, None if leads else _Unseen()
    )
    self._sums = {
      name: types.Metric(*map(float.fromhex, parts))
      for name, parts in meta.get('metrics', {}).items()
    }
    self._pending: tuple[int, dict[str, types.Metric]] | None = None
    self._clock, self._since = time.monotonic(), start
    self.say = self._bar.say

  def __enter__(self) -> 'MetricsLogger':
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    """Writes what is left and ends the progress bar."""
    if self._log is not None:
      self._log.close()
    self._bar.close()

  def later(
    self, step: int, metrics: dict[str, types.Metric], *, now: bool = False
  ) -> None:
    """Keeps the metrics of the update that made `step`; adds those before it.

    The host waits for the update before this one alone, so that the device
    always has the next one to work on. `now` waits for this one too.
    """
    self.flush()
    self._pending = step, metrics
    if now:
      self.flush()

  def flush(self) -> None:
    """Adds what `later` keeps, and waits for it."""
    if self._pending is not None:
      step, metrics = self._pending
      self._pending = None
      self._add(step, metrics)

  def now(self, step: int, name: str, metrics: Mapping[str, float]) -> None:
    """Writes what the evaluator `name` measured at a step, and shows it."""
    if self._log is None:
      return
    self._log.now(step, {f'{name}/{k}': v for k, v in metrics.items()})
    shown = '  '.join(f'{k} {v:.4g}' for k, v in metrics.items())
    self.say(f'step {step}  {name}  {shown}')

  def evaluators(self, step: int) -> list[str]:
    """Lists the evaluators whose metrics at a step are written down."""
    lines = metrics_log.read(self._folder / 'metrics.jsonl')
    keys = [key for line in lines if line['step'] == step for key in line]
    return [key.partition('/')[0] for key in keys if '/' in key]

  def state(self) -> dict[str, Any]:
    """Returns what a checkpoint keeps of this, to be part of its meta.

    A run that is resumed goes on with the sums that are not written yet, so
    that no line shows where it was interrupted. They are in hexadecimal: exact,
    and JSON has no nan.
    """
    sums = {k: [m.total.hex(), m.weight.hex()] for k, m in self._sums.items()}
    return {'metrics': sums, 'dropped': self.dropped.state()}

  def _add(self, step: int, metrics: dict[str, types.Metric]) -> None:
    if self.dropped.too_many_at:
      return  # the run goes back, and this update with it
    fetched = jax.device_get(metrics)
    for name, metric in fetched.items():
      sums = self._sums.get(name, types.Metric(0.0, 0.0))
      self._sums[name] = metrics_lib.merge(
        sums, types.Metric(*map(float, metric))
      )
    c = self._run.config
    self.dropped.add(step, bool(fetched['skipped'].total))
    nats = metrics_lib.value(fetched['loss_nats'])
    self._bar.update(step, nats, self._bits(nats))
    if self._run.due(step, c.log_every):
      self._write(step)

  def _write(self, step: int) -> None:
    now = time.monotonic()
    seconds, steps = now - self._clock, step - self._since
    self._clock, self._since = now, step
    values = {k: metrics_lib.value(m) for k, m in self._sums.items()}
    self._sums = {}
    if self._log is None:
      return
    bits = self._bits(values['loss_nats'])
    self._log.now(
      step,
      {
        **values,
        **({} if bits is None else {'bits_per_byte': bits}),
        'learning_rate': float(self._run.schedule(step - 1)),
        # Not step * tokens: batch size or length may have been changed.
        'tokens': self._run.data.state(step)['tokens'],
        'tokens_per_second': steps * self._tokens / max(seconds, 1e-9),
      },
    )

  def _bits(self, nats: float) -> float | None:
    """Turns nats a token into bits a byte, if the loss is one of text."""
    bytes_per_token = self._run.data.bytes_per_token
    if bytes_per_token is None:
      return None
    return nats / math.log(2) / bytes_per_token


class _Unseen(io.StringIO):
  """Takes what a process that does not lead would print, and forgets it."""

  def write(self, text: str, /) -> int:
    return len(text)
