"""Sweeps: many training runs of one config, and one table of their results.

  python -m lm.sweep --config=configs/sweeps/tiny.py
  python -m lm.sweep --config=configs/gpt/tiny.py --seeds=3 \\
    --over=optim.peak=0.01,0.02,0.04 --workdir=runs/peak
  python -m lm.sweep --config=... --over=... --launch=slurm -- --gpus=8 \\
    --time=4:00:00

A config file may define `sweep()`, which returns points, as lm/sweeping/
points.py makes them; `--over` and `--seeds` give points too. Every point is
checked before the first run starts. Then each becomes a run of lm.train, with a
folder below WORKDIR/runs that is named by what the run changes.

The same command again skips runs that are done, and goes on with those that are
not; with more points, it adds their runs. A kill costs nothing but the steps
since the last checkpoints, and Ctrl-C not even those.

At the end there are table.csv, table.json, table.md, plot.png and page.html in
WORKDIR.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import sys
from typing import Any, NamedTuple

from lm import config
from lm.sweeping import request as request_lib

_HELP = __doc__ or '', config.exit_code_help('lm.sweep')
# Checked before the imports below take their seconds, as in lm.train.
_ASKED = (
  request_lib.parse(sys.argv[1:], *_HELP) if __name__ == '__main__' else None
)

import os
from pathlib import Path
import shlex

from lm import checkpoint, errors
from lm.runtime import signals
from lm.sweeping import (
  admission,
  halving,
  launch,
  live,
  points,
  results,
  schedule,
  tables,
  trials,
)
from lm.sweeping import folder as folder_lib

Show = Callable[[list[live.View]], None]
_SECONDS = 15.0  # for workers to end, beside the time that they have to save


class Failed(errors.Failure):
  """Some runs have failed; all others are done."""

  exit_code = 7


class Swept(NamedTuple):
  """Holds the results of a sweep.

  Attributes:
    rows: one for each run, see `sweep`.
    table: one for each point, the best first, see `lm.sweeping.results.table`.
  """

  rows: list[dict[str, Any]]
  table: list[dict[str, Any]]


def sweep(
  file: str,
  over: points.Sweep | Sequence[points.Point] | None = None,
  *,
  workdir: str | Path,
  overrides: Iterable[tuple[str, Any]] = (),
  data: str | None = None,
  jobs: int | None = None,
  show: Show | None = None,
) -> list[dict[str, Any]]:
  """Runs a sweep on this machine, or goes on with it.

  Args:
    file: of the config.
    over: the points; None: those of `sweep()` in the file.
    workdir: folder of the sweep, made when missing.
    overrides: changes of the config that all runs share, `('steps', 100)`.
    data: a folder of prepared data, see `config.load`.
    jobs: runs at a time; None: as many as cores and memory allow.
    show: is given the state of all runs, again and again; None prints it.

  Returns:
    A row for each run: its name, the swept keys, its state, the last step, its
    metrics, its folder and its error. `pandas.DataFrame` takes them.

  Raises:
    config.ConfigError: a point cannot be used; nothing was started.
    errors.Failure: the folder is locked, or cannot be used.
    signals.Stopped: SIGTERM or Ctrl-C came; the runs have saved.
  """
  over = request_lib.of_file(file) if over is None else over
  if over is None:
    raise config.ConfigError(f'{file}: defines no sweep(): give points')
  if not isinstance(over, points.Sweep):
    over = points.Sweep(list(over))
  asked = request_lib.Request(
    trials.load_base(file, overrides, data), over, Path(workdir), jobs=jobs
  )
  shown = live.Table()
  return run(asked, shown.draw if show is None else show, shown.say).rows


def run(
  asked: request_lib.Request, show: Show, say: Callable[[str], None]
) -> Swept:
  """Does what was asked for; see `sweep`.

  Args:
    asked: the sweep.
    show: see `sweep`.
    say: is given a line for people now and then.
  """
  over = asked.sweep
  chosen, notes = trials.make(asked.base, over.points)
  for note in notes:
    say(note)
  metric, higher = results.metric(asked.base.config)
  if over.metric is not None:
    metric, higher = over.metric, over.higher
  if over.halving is not None:
    halving.check(over.halving)
    for trial in chosen:
      halving.check_rungs(over.halving, trial.name, trial.config, metric)
  folder = folder_lib.Folder(asked.workdir)
  folder.check(asked.base, tables.swept(x.point for x in chosen))
  launcher = _launcher(asked, folder)
  if launcher is not None:
    launcher.check(chosen[0])
  if asked.dry_run:
    _dry_run(launcher, folder, chosen)
    return Swept([], [])
  with folder.locked():
    folder.check(asked.base, tables.swept(x.point for x in chosen))
    outcomes = folder.outcomes()
    runs = [
      schedule.Run(trial, folder, outcomes.get(trial.name)) for trial in chosen
    ]
    left = [run.trial for run in runs if not run.is_over]
    jobs = 1
    if left and launcher is None:
      with signals.Stop(_SECONDS) as stop:
        say(f'{len(left)} of {len(chosen)} runs are left: checking them')
        jobs = admission.check(left, asked.jobs, stop)
      say(f'{asked.workdir}: {min(jobs, len(left))} at a time')
    recorded = folder.store(asked.base, chosen, asked.words)
    try:
      if launcher is None:
        plan = schedule.Schedule(
          runs,
          folder,
          jobs,
          metric=metric,
          higher=higher,
          halving=over.halving,
        )
        _train(plan, folder, show)
      else:
        launcher.launch_all([x for x in left if _is_idle(folder, x)], say)
    finally:
      rows = tables.rows(asked.base, folder, runs, recorded)
      swept = tables.swept(recorded.values())
      table = tables.write(folder, rows, swept, metric, higher)
  _write_page(folder, rows, metric, say)
  names = {name for row in table for name in row}
  if rows and metric not in names:
    known = [x for x in names if x in results.TRAINING or '/' in x]
    say(f'no run has the metric {metric}{config.did_you_mean(metric, known)}')
  return Swept(rows, table)


def _write_page(
  folder: folder_lib.Folder,
  rows: Sequence[Mapping[str, Any]],
  metric: str,
  say: Callable[[str], None],
) -> None:
  try:
    tables.write_page(folder, rows, metric)
  except config.ConfigError as error:  # the tables are there all the same
    say(f'page.html is not written: {error}')


def _train(
  plan: schedule.Schedule, folder: folder_lib.Folder, show: Show
) -> None:
  """Runs a schedule until all runs are over.

  Raises:
    signals.Stopped: a signal came; the runs have saved.
  """
  grace = max(run.trial.config.grace_seconds for run in plan.runs)
  with signals.Stop(grace + _SECONDS) as stop:
    if not plan.run(stop, show):
      done = sum(run.is_over for run in plan.runs)
      raise signals.Stopped(
        f'{folder.path}: by a signal; {done} of {len(plan.runs)} runs are over,'
        ' the others have saved; the same command goes on from there'
      )


def _is_idle(folder: folder_lib.Folder, trial: trials.Trial) -> bool:
  """Tells whether a run is neither at its last step nor being trained.

  Runs that are elsewhere seem idle. To train one that is done costs a look.
  """
  steps = checkpoint.steps(folder.run(trial.name))
  is_done = bool(steps) and steps[-1] >= trial.config.steps
  return not is_done and checkpoint.holder(folder.run(trial.name)) is None


def _launcher(
  asked: request_lib.Request, folder: folder_lib.Folder
) -> launch.Launcher | None:
  """Makes the launcher that was asked for, if any."""
  if asked.launch is None:
    return None
  place = asked.runs or str((folder.path / 'runs').absolute())
  return launch.Launcher(asked.launch, asked.own, folder.path.name, place)


def _dry_run(
  launcher: launch.Launcher | None,
  folder: folder_lib.Folder,
  chosen: Sequence[trials.Trial],
) -> None:
  """Prints what would be run."""
  for trial in chosen:
    if launcher is not None:
      launcher.launch(trial, dry_run=True)
    else:
      words = [*trial.words, f'--workdir={folder.run(trial.name)}']
      print(shlex.join(['python', '-m', 'lm.train', *words]))


def _check_failed(rows: Sequence[Mapping[str, Any]]) -> None:
  """Checks that no run has failed.

  Raises:
    Failed: some have.
  """
  failed = [row for row in rows if row['state'] == 'failed']
  if failed:
    raise Failed(
      f'{len(failed)} of {len(rows)} runs failed, such as '
      f'{failed[0]["name"]}: {failed[0]["error"]}; the same command tries again'
    )


def main(argv: list[str]) -> None:
  """Runs the program; `config.main` turns errors into exit codes."""
  asked = _ASKED or request_lib.parse(argv, *_HELP)
  shown = live.Table()
  found = run(asked, shown.draw, shown.say)
  if found.rows:
    try:
      print(results.text(found.table), flush=True)
    except BrokenPipeError:  # nobody reads, and Python writes again at its end
      os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    shown.say(f'{asked.workdir}: table.csv, plot.png, page.html')
  _check_failed(found.rows)


if __name__ == '__main__':
  config.main(main)
