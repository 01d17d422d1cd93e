"""Does the runs that a board asks for, and writes down what is decided."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import math
from pathlib import Path
from typing import Any

from lm import config, errors
from tools.arena import admission, ledger, procedure, proposals, runs
from tools.arena import board as board_lib

# A run: of which proposal, or 'baseline', in which stage, and its number there.
_Step = tuple[str, str, int]


def run(
  folder: Path,
  most: int | None = None,
  say: Callable[[str], None] = print,
) -> board_lib.Board:
  """Does the runs that a board asks for, until nothing is pending.

  It may be killed at any time; the next call goes on.

  Args:
    folder: of the board.
    most: runs after which it ends; None for all.
    say: called with a line for everything that happens.

  Raises:
    errors.Locked: another process does it.
    runs.Ended: a run was stopped.
    config.ConfigError: the baseline cannot be trained.
  """
  done = 0
  with admission.running(folder):
    board, step = _next(folder, say)
    while step is not None and (most is None or done < most):
      done += 1
      try:
        kind, content = 'run', _do(board, *step)
      except runs.Failed as error:
        if step[0] == 'baseline':
          raise config.ConfigError(str(error)) from error
        found = procedure.Decision(False, step[1], f'failed: {error}')
        kind, content = 'decision', {'of': step[0], **found._asdict()}
      say(_add(folder, step, kind, content))
      board, step = _next(folder, say)
  return board


def _next(
  folder: Path, say: Callable[[str], None]
) -> tuple[board_lib.Board, _Step | None]:
  """Decides what can be decided, and finds the next run; None without one."""
  with admission.locked(folder):
    while True:
      board = board_lib.Board(folder)
      if not board.is_ready:
        number = len(board.baseline.losses.valid)
        return board, ('baseline', 'baseline', number)
      proposal = board.pending()
      if proposal is None:
        return board, None
      step = _advance(board, proposal, say)
      if step is not None:
        return board, step


def _add(
  folder: Path, step: _Step, kind: str, content: Mapping[str, Any]
) -> str:
  """Writes down what came of a run if the board still asks for it.

  The board is not locked while something runs, so that it may have changed: a
  proposal was withdrawn, or, on a file system where locks do not hold between
  machines, another process did the same run. What a board asks for next follows
  from its lines alone, and it is the same run as long as its proposal has no
  decision and no further run of this stage. So each run counts once, with the
  seed that its place gives it, and the first that is written counts, whatever
  its loss: nobody can choose between two. In the same way a test gets its
  number, and by it its level, in one hold of the lock (`_next`), so that no two
  tests spend the same part of the board's level.

  Returns:
    A line that says what happened.
  """
  of, stage, number = step
  with admission.locked(folder):
    board = board_lib.Board(folder)
    if of == 'baseline':
      count = len(board.baselines[0].losses.valid)
      is_decided = False
    else:
      proposal = board.find(of)
      count = len(getattr(proposal.trial, stage))
      is_decided = proposal.decision is not None
    if is_decided or count != number:
      return (
        f'{of} {stage} {number + 1}: is asked for no more, so it is left out'
      )
    ledger.append(folder, kind, content)
  if kind == 'decision':
    return f'{of}: {content["reason"]}'
  values = [f'{x} {content[x]}' for x in ('valid', 'sealed') if x in content]
  return f'{of} {stage} {number + 1}: {", ".join(values)}'


def _advance(
  board: board_lib.Board,
  proposal: board_lib.Proposal,
  say: Callable[[str], None],
) -> _Step | None:
  """Finds the next run of a proposal; None if something else was done."""
  level = proposal.level or board.next_level
  found = procedure.action(
    board.rules, board.baseline.losses, proposal.trial, level
  )
  same = _same_losses(proposal.trial)
  if same is not None:
    found = procedure.Decision(
      False, same, 'two seeds gave the same loss: the seed is not used'
    )
  if isinstance(found, procedure.Decision):
    content = board_lib.outcome(board, proposal, found)
    if found.is_accepted:
      content['config'] = _config_now(board, proposal)
    ledger.append(board.folder, 'decision', content)
    say(_line(content))
    return None
  if found == 'test' and proposal.level is None:
    content = {
      'of': proposal.name,
      'baseline': board.baseline.name,
      'test': board.baseline.tests + 1,
      'level': level,
    }
    ledger.append(board.folder, 'test', content)
    return None
  return proposal.name, found, len(getattr(proposal.trial, found))


def _same_losses(trial: procedure.Trial) -> str | None:
  """Finds a stage in which two seeds gave one loss."""
  for stage in trial._fields[1:]:
    losses = [x for x in getattr(trial, stage) if math.isfinite(x)]
    if len(set(losses)) < len(losses):
      return stage
  return None


def _config_now(board: board_lib.Board, proposal: board_lib.Proposal) -> str:
  """Makes the config of a proposal on top of the baseline of now."""
  if proposal.base == len(board.baselines) - 1:
    return proposal.config
  base = board.baselines[proposal.base].config
  texts = base, proposal.config, board.baseline.config
  return config.to_json(proposals.merge(*map(config.from_json, texts)))


def _do(
  board: board_lib.Board, of: str, stage: str, number: int
) -> dict[str, Any]:
  """Trains and evaluates a run, and returns what the ledger says of it."""
  patches = list(board.baseline.patches)
  text = board.baseline.config
  if of != 'baseline':
    proposal = board.find(of)
    text = _config_now(board, proposal)
    patches += [proposal.patch] if proposal.patch else []
  c = config.from_json(text)
  with c.unlocked():
    c.seed = board.seed(of, stage, number)
  workdir = board.workdir(of, stage, number)
  workdir.parent.mkdir(parents=True, exist_ok=True)
  config_file = workdir.with_name(f'{workdir.name}.json')
  with admission.locked(board.folder):  # another process may do the same run
    config.store(c, config_file)
  trusted = board.settings['trusted']
  name = board.settings['evaluator']
  asked = {
    'screening': {'valid': name},
    'test': {'sealed': 'sealed'},
  }.get(stage, {'valid': name, 'sealed': 'sealed'})
  values: dict[str, float | None] = dict.fromkeys(asked)
  with _code(board, patches) as root:
    if (
      _is_of_earlier_baseline(board, of)
      and number == 0
      and stage == 'screening'
    ):
      about = admission.describe(str(config_file), (), None, root, trusted)
      try:
        admission.check_budget(board, about)
      except proposals.Refused as error:
        raise runs.Failed(str(error)) from error
    if runs.train(root, config_file, workdir, trusted):
      values = _evaluate(board, workdir, asked, root, c.steps)
  if of == 'baseline' and None in values.values():
    raise config.ConfigError(f'{workdir}: the baseline is not finite')
  return {'of': of, 'stage': stage, 'seed': c.seed, **values}


def _is_of_earlier_baseline(board: board_lib.Board, of: str) -> bool:
  """Tells whether a proposal was made for an earlier baseline."""
  return of != 'baseline' and board.find(of).base != len(board.baselines) - 1


@contextlib.contextmanager
def _code(
  board: board_lib.Board, patches: Sequence[str]
) -> Iterator[Path | None]:
  """Yields the code of a run; a patch that no longer applies has failed."""
  with contextlib.ExitStack() as stack:
    try:
      root = stack.enter_context(runs.folder(board.code, patches))
    except config.ConfigError as error:
      if not patches:
        raise
      raise runs.Failed(str(error)) from error
    yield root


def _evaluate(
  board: board_lib.Board,
  workdir: Path,
  asked: Mapping[str, str],
  root: Path | None,
  steps: int,
) -> dict[str, float | None]:
  """Evaluates a run that has ended, by the evaluators that are asked for."""
  evals = config.plain(config.from_json(board.settings['evals']))['evals']
  chosen = {x: evals[x] for x in asked.values()}
  folders = [f'{spec["path"].rpartition("/")[0]}/' for spec in chosen.values()]
  answer = runs.ask(
    'evaluate',
    {
      'workdir': str(workdir),
      'evals': config.to_json({'evals': chosen}),
      'metric': board.settings['metric'],
    },
    root,
    [*board.settings['trusted'], *folders],
  )
  if answer['step'] != steps:
    raise runs.Failed(f'{workdir}: ended at step {answer["step"]} of {steps}')
  found = answer['evals']
  before = board.settings['sealed_task']
  if 'sealed' in found and found['sealed']['task'] != before:
    raise errors.Damaged(
      f'{board.settings["sealed"]}: is not what it was when the board began'
    )
  return {key: found[name]['value'] for key, name in asked.items()}


def _line(content: Mapping[str, Any]) -> str:
  """Spells a decision in a line."""
  word = 'accepted' if content['is_accepted'] else 'rejected'
  text = f'{content["of"]}: {word} ({content["stage"]}: {content["reason"]})'
  if 'gain' in content:
    low, high = content['interval']
    text += (
      f'; gain {content["gain"]:.4f} ({low:.4f} to {high:.4f}), '
      f'{content["relative"]:.2%}'
    )
  return text
