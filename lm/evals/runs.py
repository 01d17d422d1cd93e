"""Evaluates the checkpoints of runs, each once, also beside other processes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import contextlib
from functools import partial
import glob
import os
from pathlib import Path
import re
import time
from typing import Any, Literal, NamedTuple, TypeVar

from lm import config, errors
from lm.checkpoint import bucket, bucket_reader, manifest
from lm.evals import contamination, evaluators, folders, items, records, results
from lm.evals.reports import recipes, table
from lm.reporting import metrics_log

# Which checkpoints of a run: these, the newest ('last'), or all (None).
Steps = Sequence[int] | Literal['last'] | None
T = TypeVar('T')


class Evaluated(NamedTuple):
  """The outcome of evaluating several runs.

  Attributes:
    runs: the runs, with all results that are stored of them.
    notes: a line for everything that was left out.
    errors: those of the runs that could not be evaluated.
  """

  runs: list[recipes.Run]
  notes: list[str]
  errors: list[Exception]


class RunEvaluation:
  """A run whose checkpoints are evaluated.

  Attributes:
    name: as the user gave it.
    place: where the run lies.
    path: of its evals.jsonl.
    left_out: a line for each step that was left out, by step and hash.
    refused: evaluators that cannot be used with this run, by name.
  """

  def __init__(
    self,
    workdir: str | Path,
    cache: evaluators.EvaluatorCache,
    steps: Steps = None,
    *,
    one_of_several: bool = False,
  ):
    """Names what to evaluate; nothing is read yet.

    Args:
      workdir: folder of the run, or its address in a bucket.
      cache: builds the evaluators.
      steps: which checkpoints.
      one_of_several: prints the name of the run in each line.
    """
    self.name = str(workdir)
    self.place = folders.find(workdir)
    self.path = self.place.folder / records.NAME
    self.left_out: dict[tuple[int, str], str] = {}
    self.refused: dict[str, config.ConfigError] = {}
    self._cache = cache
    self._steps: tuple[int, ...] | Literal['last'] | None = None
    if steps is not None:
      self._steps = 'last' if steps == 'last' else tuple(map(int, steps))
    self._prefix = f'{self.name}  ' if one_of_several else ''

  def steps(self) -> list[int]:
    """Lists the checkpoints that are there and wanted."""
    steps = self.place.steps()
    if self._steps == 'last':
      return steps[-1:]
    return [n for n in steps if self._steps is None or n in self._steps]

  def evaluate(
    self,
    *,
    wait: bool = True,
    watch: bool = False,
    poll_seconds: float = 1.0,
    patience_seconds: float = 60.0,
  ) -> bool:
    """Does the evaluations that evals.jsonl does not have.

    Args:
      wait: waits until other processes have done what they have claimed.
      watch: waits for more checkpoints until training has ended.
      poll_seconds: time between two looks at the folder.
      patience_seconds: how long to wait for a trainer that is not running.

    Returns:
      Whether other processes are still at work on some of the evaluations;
      never if `wait` or `watch` is set.

    Raises:
      errors.Locked, errors.Missing, errors.Damaged, config.ConfigError: see
        `lm.evaluate.evaluate`.
    """
    if isinstance(self.place, bucket_reader.Reader):
      poll_seconds = max(poll_seconds, 10.0)  # each look is a request
    untrained_since = time.monotonic()
    with self.place.lock_evals():
      while True:
        # Asked before the steps are listed: a trainer saves its last step and
        # then leaves, so that no step can come after it has left.
        finished = not watch or self._is_finished()
        if self.place.is_training():
          untrained_since = time.monotonic()
        busy = self._evaluate_present()
        idle_seconds = time.monotonic() - untrained_since
        if busy and not (wait or watch):
          return True
        if not busy and (finished or idle_seconds > patience_seconds):
          break
        time.sleep(poll_seconds)
      self._check()
    for name, error in self.refused.items():
      if name in self._cache.added:
        raise error
    return False

  def stored(self) -> recipes.Run:
    """Reads all results that are stored of the run."""
    meta = None
    for step in reversed(self.place.steps()):
      with contextlib.suppress(errors.Gone, errors.Damaged):
        meta = self.place.read_manifest(step)['meta']
        break
    return recipes.run(
      self.name,
      self.place.folder,
      meta,
      self.steps(),
      records.lines(self.path),
    )

  def _evaluate_present(self) -> bool:
    """Evaluates the checkpoints that are there now.

    Returns:
      Whether other processes are at work on some of them.
    """
    done, busy = records.keys(self.path), False
    for step in self.steps():
      digest = ''  # if the manifest is gone or damaged
      try:
        about = self.place.read_manifest(step)
        digest = about['checkpoint']
        if (step, digest) not in self.left_out:
          busy |= self._evaluate_step(step, about, done)
      except (errors.Gone, errors.Damaged) as error:
        self._leave_out(step, digest, str(error))
    return busy

  def _evaluate_step(
    self,
    step: int,
    about: Mapping[str, Any],
    done: set[records.EvaluationKey],
  ) -> bool:
    """Does what is not done; tells whether others are at work on some of it."""
    chosen = self._cache.get(self.place.folder, about)
    params, busy = None, False
    with contextlib.ExitStack() as stack:
      for key in chosen.keys(about['checkpoint']):
        if key in done:
          continue
        with self.place.claim(key) as is_ours:
          # Another process may have finished it since `done` was read. Asked
          # under the claim, so that nobody can start it after this.
          if not is_ours or key in records.keys(self.path):
            busy |= not is_ours
            continue
          if params is None:
            stack.enter_context(self.place.read_lock(step))
            params = chosen.load(self.place.folder, step)
          result = chosen.evaluate(key.evaluator, params)
          if result is not None:
            self._write(step, key, result)
    for name, error in chosen.refused.items():
      if len(chosen.refused) == len(chosen.specs):
        raise error
      self._refuse(name, error)
    return busy

  def _refuse(self, name: str, error: config.ConfigError) -> None:
    if name not in self.refused:
      text = f'{self.name}: evaluator {name} is left out: {error}'
      self.refused[name] = config.ConfigError(text)
      manifest.warn(text)

  def _leave_out(self, step: int, digest: str, why: str) -> None:
    if (step, digest) not in self.left_out:
      text = f'{self._prefix}step {step}: left out: {why}'
      self.left_out[step, digest] = text
      print(text, flush=True)

  def _write(
    self,
    step: int,
    key: records.EvaluationKey,
    result: results.Result | Mapping[str, float],
  ) -> None:
    """Stores what an evaluator returned, and prints it."""
    header = {'step': step, **key._asdict()}
    written, card = [], {}
    if isinstance(result, results.Result):
      # The items first: if the line is there, the items are there too.
      written.append(items.write(self.place.folder, header, result.items))
      card = {'card': result.card} if result.card else {}
    metrics = {
      f'{key.evaluator}/{k}': v for k, v in results.metrics(result).items()
    }
    known = contamination.state(self.place.folder, result)
    line = {**header, **card, 'contamination': known, 'metrics': metrics}
    metrics_log.append(self.path, line)
    self.place.publish(*written)
    brief = table.without_categories(metrics)
    text = '  '.join(f'{k} {v:.4g}' for k, v in brief.items())
    print(f'{self._prefix}step {step}  {text}', flush=True)

  def _is_finished(self) -> bool:
    """Tells whether the last step of training is there."""
    steps = self.place.steps()
    if not steps:
      return False
    try:
      meta = self.place.read_manifest(steps[-1])['meta']
    except (errors.Gone, errors.Damaged):
      return False  # a trainer will replace it, or our patience ends
    return steps[-1] >= config.from_json(meta['config']).steps

  def _check(self) -> None:
    """Checks that the run has results, and names wanted steps it lacks."""
    lines, steps = records.lines(self.path), self.place.steps()
    if isinstance(self._steps, tuple):
      have = ', '.join(map(str, steps[-5:])) or 'none'
      for step in sorted({*self._steps} - {*steps}):
        if step not in {line['step'] for line in lines}:
          self._leave_out(step, '', f'no such step; there now: {have}')
    if not lines and self.left_out:
      raise errors.Damaged(
        f'{self.name}: no sound checkpoint: see the lines above'
      )
    if not lines:
      raise errors.Missing(
        f'{self.name}: no checkpoint to evaluate: train first'
      )


def evaluate(
  workdirs: Iterable[str],
  cache: evaluators.EvaluatorCache,
  *,
  steps: Steps = None,
  watch: bool = False,
) -> Evaluated:
  """Evaluates the checkpoints of several runs; see `lm.evaluate.evaluate_runs`.

  A run that fails does not keep the others from being evaluated.
  """
  named = find(workdirs)
  runs = [
    RunEvaluation(name, cache, steps, one_of_several=len(named) > 1)
    for name in named
  ]
  notes: list[str] = []
  for run in [run for run in runs if not named[run.name]]:
    if not run.place.steps() and not run.path.exists():
      runs.remove(run)
      notes.append(f'{run.name}: left out: no checkpoint yet')
      print(notes[-1], flush=True)
  if not runs:
    raise errors.Missing(
      f'{min(named)}: no checkpoint to evaluate: train first'
    )
  failures: list[Exception] = []

  def attempt(run: RunEvaluation, call: Callable[[], T], otherwise: T) -> T:
    try:
      return call()
    except Exception as error:
      failures.append(error)
      if error in run.refused.values():
        return otherwise  # noted below, with the other evaluators
      known = config.error_line(error)
      text = known[0] if known else f'{type(error).__name__}: {error}'
      note = f'{run.name}: left out: {text.removeprefix(f"{run.name}: ")}'
      if note not in notes:
        notes.append(note)
        if len(runs) > 1:
          print(note, flush=True)
      return otherwise

  # What other processes have claimed is left for the end, when nothing else is
  # to do. Then it is waited for, and done here if its process dies.
  busy = runs
  for wait in (False, True):
    busy = [
      run
      for run in busy
      if attempt(run, partial(run.evaluate, watch=watch, wait=wait), False)
    ]
  for run in runs:
    notes += run.left_out.values()
    notes += map(str, run.refused.values())
  stored = [attempt(run, run.stored, None) for run in runs]
  return Evaluated(recipes.part(filter(None, stored)), notes, failures)


def find(names: Iterable[str]) -> dict[str, bool]:
  """Finds runs by names and patterns, each run once.

  Returns:
    By name: whether the run was named outright, not matched by a pattern.

  Raises:
    errors.Missing: a pattern matches no folder.
    config.ConfigError: a pattern is of a bucket.
  """
  runs: dict[
    str, tuple[str, bool]
  ] = {}  # by real path, as links may repeat one
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
      first, named = runs.get(place.rstrip('/'), (match, False))
      runs[place.rstrip('/')] = first, named or outright
  return dict(runs.values())
