"""Judging a run's checkpoints, in a process of its own.

  python -m lm.sweep --workdir=runs/a [--watch]

Evaluates every committed checkpoint exactly once and adds a line to
evals.jsonl: `{"step", "checkpoint": its content hash, "metrics": {name: n}}`.
Evaluators that judge item by item also leave items/, which tools.compare reads.
Killed and started again it goes on where it was. With `--watch` it waits for
new checkpoints until training has ended: the last step is there, or nobody has
trained in the folder for a minute.
"""

import argparse
from collections.abc import Iterator
import contextlib
import fcntl
from functools import partial
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
)
from lm.evals import items, results


def sweep(
  workdir: str | Path,
  *,
  watch: bool = False,
  poll_seconds: float = 1.0,
  patience_seconds: float = 60.0,
) -> list[dict[str, Any]]:
  """Evaluates what `evals.jsonl` does not have yet.

  A step is pinned while it is read, so that training cannot delete it; one
  that is deleted before that, or is damaged, costs one line and is left out.

  Args:
    workdir: of a run.
    watch: wait for more until training has ended.
    poll_seconds: between looks.
    patience_seconds: how long to wait for a trainer that is not running.

  Returns:
    All records, oldest step first.

  Raises:
    errors.Locked: another sweep is at work here.
    errors.Missing: there is no run, or it has no checkpoint.
  """
  place: Any = _Folder(Path(workdir))
  if remote.is_address(workdir):
    place, poll_seconds = remote.Reader(workdir), max(poll_seconds, 10.0)
  path = place.folder / 'evals.jsonl'
  evaluate = None
  refused: set[tuple[int, str]] = set()
  alone_since = time.monotonic()
  with place.alone():
    while True:
      # Both asked before looking for steps: a trainer saves first and then
      # leaves, and its last step must not be overlooked.
      finished = not watch or _finished(place)
      if place.trained():
        alone_since = time.monotonic()
      known = {(r['step'], r['checkpoint']) for r in log.read(path)} | refused
      for step in place.steps():
        digest = ''  # of a step that is gone already, or damaged
        try:
          digest = place.about(step)['checkpoint']
          if (step, digest) in known:
            continue
          with place.hold(step):
            evaluate = evaluate or _build(place.folder, step)
            params = checkpoint.restore_params(place.folder, step)
            found = evaluate(params)
        except (errors.Gone, errors.Damaged) as e:
          if (step, digest) not in refused:
            print(f'step {step}: left out: {e}', flush=True)
          refused.add((step, digest))
          continue
        # Items first: a step whose line is there has them.
        written = _write_items(place.folder, step, digest, found)
        metrics = {
          f'{name}/{key}': value
          for name, (_, part) in found.items()
          for key, value in results.metrics(part).items()
        }
        log.append(
          path, {'step': step, 'checkpoint': digest, 'metrics': metrics}
        )
        place.publish(*written)
        shown = '  '.join(f'{k} {v:.4g}' for k, v in _brief(metrics).items())
        print(f'step {step}  {shown}', flush=True)
      idle = time.monotonic() - alone_since
      if finished or idle > patience_seconds:
        break
      time.sleep(poll_seconds)
  records = sorted(log.read(path), key=lambda record: record['step'])
  if not records and refused:
    raise errors.Damaged(f'{workdir}: no sound checkpoint: see the lines above')
  if not records:
    raise errors.Missing(f'{workdir}: no checkpoint to judge: train first')
  return records


def table(records: list[dict[str, Any]]) -> str:
  """Lays records out, a checkpoint a row, without single categories."""
  rows = [
    {
      'step': r['step'],
      'checkpoint': r['checkpoint'][:12],
      **_brief(r['metrics']),
    }
    for r in records
  ]
  return log.table(rows, list(dict.fromkeys(k for row in rows for k in row)))


def _brief(metrics: dict[str, float]) -> dict[str, float]:
  """Leaves out what is of single categories."""
  return {name: x for name, x in metrics.items() if name.count('/') < 2}


def _build(workdir: Path, step: int):
  """Makes `params -> {name: (fn, what it found)}` of the config's evals."""
  c, tokenizer, model = saved.build(workdir, step)
  # Whatever devices this process has; the trainer's mesh is its own affair.
  mesh = sharding.make_mesh()
  parts = {
    name: config.build(spec, model=model, tokenizer=tokenizer, mesh=mesh)
    for name, spec in c.evals.items()
  }
  if not parts:
    raise config.ConfigError(f'{workdir}: its config has no evals: add one')

  def evaluate(params):
    where = sharding.shardings(
      params, mesh=mesh, axes=model.axes, rules=c.sharding
    )
    params = jax.device_put(params, where)
    return {
      name: (c.evals[name].fn, part(params)) for name, part in parts.items()
    }

  return evaluate


def _write_items(folder, step, digest, found) -> list[Path]:
  """Writes what evaluators found item by item, for tools.compare."""
  return [
    items.write(
      folder,
      {
        'evaluator': name,
        'step': step,
        'checkpoint': digest,
        'task': results.task(function, part),
        'code': results.code(),
      },
      part.items,
    )
    for name, (function, part) in found.items()
    if isinstance(part, results.Result)
  ]


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
    pass  # it lies where it belongs

  @contextlib.contextmanager
  def alone(self) -> Iterator[None]:
    """Lets one sweep at a time write to evals.jsonl."""
    manifest.root(self.folder)  # refuses an address
    if not self.folder.is_dir():
      raise errors.Missing(f'{self.folder}: no such folder: check --workdir')
    with (self.folder / 'evals.lock').open('a') as file:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        raise errors.Locked(
          f'{self.folder}: another sweep is at work here: wait for it'
        ) from None
      yield


def main(argv: list[str]) -> None:
  """Runs the program; `config.main` turns errors into exit codes."""
  parser = argparse.ArgumentParser(
    prog='python -m lm.sweep',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument('--workdir', required=True)
  parser.add_argument('--watch', action='store_true')
  args = parser.parse_args(argv)
  memory.prepare()
  # On a shared machine the trainer goes first.
  os.nice(10)
  if args.watch and not remote.is_address(args.workdir):
    _wait_for(Path(args.workdir))
  print(table(sweep(args.workdir, watch=args.watch)))


def _wait_for(workdir: Path, patience_seconds: float = 60.0) -> None:
  """Waits for a trainer that was started at the same time."""
  deadline = time.monotonic() + patience_seconds
  while not workdir.is_dir() and time.monotonic() < deadline:
    time.sleep(0.2)


if __name__ == '__main__':
  config.main(main)
