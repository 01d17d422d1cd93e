"""Training: config -> mesh -> data -> model -> state -> loop.

  python -m lm.train --config=configs/gpt/tiny.py --workdir=runs/a

Fine-tuning is training with `init_from`, and `init_paths` where only a part of
a run is wanted or where it is to become the body of a head:

  --config.init_from=runs/mlm --config.init_paths==body
  --config.init_from=runs/glove --config.init_paths=embed/table

Resuming is starting the same command again. A run's folder:

  config.json     the whole config, defaults of functions included
  checkpoints/    one folder a step, see lm.checkpoint
  metrics.jsonl   training metrics, one line every `log_every` steps
  evals.jsonl     what lm.evaluate found

Several processes train one run when each is started with the same command, a
folder that all of them see, and LM_DISTRIBUTED, see lm.runtime.processes.
"""

import sys

from lm import config

# Checked here, before the imports below take their seconds: a typo is answered
# at once, and before any device is opened.
_ARGS = (
  config.parse(sys.argv[1:], __doc__ or '') if __name__ == '__main__' else None
)

from collections.abc import Callable, Generator, Iterable
import contextlib
import io
import math
import os
from pathlib import Path
import time
from typing import Any

import jax

from lm import checkpoint, errors, optim, sharding, tree, types
from lm import metrics as metrics_lib
from lm.checkpoint import bucket, bucket_reader, mirror
from lm.data import stream
from lm.evals import context as context_lib
from lm.evals import results
from lm.reporting import metrics_log, progress
from lm.runtime import devices, memory, process_group, processes, signals
from lm.training import early_stopping, privacy, step


class NotFinite(errors.Failure):
  """Too many updates in a row had no finite gradient."""

  exit_code = 6


def train(
  c: config.Config,
  workdir: str | Path,
  group: process_group.ProcessGroup | None = None,
) -> types.TrainState:
  """Trains, or goes on training, until `c.steps` updates are saved.

  With `c.early.metric` the run ends earlier, and with its best checkpoint.

  Args:
    c: as `configs/base.py`.
    workdir: made when missing; a run found there is resumed. gs://BUCKET/FOLDER
      is kept as in `mirror.Mirror`.
    group: the processes that train it together, each by this call; None for
      this one alone.

  Returns:
    The final state, which is also the last checkpoint.

  Raises:
    config.ConfigError: the config cannot be used, or is not that of the run in
      `workdir`.
    errors.Failure: workdir is locked, storage or checkpoints are bad.
    NotFinite: see `max_skipped`.
    process_group.Lost: another process has failed.
    stop.Stopped: SIGTERM or Ctrl-C came, to any process; the state is saved.
  """
  group = group or process_group.alone()
  c = config.fill(c, given={'data': ('position',)})
  if c.fit is not None:
    raise config.ConfigError(
      f'fit: {c.fit.fn} counts and has no gradients: use lm.fit'
    )
  if c.init_paths and c.init_from is None:
    raise config.ConfigError(
      f'init_paths: {c.init_paths} without init_from: say of which run'
    )
  early_stopping.check(c)
  if not bucket.is_address(workdir):
    return _train(c, Path(workdir), group, lambda: None)
  if group.count > 1:
    raise config.ConfigError(
      f'{workdir}: {group.count} processes need a folder that all of them see: '
      'mount the bucket (gcsfuse) and give its path'
    )
  if c.early.metric is not None:
    raise config.ConfigError(
      f'early.metric: {workdir} keeps the newest steps alone, not the best: '
      'mount the bucket (gcsfuse) and give its path'
    )
  with mirror.Mirror(
    workdir, keep=c.keep, keep_every=c.keep_every or None
  ) as copy:
    return _train(c, copy.folder, group, copy.check)


def _train(
  c: config.Config,
  workdir: Path,
  group: process_group.ProcessGroup,
  check: Callable[[], None],
) -> types.TrainState:
  """Trains in a folder; `check` raises what went wrong with its copy."""
  init_from = None
  if c.init_from is not None and not checkpoint.steps(workdir):
    init_from = bucket_reader.local_folder(c.init_from)
    checkpoint.read_meta(init_from)  # a typo is an error, not a fresh start
  with (
    signals.Stop() as stop,
    checkpoint.Checkpointer(
      workdir, keep=c.keep, keep_every=c.keep_every or None, group=group
    ) as saver,
    contextlib.ExitStack() as closing,
  ):
    meta = saver.meta()
    if meta is not None:
      _same_run(meta, c, workdir)
    _same_everywhere(c, group)
    if group.leads:
      config.store(c, workdir / 'config.json')
    with config.refusals():
      mesh = sharding.make_mesh(**c.mesh)
    tokenizer = config.build(c.tokenizer)
    model = config.build(c.model, vocab=tokenizer.size)
    optimizer = optim.holding(c.optim, model.fixed)
    tx, lr = config.build(optimizer, steps=c.steps)
    data = config.build(
      c.data,
      tokenizer=tokenizer,
      seed=c.seed,
      batch_size=c.batch_size,
      position=meta and meta['data'],
    )
    evals = {
      name: config.build(
        spec, context=context_lib.Context(model, tokenizer, mesh)
      )
      for name, spec in (c.evals.items() if c.eval_every else ())
    }
    private = None if c.privacy is None else config.build(c.privacy)
    with config.refusals():
      run = step.program(  # shapes only, nothing is allocated
        model=model,
        tx=tx,
        example=data.example,
        mesh=mesh,
        rules=c.sharding,
        seed=c.seed,
        loss=config.build(c.loss),
        microbatches=c.microbatches,
        numerics=c.numerics,
        logical_shards=c.logical_shards,
        private=private,
        expected=data.drawn and data.drawn[1],
        freeze=c.optim.get('freeze', ''),
      )
      for example in data.examples:  # each has to fit the mesh
        sharding.shapes(example, mesh)
    taken = {}
    if init_from is not None and meta is None:
      taken = checkpoint.initial_params(
        init_from, c.init_paths, run.like.params, tokenizer
      )
    judged = early_stopping.history(c, workdir)
    ended = early_stopping.end(c, judged, checkpoint.steps(workdir))
    judged, ended = group.share('early', (judged, ended), 300.0)
    if ended is not None:
      saver.end_at(ended)
    saver.preflight(run.like)
    with step.compiling(run):
      restored = saver.restore(run.like, run.where)
      if restored is not None:
        state = restored[0]
      else:
        state = step.start(run)
        params = tree.map_paths(
          lambda path, fresh, place: (
            jax.device_put(taken.pop(path), place) if path in taken else fresh
          ),
          state.params,
          run.where.params,
        )
        state = state._replace(params=params)

    start = int(state.step)
    # What led to the end of a run that is over is kept.
    told = start if ended is None else judged[-1][0]
    judged = [(n, x) for n, x in judged if n <= told]
    saver.best = early_stopping.verdict(c, judged).best
    diary = _Diary(
      c, workdir, told, data, lr, meta and meta['diary'], group.leads
    )
    closing.callback(diary.close)
    diary.say(
      f'{workdir}: step {start} of {c.steps}, {tree.count(run.like.params):,} '
      f'parameters, mesh {dict(mesh.shape)}'
    )
    before = None

    def save(done: int) -> None:
      nonlocal before
      # Before its checkpoint, or a kill between the two would leave a hole in
      # metrics.jsonl.
      diary.note(done, before)
      before = None
      if private is not None:
        diary.now(done, 'privacy', _spent(private, done, data, c.batch_size))
      meta = {
        'config': config.to_json(c),
        'data': data.state(done),
        'diary': diary.state(),
        'tokenizer': tokenizer.sha256,
      }
      saver.save(done, state, meta)

    def judge(done: int, known: Iterable[str] = ()) -> early_stopping.Verdict:
      for name, evaluate in evals.items():
        if name not in known:
          # Others would wait for a part of theirs that one has left.
          alone = group.count == 1
          with stop.interrupting() if alone else contextlib.nullcontext():
            found = results.metrics(evaluate(state.params))
          diary.now(done, name, found)
          judged.extend(early_stopping.pick(c, done, name, found))
      verdict = early_stopping.verdict(c, judged)
      saver.best = verdict.best
      return verdict

    def due(done: int) -> bool:
      return bool(evals) and (done == c.steps or done % c.eval_every == 0)

    until = c.steps if ended is None else start
    if start and ended is None and due(start):
      # It was ended after this checkpoint and before all evaluators were done.
      known = group.share('known', diary.known(start), 300.0)
      try:
        over = judge(start, known).over
      except signals.Interrupted:
        over = True
      until = start if over else until
    with config.refusals():
      host, hosts = sharding.host(mesh, c.batch_size)
    batches = stream.stream(
      data,
      start,
      until,
      threads=c.threads,
      prefetch=c.prefetch,
      host=host,
      hosts=hosts,
    )
    placed = closing.enter_context(
      contextlib.closing(_place(batches, mesh, host, hosts))
    )
    for n, batch in placed:
      with jax.set_mesh(mesh):
        state, metrics = run.update(state, batch)
      check()
      group.check()  # one that stood still may not even write to its diary
      # The host reads the step before, so that the device never waits for it.
      diary.note(n, before)
      before = metrics
      done = n + 1
      stopping = group.stop(stop.requested)
      last = stopping or done == c.steps
      saves = last or done % c.save_every == 0
      if saves:
        save(done)
      if due(done) and not stopping:  # what resumes it does that, if it stops
        try:
          verdict = judge(done)
        except signals.Interrupted:
          if not saves:
            save(done)
          break
        if not saves and (verdict.best == done or verdict.over):
          save(done)
        last |= verdict.over
      if last:
        break
    saver.wait()
    if group.stop(stop.requested):
      raise signals.Stopped(
        f'{workdir}: stopped by a signal at step {int(state.step)}, which is '
        'saved; the same command goes on from there'
      )
    best = early_stopping.end(c, judged, checkpoint.steps(workdir))
    best = group.share('best', best, 300.0)
    if best is not None:
      diary.say(f'{workdir}: ends with step {best}, best by {c.early.metric}')
      if best != int(state.step):
        saver.end_at(best)
        restored = saver.restore(run.like, run.where)
        assert restored is not None
        state = restored[0]
    if group.leads:
      checkpoint.verify(workdir, int(state.step))
  return state


def _spent(
  private: privacy.Privacy, step: int, data: stream.Data, rows: int
) -> dict[str, float]:
  assert data.drawn is not None
  records, expected = data.drawn
  spent = privacy.epsilon(
    private, step, records=records, expected=expected, rows=rows
  )
  return {'epsilon': spent, 'delta': private.delta}


class _Diary:
  """Sums metrics up, writes them down and draws the progress bar.

  Only the process that leads writes and draws; all of them sum up, to end
  alike.
  """

  def __init__(self, c, workdir, start, data, lr, saved, leads):
    self._c, self._lr, self._data = c, lr, data
    self._workdir = workdir
    self._log = metrics_log.Log(workdir, start) if leads else None
    self._tokens = data.step_tokens
    self._bytes_per_token = data.bytes_per_token
    self._bar = progress.Progress(
      c.steps, self._tokens, None if leads else _Unseen()
    )
    self._sums = {
      name: types.Metric(*map(float.fromhex, parts))
      for name, parts in (saved or {}).items()
    }
    self._skipped_in_row = 0
    self._clock, self._since = time.monotonic(), start
    self.say = self._bar.say

  def note(self, step: int, metrics: dict[str, types.Metric] | None) -> None:
    """Adds the metrics of the update that made `step`; waits for it."""
    if metrics is None:
      return
    found = jax.device_get(metrics)
    for name, metric in found.items():
      known = self._sums.get(name, types.Metric(0.0, 0.0))
      self._sums[name] = metrics_lib.merge(
        known, types.Metric(*map(float, metric))
      )
    skipped = bool(found['skipped'].total)
    self._skipped_in_row = self._skipped_in_row + 1 if skipped else 0
    nats = metrics_lib.value(found['loss_nats'])
    self._bar.update(step, nats, self._bits(nats))
    if step % self._c.log_every == 0 or step == self._c.steps:
      self._write(step)
    if self._skipped_in_row > self._c.max_skipped:
      raise NotFinite(
        f'step {step}: {self._skipped_in_row} updates in a row were not finite '
        'and none was applied; lower optim.peak or look at the data'
      )

  def state(self) -> dict[str, list[str]]:
    """Gives what is summed up but not yet written, for `saved`.

    So that a line does not tell where the run was interrupted. In hexadecimal:
    exact, and JSON has no nan.
    """
    return {k: [m.total.hex(), m.weight.hex()] for k, m in self._sums.items()}

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
        'learning_rate': float(self._lr(step - 1)),
        # Not step * tokens: batch size or length may have been changed.
        'tokens': self._data.state(step)['tokens'],
        'tokens_per_second': steps * self._tokens / max(seconds, 1e-9),
      },
    )

  def _bits(self, nats: float) -> float | None:
    """Turns nats a token into bits a byte, where a loss is the text's."""
    if self._bytes_per_token is None:
      return None
    return nats / math.log(2) / self._bytes_per_token

  def known(self, step: int) -> list[str]:
    """Lists the evaluators whose finding at a step is written down."""
    lines = metrics_log.read(self._workdir / 'metrics.jsonl')
    at = [key for line in lines if line['step'] == step for key in line]
    return [key.partition('/')[0] for key in at if '/' in key]

  def now(self, step: int, name: str, values: dict[str, float]) -> None:
    """Writes what an evaluator found."""
    if self._log is None:
      return
    self._log.now(step, {f'{name}/{k}': v for k, v in values.items()})
    shown = '  '.join(f'{k} {v:.4g}' for k, v in values.items())
    self.say(f'step {step}  {name}  {shown}')

  def close(self) -> None:
    if self._log is not None:
      self._log.close()
    self._bar.close()


class _Unseen(io.StringIO):
  """Takes what a process that does not lead would print."""

  def write(self, text: str, /) -> int:
    return len(text)


def _place(
  batches: Iterable[tuple[int, types.Batch]],
  mesh: jax.sharding.Mesh,
  host: int,
  hosts: int,
) -> Generator[tuple[int, types.Batch], None, None]:
  with config.refusals():
    for n, batch in batches:
      yield n, sharding.put(batch, mesh, host, hosts)


def _same_everywhere(
  c: config.Config, group: process_group.ProcessGroup
) -> None:
  if jax.process_count() != group.count:
    raise config.ConfigError(
      f'jax runs {jax.process_count()} processes: set {processes.VARIABLE} for'
      ' each of them, or give train() their group'
    )
  lead = config.from_json(group.share('config', config.to_json(c), 300.0))
  if lines := config.diff(lead, c):
    raise config.ConfigError(
      f'{group.name(group.index)} has another config than process 0:'
      f' {"; ".join(lines)}: start all with the same'
    )


def _same_run(meta: dict[str, Any], c: config.Config, workdir: Path) -> None:
  checkpoint.check_same_config(
    meta, c, workdir, allow=checkpoint.CHANGEABLE_KEYS
  )
  if meta['data']['step'] > c.steps:
    raise config.ConfigError(
      f'steps: {c.steps}, but {workdir} is at step {meta["data"]["step"]}'
      ' already; give more or use another --workdir'
    )


def main(argv: list[str]) -> None:
  """Runs the program; `config.main` turns errors into exit codes."""
  c, workdir = _ARGS or config.parse(argv, __doc__ or '')
  memory.prepare()
  try:
    with processes.start() as group:
      if group.leads:
        devices.announce()
      train(c, workdir, group)
  except stream.Stalled as error:
    # Python would wait at exit for the thread that hangs in the file system.
    print(f'error: {error}', file=sys.stderr, flush=True)
    os._exit(error.exit_code)


if __name__ == '__main__':
  config.main(main)
