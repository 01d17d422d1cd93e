"""Judging runs' checkpoints, in a process of its own, or in several.

  python -m lm.evaluate --workdir=runs/a [--watch]
  python -m lm.evaluate --config=configs/evaluate/english.py:../shared/data \\
    --config.evaluate.workdirs='runs/base-*,runs/wide-*' --html=all.html

Every evaluator of a run's config, and of `--config`, judges every committed
checkpoint once and adds a line to evals.jsonl:

  {"step": 120, "checkpoint": its content hash, "evaluator": "valid",
   "task": ..., "code": ..., "metrics": {"valid/loss_nats": 1.5}}

and "card", if the evaluator says what it asks. A line is known by checkpoint,
evaluator, task (its settings, and the bytes of the files that they name) and
code (of what judges): what is missing is done, whenever an evaluator was added,
and whatever was killed. Processes that judge the same runs share the work.
Evaluators that judge item by item also leave items/, which tools.compare reads.
With `--watch` it waits for new checkpoints until training has ended: the last
step is there, or nobody has trained in the folder for a minute.

A config names runs and steps by `evaluate`, see configs/base.py. A run that cannot
be judged does not keep the others from it: the program ends with its exit code.
Runs that are seeds of one recipe (lm/evals/reports/recipes.py) are also told together.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
import csv
import fcntl
from functools import partial
import glob
import hashlib
import json
import os
from pathlib import Path
import re
import subprocess
import textwrap
import time
from types import MappingProxyType
from typing import Any, Literal, TypeVar

import jax

from lm import checkpoint, config, errors, sharding, types
from lm.checkpoint import bucket, bucket_reader, manifest
from lm.evals import context as context_lib
from lm.evals import items, results
from lm.evals.reports import html, recipes
from lm.reporting import metrics_log
from lm.runtime import devices, memory

# Of a line: checkpoint, evaluator, task and code.
Cell = tuple[str, str, str, str]
# Which checkpoints of a run: these, the newest ('last'), or all (None).
Steps = Sequence[int] | Literal['last'] | None
T = TypeVar('T')
_COLUMNS = 100  # of a terminal


def evaluate(
  workdir: str | Path,
  *,
  evals: Mapping[str, Any] | None = None,
  steps: Steps = None,
  watch: bool = False,
  poll_seconds: float = 1.0,
  patience_seconds: float = 60.0,
) -> list[dict[str, Any]]:
  """Judges what `evals.jsonl` does not have yet.

  A step is locked while it is read, so that training cannot delete it; one
  that is deleted before that, or is damaged, costs one line and is left out.

  Args:
    workdir: of a run.
    evals: specs of evaluators by name, beside those of the run's config; they
      win where both have a name.
    steps: which checkpoints.
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
  run = _Run(workdir, _Judges(evals), steps)
  run.judge(
    watch=watch, poll_seconds=poll_seconds, patience_seconds=patience_seconds
  )
  return records(run.place.folder)


def evaluate_runs(
  workdirs: Iterable[str],
  *,
  evals: Mapping[str, Any] | None = None,
  steps: Steps = None,
  watch: bool = False,
) -> tuple[list[recipes.Run], list[str], list[Exception]]:
  """Judges every checkpoint of every run by every evaluator, as `evaluate`.

  Args:
    workdirs: of runs, or patterns such as 'runs/base-*'. What a pattern matches
      and has no checkpoint yet costs one line and is left out.
    evals, steps, watch: as of `evaluate`.

  Returns:
    The runs, with all that is known of them; a line for all that was left out;
    and the errors of runs that could not be judged.

  Raises:
    errors.Missing: there is nothing to judge.
    config.ConfigError: a pattern is of a bucket.
  """
  named, judges = _find(workdirs), _Judges(evals)
  runs = [_Run(name, judges, steps, tell=len(named) > 1) for name in named]
  notes: list[str] = []
  for run in [run for run in runs if not named[run.name]]:
    if not run.place.steps() and not run.path.exists():
      runs.remove(run)
      notes.append(f'{run.name}: left out: no checkpoint yet')
      print(notes[-1], flush=True)
  if not runs:
    raise errors.Missing(f'{min(named)}: no checkpoint to judge: train first')
  failed: list[Exception] = []

  def ask(run: _Run, what: Callable[[], T], otherwise: T) -> T:
    try:
      return what()
    except Exception as error:
      failed.append(error)
      told = config.told(error)
      text = told[0] if told else f'{type(error).__name__}: {error}'
      note = f'{run.name}: left out: {text.removeprefix(f"{run.name}: ")}'
      if note not in notes:
        notes.append(note)
        if len(runs) > 1:
          print(note, flush=True)
      return otherwise

  # What others are at work on is waited for at the end, when nothing is left to
  # do; and done, if they are killed.
  busy = runs
  for wait in (False, True):
    judge = partial(_Run.judge, watch=watch, wait=wait)
    busy = [run for run in busy if ask(run, partial(judge, run), False)]
  notes += [line for run in runs for line in run.refused.values()]
  found = [ask(run, run.found, None) for run in runs]
  return recipes.part(filter(None, found)), notes, failed


class _Run:
  """A run that is judged.

  Attributes:
    name: as it was given.
    place: where it lies.
    path: of its evals.jsonl.
    refused: what was said of steps that were left out, by step and hash.
  """

  def __init__(
    self,
    workdir: str | Path,
    judges: '_Judges',
    steps: Steps,
    *,
    tell: bool = False,
  ):
    self.name = str(workdir)
    self.place: Any = _Folder(Path(workdir))
    if bucket.is_address(workdir):
      self.place = bucket_reader.Reader(workdir)
    self.path = self.place.folder / 'evals.jsonl'
    self.refused: dict[tuple[int, str], str] = {}
    self._judges = judges
    # A tuple, also of the list that a config may have.
    self._wanted = steps if steps in (None, 'last') else (*steps,)
    self._before = f'{self.name}  ' if tell else ''  # of what is printed

  def steps(self) -> list[int]:
    """Lists the checkpoints that are there and wanted."""
    there = self.place.steps()
    if self._wanted == 'last':
      return there[-1:]
    return [n for n in there if self._wanted is None or n in self._wanted]

  def judge(
    self,
    *,
    wait: bool = True,
    watch: bool = False,
    poll_seconds: float = 1.0,
    patience_seconds: float = 60.0,
  ) -> bool:
    """Judges what is missing; tells whether others are at work on some of it.

    Args and errors are those of `evaluate`; `wait` is for those others to end.
    """
    if isinstance(self.place, bucket_reader.Reader):
      poll_seconds = max(poll_seconds, 10.0)
    alone_since = time.monotonic()
    with self.place.lock_evals():
      while True:
        # Both asked before looking for steps: a trainer saves first and then
        # leaves, and its last step must not be overlooked.
        finished = not watch or self._finished()
        if self.place.is_training():
          alone_since = time.monotonic()
        busy = self._look()
        idle = time.monotonic() - alone_since
        if not (wait or watch) and busy:
          return True
        if not busy and (finished or idle > patience_seconds):
          break
        time.sleep(poll_seconds)
      self._check()
    return False

  def found(self) -> recipes.Run:
    """Reads all that is known of the run."""
    meta, steps = None, self.place.steps()
    for step in reversed(steps):
      with contextlib.suppress(errors.Gone, errors.Damaged):
        meta = self.place.read_manifest(step)['meta']
        break
    return recipes.run(
      self.name,
      self.place.folder,
      meta,
      self.steps(),
      metrics_log.read(self.path),
    )

  def _look(self) -> bool:
    """Judges what is missing, but for what others are at work on."""
    known, busy = _known(self.path), False
    for step in self.steps():
      digest = ''  # of a step that is gone already, or damaged
      try:
        about = self.place.read_manifest(step)
        digest = about['checkpoint']
        if (step, digest) in self.refused:
          continue
        judge = self._judges.of(self.place.folder, about)
        with contextlib.ExitStack() as held:
          params = None
          for name, task in judge.tasks.items():
            cell = digest, name, task, results.code()
            if cell in known:
              continue
            with self.place.claim(cell) as mine:
              if not mine or cell in _known(self.path):
                busy |= not mine
                continue
              if params is None:
                held.enter_context(self.place.read_lock(step))
                params = judge.load(self.place.folder, step)
              self._write(step, cell, judge.evaluate(name, params))
      except (errors.Gone, errors.Damaged) as e:
        self._refuse(step, digest, str(e))
    return busy

  def _refuse(self, step: int, digest: str, why: str) -> None:
    if (step, digest) not in self.refused:
      text = f'{self._before}step {step}: left out: {why}'
      self.refused[step, digest] = text
      print(text, flush=True)

  def _write(self, step: int, cell: Cell, found: Any) -> None:
    """Writes what an evaluator found down, and tells it."""
    keys = ('checkpoint', 'evaluator', 'task', 'code')
    about = {'step': step, **dict(zip(keys, cell, strict=True))}
    written, card = [], {}
    if isinstance(found, results.Result):
      # Items first: a checkpoint whose line is there has them.
      written.append(items.write(self.place.folder, about, found.items))
      card = {'card': found.card} if found.card else {}
    name = about['evaluator']
    metrics = {f'{name}/{k}': v for k, v in results.metrics(found).items()}
    metrics_log.append(self.path, {**about, **card, 'metrics': metrics})
    self.place.publish(*written)
    shown = '  '.join(f'{k} {v:.4g}' for k, v in _brief(metrics).items())
    print(f'{self._before}step {step}  {shown}', flush=True)

  def _finished(self) -> bool:
    steps = self.place.steps()
    if not steps:
      return False
    try:
      meta = self.place.read_manifest(steps[-1])['meta']
    except (errors.Gone, errors.Damaged):
      return False  # a trainer will replace it, or our patience ends
    return steps[-1] >= config.from_json(meta['config']).steps

  def _check(self) -> None:
    """Refuses a run of which nothing is known, and names steps that are not."""
    known, there = metrics_log.read(self.path), self.place.steps()
    if isinstance(self._wanted, tuple):
      have = ', '.join(map(str, there[-5:])) or 'none'
      for step in sorted({*self._wanted} - {*there}):
        if step not in {line['step'] for line in known}:
          self._refuse(step, '', f'no such step; there now: {have}')
    if not known and self.refused:
      raise errors.Damaged(
        f'{self.name}: no sound checkpoint: see the lines above'
      )
    if not known:
      raise errors.Missing(f'{self.name}: no checkpoint to judge: train first')


def _find(names: Iterable[str]) -> dict[str, bool]:
  """Lists runs, each once: was it named, or matched by a pattern?"""
  found: dict[str, tuple[str, bool]] = {}  # a link leads to no other run
  for name in names:
    matches, outright = [name], True
    if re.search(r'[*?[]', name) and not Path(name).is_dir():
      if bucket.is_address(name):
        raise config.ConfigError(
          f'{name}: patterns are of folders of this machine: name each run'
        )
      matches, outright = sorted(filter(os.path.isdir, glob.glob(name))), False
      if not matches:
        raise errors.Missing(f'{name}: matches no folder: check the pattern')
    for match in matches:
      place = match if bucket.is_address(match) else os.path.realpath(match)
      first, named = found.get(place.rstrip('/'), (match, False))
      found[place.rstrip('/')] = first, named or outright
  return dict(found.values())


def records(workdir: str | Path) -> list[dict[str, Any]]:
  """Reads evals.jsonl: `{'step', 'checkpoint', 'metrics'}`, oldest step first.

  The lines of a checkpoint are one record; of two lines of one evaluator, as
  another version of its code leaves them, the later one counts.
  """
  found: dict[tuple[int, str], dict[str, Any]] = {}
  for line in metrics_log.read(Path(workdir) / 'evals.jsonl'):
    found.setdefault((line['step'], line['checkpoint']), {}).update(
      line['metrics']
    )
  return [
    {'step': step, 'checkpoint': digest, 'metrics': metrics}
    for (step, digest), metrics in sorted(found.items(), key=lambda x: x[0][0])
  ]


def table(
  records: Sequence[Mapping[str, Any]],
  heads: Mapping[str, str] = MappingProxyType({}),
) -> str:
  """Lays records out, a checkpoint a row, without single categories.

  Args:
    records: as of `records`, or `rows`.
    heads: the metric of each evaluator that is told where not all fit.
  """
  records = [
    {**r, 'metrics': _brief(r['metrics'])}
    | ({'checkpoint': r['checkpoint'][:8]} if 'checkpoint' in r else {})
    for r in records
  ]
  keys = list(dict.fromkeys(k for r in records for k in r if k != 'metrics'))
  names = list(dict.fromkeys(k for r in records for k in r['metrics']))
  whole = metrics_log.table(
    [{**r, **r['metrics']} for r in records], [*keys, *names]
  )
  if _width(whole) <= _COLUMNS:
    return whole
  told: dict[str, str] = {}
  for name in names:
    evaluator = name.partition('/')[0]
    told.setdefault(evaluator, heads.get(evaluator, name.partition('/')[2]))
  lines = [
    {**r, **{e: r['metrics'].get(f'{e}/{told[e]}') for e in told}}
    for r in records
  ]
  blocks: list[list[str]] = [[]]
  for evaluator in told:
    wider = metrics_log.table(lines, [*keys, *blocks[-1], evaluator])
    if blocks[-1] and _width(wider) > _COLUMNS:
      blocks.append([])
    blocks[-1].append(evaluator)
  legend = ', '.join(f'{e} {metric}' for e, metric in told.items())
  return '\n\n'.join(
    [
      textwrap.fill(f'One metric a task, all in --csv: {legend}.', _COLUMNS),
      *(metrics_log.table(lines, [*keys, *block]) for block in blocks),
    ]
  )


def rows(runs: Sequence[recipes.Run]) -> list[dict[str, Any]]:
  """Lists what is known of runs, as `table` takes it: a checkpoint a row.

  Below the runs of a recipe are, for each step, the means and the standard
  deviations over its seeds, or the mean over the folds of one.
  """
  if len(runs) == 1:
    return records(runs[0].folder)
  found = []
  short = _short([run.name for run in runs])
  for recipe, part in recipes.by_recipe(runs).items():
    for run in part:
      by_step: dict[int, dict[str, float]] = {}
      for (step, evaluator), cell in run.cells.items():
        by_step.setdefault(step, {}).update(
          {f'{evaluator}/{k}': v for k, v in cell.metrics.items()}
        )
      found += [
        {
          'run': short[run.name],
          'recipe': recipe,
          'seed': run.seed,
          **({} if run.fold is None else {'fold': run.fold}),
          'step': step,
          'metrics': metrics,
        }
        for step, metrics in by_step.items()
      ]
    told: dict[tuple[int, int, str], dict[str, float]] = {}
    for (evaluator, metric), by in _over_seeds(part).items():
      for step, (mean, deviation, n) in by.items():
        name = f'{evaluator}/{metric}'
        if deviation is not None or len({run.fold for run in part}) > 1:
          told.setdefault((step, n, 'mean'), {})[name] = mean
        if deviation is not None:
          told.setdefault((step, n, 'SD'), {})[name] = deviation
    found += [
      {
        'run': f'{what} of {n if n > 1 else "folds"}',
        'recipe': recipe,
        'step': step,
        'metrics': x,
      }
      for (step, n, what), x in sorted(told.items(), key=lambda t: t[0][:2])
    ]
  return found


def _over_seeds(
  part: Sequence[recipes.Run],
) -> dict[tuple[str, str], dict[int, tuple[float, float | None, int]]]:
  """Gives a recipe's (mean, deviation, seeds) by metric and step."""
  names = {
    (evaluator, metric)
    for run in part
    for (_, evaluator), cell in run.cells.items()
    for metric in cell.metrics
  }
  return {
    name: {
      step: (recipes.mean(x), recipes.deviation(x), len(x))
      for step, x in recipes.seeds(part, *name).items()
    }
    for name in sorted(names)
  }


def _short(names: Sequence[str]) -> dict[str, str]:
  """Takes off the folders that all names begin with."""
  parts = [name.split('/') for name in names]
  same = 0
  while all(len(p) > same + 1 and p[same] == parts[0][same] for p in parts):
    same += 1
  return {name: '/'.join(name.split('/')[same:]) for name in names}


def _width(text: str) -> int:
  return max(map(len, text.splitlines()), default=0)


def _brief(metrics: dict[str, float]) -> dict[str, float]:
  """Leaves out what is of single categories."""
  return {name: x for name, x in metrics.items() if name.count('/') < 2}


class _Judges:
  """Evaluators of runs, built again only where a run is of another kind."""

  def __init__(self, evals: Mapping[str, Any] | None):
    self._evals = evals
    self._last: tuple[str, _Judge] | None = None

  def of(self, workdir: Path, about: Mapping[str, Any]) -> '_Judge':
    """Gives those of a run: of its config, and those that were given."""
    c = config.from_json(about['meta']['config'])
    more = config.fill({'evals': dict(self._evals or {})}).evals
    specs = config.plain({**c.evals, **more})
    if not specs:
      raise config.ConfigError(f'{workdir}: its config has no evals: add one')
    same = specs, config.plain(c.model), config.plain(c.sharding)
    kind = json.dumps([*same, about['meta']['tokenizer']], sort_keys=True)
    # Only the last, for the sake of memory: seeds stand side by side.
    if self._last is None or self._last[0] != kind:
      self._last = kind, _Judge(specs)
    return self._last[1]


class _Judge:
  """The evaluators of a kind of runs, each built when it is first needed.

  Attributes:
    tasks: the hash of each one's task, by name.
  """

  def __init__(self, specs: Mapping[str, Any]):
    self._specs = specs
    self.tasks = {name: results.task(spec) for name, spec in specs.items()}
    self._saved: checkpoint.RestoredRun | None = None
    self._built: dict[str, Any] = {}

  def load(self, folder: Path, step: int) -> types.Params:
    """Reads a step's parameters, onto whatever devices this process has."""
    self._saved = self._saved or checkpoint.restore_run(folder, step)
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
        context=context_lib.Context(
          self._saved.model, self._saved.tokenizer, sharding.make_mesh()
        ),
      )
    return self._built[name](params)


def _known(path: Path) -> set[Cell]:
  # Lines of an older form have no task: they are not known.
  return {
    (line['checkpoint'], line['evaluator'], line['task'], line['code'])
    for line in metrics_log.read(path)
    if 'task' in line
  }


class _Folder:
  """A run in a folder, with the methods of `bucket_reader.Reader`."""

  def __init__(self, folder: Path):
    self.folder = folder
    self.steps = partial(checkpoint.steps, folder)
    self.read_manifest = partial(manifest.read, folder)
    self.read_lock = partial(checkpoint.read_lock, folder)

  def is_training(self) -> bool:
    return checkpoint.holder(self.folder) is not None

  def publish(self, *files: Path) -> None:
    pass  # they lie where they belong

  @contextlib.contextmanager
  def lock_evals(self) -> Iterator[None]:
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
    prog='python -m lm.evaluate',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  add = parser.add_argument
  add('--workdir', action='append', default=[], help='may be repeated')
  add('--config', help='a file whose `evals` judge too; --config.KEY=VALUE')
  add('--last', action='store_true', help='the newest step only')
  add('--watch', action='store_true', help='wait for more, of one workdir')
  add('--csv', type=Path, metavar='FILE', help='all metrics, a line each')
  add('--html', type=Path, metavar='FILE', help='tables and curves, on a page')
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
  if args.watch and len(_find(workdirs)) > 1:
    parser.error('--watch: of one --workdir')
  for flag, file in (('--csv', args.csv), ('--html', args.html)):
    # Now, and not after hours.
    if file is not None and not file.parent.is_dir():
      raise config.ConfigError(
        f'{flag}: {file.parent}: no such folder: make it'
      )
  memory.prepare()
  # On a shared machine the trainer goes first.
  os.nice(10)
  devices.announce()
  if args.watch and not bucket.is_address(workdirs[0]):
    _wait_for(Path(workdirs[0]))
  runs, notes, failed = evaluate_runs(
    workdirs,
    evals=evals,
    steps='last' if args.last else steps,
    watch=args.watch,
  )
  if known := [run for run in runs if run.cells]:
    print(table(rows(known), recipes.headlines(known)), flush=True)
    if args.csv is not None:
      _store(known, args.csv)
    if args.html is not None:
      html.write(args.html, html.render(known, notes=notes, commit=_commit()))
  if failed:
    raise failed[0]


def _settings(c: config.Config) -> tuple[tuple[str, ...], Steps]:
  """Reads `c.evaluate`; a config that is older than that key has none."""
  given = {'workdirs': (), 'steps': None, **config.plain(c).get('evaluate', {})}
  workdirs, steps = given.pop('workdirs'), given.pop('steps')
  for key in given:
    known = config.did_you_mean(key, ('workdirs', 'steps'))
    raise config.ConfigError(f'unknown key evaluate.{key}{known}')
  if not isinstance(workdirs, tuple | list) or not all(
    isinstance(x, str) and x for x in workdirs
  ):
    raise config.ConfigError(
      f'evaluate.workdirs: {workdirs!r} must be folders, such as runs/a,runs/b-*'
    )
  steps = (steps,) if type(steps) is int else steps
  if steps in (None, 'last'):
    return tuple(workdirs), steps
  if not isinstance(steps, tuple | list) or not all(
    type(x) is int for x in steps
  ):
    raise config.ConfigError(
      f"evaluate.steps: {steps!r} must be None, 'last' or steps, such as 500,1000"
    )
  return tuple(workdirs), tuple(steps)


def _commit() -> str:
  """Names the commit of this code, '' where it is no checkout."""
  folder = Path(__file__).parent.parent
  command = 'git --no-optional-locks describe --always --dirty --exclude=*'
  if (folder / '.git').exists():
    with contextlib.suppress(OSError, subprocess.SubprocessError):
      done = subprocess.run(
        [*command.split(), '--abbrev=12'],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=10,
      )
      return done.stdout.strip()
  return ''


def _store(runs: Sequence[recipes.Run], path: Path) -> None:
  """Writes every metric as a line of CSV, with what its recipe's seeds say."""
  lines = []
  for recipe, part in recipes.by_recipe(runs).items():
    told = _over_seeds(part)
    for run in part:
      for (step, evaluator), cell in run.cells.items():
        for metric, value in cell.metrics.items():
          mean, deviation, n = told[evaluator, metric][step]
          lines.append(
            {
              'run': run.name,
              'recipe': recipe,
              'seed': run.seed,
              'fold': run.fold,
              'step': step,
              'checkpoint': cell.checkpoint,
              'evaluator': evaluator,
              'task': cell.task,
              'code': cell.code,
              'metric': metric,
              'value': value,
              'mean': mean,
              'sd': deviation,
              'seeds': n,
            }
          )
  try:
    with path.open('w', newline='') as file:
      writer = csv.DictWriter(file, list(lines[0]))
      writer.writeheader()
      writer.writerows(lines)
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
