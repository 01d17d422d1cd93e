"""The metrics logger: sums metrics up, writes them down, shows progress."""

from collections.abc import Mapping
from types import TracebackType
from typing import Any

import jax

from lm import checkpoint, types
from lm import metrics as metrics_lib
from lm.reporting import metrics_log, progress, writers
from lm.training import diagnostics, dropped, run_meter, setup


class MetricsLogger:
  """Writes a run's metrics.jsonl and draws its progress bar; use it in `with`.

  Only the process that leads writes and draws. The others sum up all the same,
  so that all of them go back alike when updates are dropped.

  Attributes:
    dropped: counts of the updates that were dropped.
    meter: of time, arithmetic and memory.
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
    self.meter = run_meter.Meter(run, start, self._busy)
    leads, self._log = checkpointer.leads, None
    if leads:
      self._writers = writers.Writers(run.config, self._folder, start)
      self._log = metrics_log.Log(
        self._folder, start, checkpointer.check, self._writers.write
      )
      self.meter.resume(self._folder, self._log.newest, meta)
    self._bar = progress.Progress(
      run.config.steps,
      run.data.step_tokens,
      None if leads else progress.Unseen(),
    )
    self._sums = {
      name: types.Metric(*map(float.fromhex, parts))
      for name, parts in meta.get('metrics', {}).items()
    }
    self._pending: tuple[int, dict[str, types.Metric]] | None = None
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
      self._writers.close()
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

  def _busy(self) -> bool:
    """Says whether the devices still compute what `later` keeps."""
    kept = self._pending
    return kept is not None and not jax.tree.leaves(kept[1])[0].is_ready()

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
    return {
      'metrics': sums,
      'dropped': self.dropped.state(),
      'seconds': self.meter.state(),
    }

  def _add(self, step: int, metrics: dict[str, types.Metric]) -> None:
    if self.dropped.too_many_at:
      return  # the run goes back, and this update with it
    fetched = jax.device_get(metrics)
    self.meter.updated()
    norms = fetched.pop(diagnostics.NAME, None)
    norms = diagnostics.named(norms, self._run.program.like)
    if norms and self._log is not None:
      self._log.now(step, norms)
    for name, metric in fetched.items():
      sums = self._sums.get(name, types.Metric(0.0, 0.0))
      self._sums[name] = metrics_lib.merge(
        sums, types.Metric(*map(float, metric))
      )
    c = self._run.config
    self.dropped.add(step, bool(fetched['skipped'].total))
    nats = metrics_lib.value(fetched['loss_nats'])
    self._bar.update(step, nats, self.meter.bits(nats))
    if self._run.due(step, c.log_every):
      values = {k: metrics_lib.value(m) for k, m in self._sums.items()}
      self._sums = {}
      if self._log is not None:
        self._log.now(step, {**values, **self.meter.line(step, values)})
