"""Judging runs' checkpoints, in a process of its own, or in several.

  python -m lm.sweep --workdir=runs/a [--watch]
  python -m lm.sweep --workdir=runs/a --workdir=runs/b --csv=all.csv \\
    --config=configs/sweep/english.py

Every evaluator of a run's config, and of `--config`, judges every committed
checkpoint once and adds a line to evals.jsonl:

  {"step": 120, "checkpoint": its content hash, "evaluator": "valid",
   "task": ..., "code": ..., "metrics": {"valid/loss_nats": 1.5}}

A line is known by checkpoint, evaluator, task (its settings, and the bytes of
the files that they name) and code (of what judges): what is missing is done,
whenever an evaluator was added, and whatever was killed. Processes that judge
one run share the work. Evaluators that judge item by item also leave items/,
which tools.compare reads. With `--watch` it waits for new checkpoints until
training has ended: the last step is there, or nobody has trained in the folder
for a minute.
"""

import argparse
from collections.abc import Iterator, Mapping
import contextlib
import csv
import fcntl
from functools import partial
import hashlib
import os
from pathlib import Path
import time
from typing import Any

import jax

from lm import (
  checkpoint,
  config,
  errors,
  log,
  manifest,
  memory,
  remote,
  saved,
  sharding,
  types,
)
from lm.evals import items, results

# Of a line: checkpoint, evaluator, task and code.
Cell = tuple[str, str, str, str]


def sweep(
  workdir: str | Path,
  *,
  evals: Mapping[str, Any] | None = None,
  last: bool = False,
  watch: bool = False,
  poll_seconds: float = 1.0,
  patience_seconds: float = 60.0,
) -> list[dict[str, Any]]:
  """Judges what `evals.jsonl` does not have yet.

  A step is pinned while it is read, so that training cannot delete it; one
  that is deleted before that, or is damaged, costs one line and is left out.

  Args:
    workdir: of a run.
    evals: specs of evaluators by name, beside those of the run's config; they
      win where both have a name.
    last: judges the newest step only.
    watch: wait for more until training has ended.
    poll_seconds: between looks.
    patience_seconds: how long to wait for a trainer that is not running.

  Returns:
    All records, see `records`.

  Raises:
    errors.Locked: another sweep is at work here, and it is in a bucket.
    errors.Missing: there is no run, or it has no checkpoint.
    config.ConfigError: there is no evaluator, or one cannot be built.
  """
  place: Any = _Folder(Path(workdir))
  if remote.is_address(workdir):
    place, poll_seconds = remote.Reader(workdir), max(poll_seconds, 10.0)
  path = place.folder / 'evals.jsonl'
  judge: _Judge | None = None
  refused: set[tuple[int, str]] = set()
  alone_since = time.monotonic()
  with place.alone():
    while True:
      # Both asked before looking for steps: a trainer saves first and then
      # leaves, and its last step must not be overlooked.
      finished = not watch or _finished(place)
      if place.trained():
        alone_since = time.monotonic()
      known, busy = _known(path), False
      for step in place.steps()[-1 if last else 0 :]:
        digest = ''  # of a step that is gone already, or damaged
        try:
          about = place.about(step)
          digest = about['checkpoint']
          if (step, digest) in refused:
            continue
          judge = judge or _Judge(place.folder, about, evals)
          with contextlib.ExitStack() as held:
            params = None
            for name, task in judge.tasks.items():
              cell = digest, name, task, results.code()
              if cell in known:
                continue
              with place.claim(cell) as mine:
                if not mine or cell in _known(path):
                  busy |= not mine
                  continue
                if params is None:
                  held.enter_context(place.hold(step))
                  params = judge.load(place.folder, step)
                _write(place, step, cell, judge.evaluate(name, params))
        except (errors.Gone, errors.Damaged) as e:
          if (step, digest) not in refused:
            print(f'step {step}: left out: {e}', flush=True)
          refused.add((step, digest))
      idle = time.monotonic() - alone_since
      if not busy and (finished or idle > patience_seconds):
        break
      time.sleep(poll_seconds)
    found = records(place.folder)
  if not found and refused:
    raise errors.Damaged(f'{workdir}: no sound checkpoint: see the lines above')
  if not found:
    raise errors.Missing(f'{workdir}: no checkpoint to judge: train first')
  return found


def records(workdir: str | Path) -> list[dict[str, Any]]:
  """Reads evals.jsonl: `{'step', 'checkpoint', 'metrics'}`, oldest step first.

  The lines of a checkpoint are one record; of two lines of one evaluator, as
  another version of its code leaves them, the later one counts.
  """
  found: dict[tuple[int, str], dict[str, Any]] = {}
  for line in log.read(Path(workdir) / 'evals.jsonl'):
    found.setdefault((line['step'], line['checkpoint']), {}).update(
      line['metrics']
    )
  return [
    {'step': step, 'checkpoint': digest, 'metrics': metrics}
    for (step, digest), metrics in sorted(found.items(), key=lambda x: x[0][0])
  ]


def table(records: list[dict[str, Any]]) -> str:
  """Lays records out, a checkpoint a row, without single categories."""
  rows = [
    {
      **{key: value for key, value in record.items() if key != 'metrics'},
      'checkpoint': record['checkpoint'][:12],
      **_brief(record['metrics']),
    }
    for record in records
  ]
  return log.table(rows, list(dict.fromkeys(k for row in rows for k in row)))


def _brief(metrics: dict[str, float]) -> dict[str, float]:
  """Leaves out what is of single categories."""
  return {name: x for name, x in metrics.items() if name.count('/') < 2}


class _Judge:
  """The evaluators of a run, built when the first is needed.

  Attributes:
    tasks: the hash of each one's task, by name.
  """

  def __init__(self, workdir: Path, about, evals):
    c = config.from_json(about['meta']['config'])
    more = config.fill({'evals': dict(evals or {})}).evals
    self._specs = config.plain({**c.evals, **more})
    if not self._specs:
      raise config.ConfigError(f'{workdir}: its config has no evals: add one')
    self.tasks = {
      name: results.task(spec) for name, spec in self._specs.items()
    }
    self._saved: saved.Saved | None = None
    self._built: dict[str, Any] = {}

  def load(self, folder: Path, step: int) -> types.Params:
    """Reads a step's parameters, onto whatever devices this process has."""
    self._saved = self._saved or saved.build(folder, step)
    where = sharding.shardings(
      params := checkpoint.restore_params(folder, step),
      mesh=sharding.make_mesh(),
      axes=self._saved.model.axes,
      rules=self._saved.config.sharding,
    )
    return jax.device_put(params, where)

  def evaluate(self, name: str, params: types.Params) -> Any:
    """Judges a step's parameters by one evaluator."""
    assert self._saved is not None, 'nothing is loaded'
    if name not in self._built:
      self._built[name] = config.build(
        self._specs[name],
        model=self._saved.model,
        tokenizer=self._saved.tokenizer,
        mesh=sharding.make_mesh(),
      )
    return self._built[name](params)


def _known(path: Path) -> set[Cell]:
  # Lines of an older form have no task: they are not known.
  return {
    (line['checkpoint'], line['evaluator'], line['task'], line['code'])
    for line in log.read(path)
    if 'task' in line
  }


def _write(place: Any, step: int, cell: Cell, found: Any) -> None:
  """Writes what an evaluator found down, and tells it."""
  about = {
    'step': step,
    **dict(zip(('checkpoint', 'evaluator', 'task', 'code'), cell, strict=True)),
  }
  written = []
  if isinstance(found, results.Result):
    # Items first: a checkpoint whose line is there has them.
    written.append(items.write(place.folder, about, found.items))
  name = about['evaluator']
  metrics = {f'{name}/{k}': v for k, v in results.metrics(found).items()}
  log.append(place.folder / 'evals.jsonl', {**about, 'metrics': metrics})
  place.publish(*written)
  shown = '  '.join(f'{k} {v:.4g}' for k, v in _brief(metrics).items())
  print(f'step {step}  {shown}', flush=True)


def _finished(place: Any) -> bool:
  steps = place.steps()
  if not steps:
    return False
  try:
    meta = place.about(steps[-1])['meta']
  except (errors.Gone, errors.Damaged):
    return False  # a trainer will replace it, or our patience ends
  return steps[-1] >= config.from_json(meta['config']).steps


class _Folder:
  """A work directory of this machine, as `remote.Reader` is one in a bucket."""

  def __init__(self, folder: Path):
    self.folder = folder
    self.steps = partial(checkpoint.steps, folder)
    self.about = partial(manifest.read, folder)
    self.hold = partial(checkpoint.pin, folder)

  def trained(self) -> bool:
    return checkpoint.holder(self.folder) is not None

  def publish(self, *files: Path) -> None:
    pass  # they lie where they belong

  @contextlib.contextmanager
  def alone(self) -> Iterator[None]:
    """Opens the folder; others may be at work here: see `claim`."""
    manifest.root(self.folder)  # refuses an address
    if not self.folder.is_dir():
      raise errors.Missing(f'{self.folder}: no such folder: check --workdir')
    with (self.folder / 'evals.lock').open('a') as self._lock:
      yield

  @contextlib.contextmanager
  def claim(self, cell: Cell) -> Iterator[bool]:
    """Keeps other processes from a cell; yields whether it is ours.

    A lock on one byte of a file, which the kernel gives back when we die.
    """
    digest = hashlib.sha256('/'.join(cell).encode()).digest()
    byte = int.from_bytes(digest[:4])
    try:
      fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
    except (BlockingIOError, PermissionError):
      yield False
      return
    try:
      yield True
    finally:
      fcntl.lockf(self._lock, fcntl.LOCK_UN, 1, byte)


def main(argv: list[str]) -> None:
  """Runs the program; `config.main` turns errors into exit codes."""
  parser = argparse.ArgumentParser(
    prog='python -m lm.sweep',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  add = parser.add_argument
  add('--workdir', required=True, action='append', help='may be repeated')
  add('--config', help='a file whose `evals` judge too')
  add('--last', action='store_true', help='the newest step only')
  add('--watch', action='store_true', help='wait for more, of one workdir')
  add(
    '--csv', type=Path, metavar='FILE', help='all metrics, also of categories'
  )
  args = parser.parse_args(argv)
  if args.watch and len(args.workdir) > 1:
    parser.error('--watch: of one --workdir')
  evals = config.load(args.config).evals if args.config else None
  memory.prepare()
  # On a shared machine the trainer goes first.
  os.nice(10)
  found = []
  for workdir in args.workdir:
    if args.watch and not remote.is_address(workdir):
      _wait_for(Path(workdir))
    run = {'run': workdir} if len(args.workdir) > 1 else {}
    found += [
      {**run, **record}
      for record in sweep(
        workdir, evals=evals, last=args.last, watch=args.watch
      )
    ]
  if args.csv is not None:
    _store(found, args.csv)
  print(table(found))


def _store(found: list[dict[str, Any]], path: Path) -> None:
  rows = [
    {**{k: v for k, v in r.items() if k != 'metrics'}, **r['metrics']}
    for r in found
  ]
  try:
    with path.open('w', newline='') as file:
      writer = csv.DictWriter(file, dict.fromkeys(k for r in rows for k in r))
      writer.writeheader()
      writer.writerows(rows)
  except OSError as error:
    raise errors.Storage(
      f'--csv: {errors.refusal(error)}: give another file'
    ) from error


def _wait_for(workdir: Path, patience_seconds: float = 60.0) -> None:
  """Waits for a trainer that was started at the same time."""
  deadline = time.monotonic() + patience_seconds
  while not workdir.is_dir() and time.monotonic() < deadline:
    time.sleep(0.2)


if __name__ == '__main__':
  config.main(main)
