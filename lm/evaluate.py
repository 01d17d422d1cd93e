"""Evaluates the checkpoints of runs, in one process of its own or in several.

  python -m lm.evaluate --workdir=runs/a --data=data/embedded [--watch]
  python -m lm.evaluate --config=configs/evaluate/english.py:../shared/data \\
    --config.evaluate.workdirs='runs/base-*,runs/wide-*' --html=all.html

Every evaluator of a run's config, and of `--config`, evaluates every committed
checkpoint once and adds a line to evals.jsonl:

  {"step": 120, "checkpoint": its content hash, "evaluator": "valid",
   "task": ..., "code": ..., "contamination": "unknown",
   "metrics": {"valid/loss_nats": 1.5}}

and "card", if the evaluator describes its questions. `contamination` says which
questions were in the data of the run (lm.evals.contamination). Checkpoint,
evaluator, task and code are the key of a line: task is a hash of the
evaluator's settings and of the files that they name, code a hash of the program
behind it. Whatever is missing is done, so an evaluator may be added at any
time, and the program may be killed at any time. Processes that evaluate the
same runs share the work.
Evaluators that score single items also write items/, which tools.compare reads.
With `--watch` it waits for new checkpoints until training has ended: the last
step is there, or nobody has trained in the folder for a minute.

A config names runs and steps by `evaluate`, see configs/base.py. If one run
cannot be evaluated, the others still are, and the program ends with the exit
code of that run's error. Runs that are seeds of one recipe
(lm/evals/reports/recipes.py) are also summed up together.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
import contextlib
import os
from pathlib import Path
import subprocess
import sys
import time
from typing import Any

from lm import config
from lm.checkpoint import bucket
from lm.evals import contamination, evaluators, records, runs
from lm.evals.reports import html as report
from lm.evals.reports import recipes, table
from lm.reporting import html
from lm.runtime import code_state, compilation_cache, devices, memory


def evaluate(
  workdir: str | Path,
  *,
  evals: Mapping[str, Any] | None = None,
  data: str | Path | None = None,
  steps: runs.Steps = None,
  watch: bool = False,
  poll_seconds: float = 1.0,
  patience_seconds: float = 60.0,
) -> list[records.Record]:
  """Evaluates the checkpoints of a run that `evals.jsonl` does not have yet.

  A checkpoint is protected from deletion while it is read. One that was deleted
  before that, or is damaged, costs one line and is left out.

  Args:
    workdir: folder of the run.
    evals: specs of evaluators by name, in addition to those of the run's
      config; they win where both have a name.
    data: a folder of prepared data, which replaces the paths that the run's
      evaluators name, see `config.data_folder`; None leaves them.
    steps: which checkpoints: these, the newest ('last'), or all (None).
    watch: waits for more checkpoints until training has ended.
    poll_seconds: time between two looks at the folder.
    patience_seconds: how long to wait for a trainer that is not running.

  Returns:
    The metrics of each checkpoint that was ever evaluated, the earliest step
    first: `{'step': 120, 'checkpoint': '9f...', 'metrics': {...}}`.

  Raises:
    errors.Locked: the run is in a bucket, and is being evaluated already.
    errors.Missing: there is no run, or it has no checkpoint.
    errors.Damaged: it has no sound checkpoint.
    config.ConfigError: there is no evaluator, or one cannot be built.
  """
  run = runs.RunEvaluation(
    workdir, evaluators.EvaluatorCache(evals, data), steps
  )
  run.evaluate(
    watch=watch, poll_seconds=poll_seconds, patience_seconds=patience_seconds
  )
  return records.read(run.place.folder)


def evaluate_runs(
  workdirs: Iterable[str],
  *,
  evals: Mapping[str, Any] | None = None,
  data: str | Path | None = None,
  steps: runs.Steps = None,
  watch: bool = False,
) -> runs.Evaluated:
  """Evaluates every checkpoint of every run by every evaluator.

  Args:
    workdirs: folders of runs, or patterns such as 'runs/base-*'. A folder that
      a pattern matches and that has no checkpoint yet costs one line and is
      left out.
    evals: the same as in `evaluate`.
    data: the same as in `evaluate`.
    steps: the same as in `evaluate`.
    watch: the same as in `evaluate`.

  Returns:
    The runs with all their stored results, a note for all that was left out,
    and the errors of the runs that could not be evaluated.

  Raises:
    errors.Missing: there is nothing to evaluate.
    config.ConfigError: a pattern is of a bucket.
  """
  return runs.evaluate(
    workdirs, evaluators.EvaluatorCache(evals, data), steps=steps, watch=watch
  )


def main(argv: list[str]) -> None:
  """Runs the program; `config.main` turns errors into exit codes."""
  parser = argparse.ArgumentParser(
    prog='python -m lm.evaluate',
    description=__doc__,
    epilog=config.exit_code_help('lm.evaluate'),
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  add = parser.add_argument
  config.trust_flag(parser)
  add('--workdir', action='append', default=[], help='may be repeated')
  add('--config', help='a file with more `evals`; --config.KEY=VALUE')
  add('--data', help='a folder of prepared data, for the evals of the runs')
  add('--last', action='store_true', help='the newest step only')
  add('--watch', action='store_true', help='wait for more, of one workdir')
  add('--csv', type=Path, metavar='FILE', help='all metrics, a line each')
  add('--html', type=Path, metavar='FILE', help='a report with curves')
  add('--json', action='store_true', help='print all results for programs')
  args = parser.parse_args([x for x in argv if not x.startswith('--config.')])
  words = [x[9:].partition('=') for x in argv if x.startswith('--config.')]
  evals, named, steps = None, (), None
  if args.config:
    c = config.load(args.config, [(key, value) for key, _, value in words])
    evals, (named, steps) = c.evals, _settings(c)
  elif words:
    parser.error(f'--config.{words[0][0]}: --config is missing')
  workdirs = [*args.workdir, *named]
  if not workdirs:
    parser.error('--workdir: give one, or evaluate.workdirs of --config')
  if args.watch and len(runs.find(workdirs)) > 1:
    parser.error('--watch: of one --workdir')
  for flag, file in (('--csv', args.csv), ('--html', args.html)):
    # Checked now, and not after hours.
    if file is not None and not file.parent.is_dir():
      raise config.ConfigError(
        f'{flag}: {file.parent}: no such folder: make it'
      )
  memory.prepare()
  compilation_cache.prepare()
  # On a shared machine the trainer goes first.
  os.nice(10)
  devices.announce()
  if args.watch and not bucket.is_address(workdirs[0]):
    _wait_for(Path(workdirs[0]))
  # Progress, and the table, are no part of the results for programs.
  with contextlib.redirect_stdout(sys.stderr if args.json else sys.stdout):
    result = evaluate_runs(
      workdirs,
      evals=evals,
      data=args.data,
      steps='last' if args.last else steps,
      watch=args.watch,
    )
    if evaluated := [run for run in result.runs if run.evaluations]:
      _report(evaluated, result.notes, args.csv, args.html)
  if args.json:
    config.print_json(_to_json(result))
  if result.errors:
    raise result.errors[0]


def _settings(c: config.Config) -> tuple[tuple[str, ...], runs.Steps]:
  """Reads `c.evaluate`: workdirs and steps."""
  workdirs, steps = c.evaluate.workdirs, c.evaluate.steps
  if isinstance(steps, tuple | list):
    return tuple(workdirs), tuple(steps)
  return tuple(workdirs), (steps,) if isinstance(steps, int) else steps


def _report(
  evaluated: Sequence[recipes.Run],
  notes: Sequence[str],
  csv_file: Path | None,
  html_file: Path | None,
) -> None:
  """Prints the table, and writes the files that were asked for."""
  headlines = recipes.headlines(evaluated)
  for line in contamination.lines(evaluated):
    print(line, flush=True)
  print(table.table(table.rows(evaluated), headlines), flush=True)
  if csv_file is not None:
    table.write_csv(evaluated, csv_file)
  if html_file is not None:
    page = report.render(evaluated, notes=notes, commit=_commit())
    html.write(html_file, page)


def _to_json(result: runs.Evaluated) -> dict[str, Any]:
  """Describes all stored results for programs."""
  return {
    'runs': [
      {
        'workdir': run.name,
        'recipe': run.recipe,
        'seed': run.seed,
        'results': records.read(run.folder),
      }
      for run in result.runs
    ],
    'notes': result.notes,
    'errors': [str(error) for error in result.errors],
  }


def _commit() -> str:
  """Names the commit of this code, '' where it is no checkout."""
  folder = Path(__file__).parent.parent
  words = 'describe --always --dirty --exclude=* --abbrev=12'
  if (folder / '.git').exists():
    with contextlib.suppress(OSError, subprocess.SubprocessError):
      return code_state.git(folder, *words.split()).strip()
  return ''


def _wait_for(workdir: Path, patience_seconds: float = 60.0) -> None:
  """Waits for a trainer that was started at the same time."""
  deadline = time.monotonic() + patience_seconds
  while not workdir.is_dir() and time.monotonic() < deadline:
    time.sleep(0.2)


if __name__ == '__main__':
  config.main(main)
