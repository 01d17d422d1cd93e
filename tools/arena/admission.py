"""Makes boards, and admits proposals to them."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import math
from pathlib import Path
import re
import secrets
import tempfile
from typing import Any, NamedTuple

from lm import config, errors
from lm.runtime import regular_files
from tools.arena import board as board_lib
from tools.arena import ledger, procedure, proposals, runs

_LOCK = 'lock'
_RUN_LOCK = 'run.lock'
_NAME = re.compile(r'[A-Za-z0-9][\w.-]{0,63}')


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
  """Lets one process at a time read a board and add to its ledger.

  It is held for moments, and never while something is trained or evaluated.

  Raises:
    errors.Locked: another one does, and takes a minute.
  """
  late = errors.Locked(f'{folder}: another process holds {_LOCK}: wait for it')
  with regular_files.exclusive(folder / _LOCK, 60.0, late):
    yield


@contextlib.contextmanager
def running(folder: Path) -> Iterator[None]:
  """Lets one process at a time do the runs of a board.

  Raises:
    errors.Locked: another one does.
  """
  late = errors.Locked(
    f'{folder}: another process runs this board: wait for it'
  )
  with regular_files.exclusive(folder / _RUN_LOCK, 1.0, late):
    yield


@dataclasses.dataclass(frozen=True)
class NewBoard:
  """The settings of a new board.

  Attributes:
    task: in a few words.
    tuned: how the baseline was tuned.
    config: file of the baseline.
    overrides: `('optim.peak', '3e-4')` pairs.
    data: see `lm.train`.
    sealed: folder of the sealed split.
    evaluator: name of the config's evaluator, which reads validation data.
    metric: that the evaluator returns; lower is better.
    budget: 'tokens' or 'flops', that no proposal may exceed.
    keys: what a config may change.
    paths: what a patch may touch.
    trusted: words of --trust.
    rules: statistics.
  """

  task: str
  tuned: str
  config: str
  overrides: Sequence[tuple[str, str]]
  data: str | None
  sealed: Path
  evaluator: str = 'valid'
  metric: str = 'loss_nats'
  budget: str = 'tokens'
  keys: Sequence[str] = proposals.KEYS
  paths: Sequence[str] = proposals.PATHS
  trusted: Sequence[str] = ()
  rules: procedure.Rules = procedure.DEFAULT


def new(folder: Path, given: NewBoard) -> board_lib.Board:
  """Makes a board; nothing is run yet.

  Raises:
    config.ConfigError: it cannot be made.
  """
  proposals.check_allowed(given.keys, given.paths)
  if (folder / ledger.NAME).exists():
    raise config.ConfigError(f'{folder}: is a board already: name another')
  if not given.sealed.is_dir():
    raise config.ConfigError(f'--sealed={given.sealed}: no such folder')
  about = describe(
    given.config, given.overrides, given.data, None, given.trusted
  )
  c = _with_absolute_paths(config.from_json(about['config']))
  if given.evaluator not in c.evals:
    raise config.ConfigError(
      f'--evaluator={given.evaluator}: the config has none of that name'
    )
  proposals.check_sealed(c, given.sealed)
  spec = config.plain(c.evals[given.evaluator])
  sealed = {**spec, 'path': str(given.sealed.resolve())}
  trusted = [*given.trusted, *_trusted(c)]
  evals = {given.evaluator: spec, 'sealed': sealed}
  tasks = runs.ask(
    'task', {'evals': config.to_json({'evals': evals})}, None, trusted
  )
  if tasks['sealed'] == tasks[given.evaluator]:
    raise config.ConfigError(
      f'--sealed={given.sealed}: has the same text as the validation data'
    )
  folder.mkdir(parents=True, exist_ok=True)
  with locked(folder):
    ledger.append(
      folder,
      'board',
      {
        'task': given.task,
        'tuned': given.tuned,
        'rules': given.rules._asdict(),
        'config': config.to_json(c),
        'code': runs.here()._asdict(),
        'evals': config.to_json({'evals': evals}),
        'evaluator': given.evaluator,
        'metric': given.metric,
        'sealed': str(given.sealed.resolve()),
        'sealed_task': tasks['sealed'],
        'budget': {
          'kind': given.budget,
          'tokens': about['tokens'],
          'flops': about['flops'],
        },
        'keys': list(given.keys),
        'paths': list(given.paths),
        'trusted': trusted,
        'salt': secrets.token_hex(16),
      },
    )
  return board_lib.Board(folder)


def describe(
  file: str,
  overrides: Sequence[tuple[str, str]],
  data: str | None,
  root: Path | None,
  trusted: Sequence[str],
) -> dict[str, Any]:
  """Fills a config and counts its tokens and FLOPs; see measure.py."""
  request = {'config': file, 'overrides': list(overrides), 'data': data}
  return runs.ask('describe', request, root, trusted)


def _trusted(c: config.Config) -> list[str]:
  """Lists what a baseline's config names, which its user has chosen."""
  words = []
  for key, value in config.flatten(c).items():
    name = key.rpartition('.')[2]
    if name == 'fn' and value not in config.FACTORIES:
      words.append(value.partition(':')[0].partition('.')[0])
    if name.endswith('path') and isinstance(value, str) and '/' in value:
      words.append(f'{value.rpartition("/")[0]}/')
  return list(dict.fromkeys(words))


def _with_absolute_paths(c: config.Config) -> config.Config:
  """Makes the paths of a config those of this machine, from any folder."""
  c = c.copy_and_resolve_references()

  def walk(tree: Any) -> None:
    for name, value in tree.items():
      if config.is_tree(value):
        walk(value)
      elif name.endswith('path') and isinstance(value, str) and value:
        tree[name] = value if '://' in value else str(Path(value).absolute())

  with c.unlocked():
    walk(c)
  return c.lock()


@dataclasses.dataclass(frozen=True)
class NewProposal:
  """A proposal as it is given.

  Attributes:
    name: of its own on the board.
    effect: the gain that is to be found, as a part of the loss.
    why: in a sentence.
    config: file; None takes the config of the baseline.
    overrides: `('optim.peak', '3e-4')` pairs.
    patch: file of a patch; None without one.
  """

  name: str
  effect: float
  why: str = ''
  config: str | None = None
  overrides: Sequence[tuple[str, str]] = ()
  patch: Path | None = None


def propose(folder: Path, given: NewProposal) -> dict[str, Any]:
  """Admits a proposal to a board.

  Returns:
    Its event in the ledger.

  Raises:
    proposals.Refused: the board does not admit it.
    config.ConfigError: it cannot be read.
  """
  while True:
    board = board_lib.Board(folder)
    prepared = _prepare(board, given)
    with locked(folder):
      now = board_lib.Board(folder)
      # What was prepared is for a baseline, which a run may have replaced.
      if len(now.baselines) == len(board.baselines):
        return ledger.append(folder, 'proposal', _admit(now, given, prepared))


class _Prepared(NamedTuple):
  """Holds what is found out about a proposal before a lock, as it takes long.

  Attributes:
    patch: its text; None without one.
    tree: hash of the code that it makes; None without one.
    about: see `describe`.
  """

  patch: str | None
  tree: str | None
  about: dict[str, Any]


def _prepare(board: board_lib.Board, given: NewProposal) -> _Prepared:
  """Reads a proposal, and describes it with the code of a board."""
  _check(board, given)
  patch, tree = None, None
  if given.patch is not None:
    patch, tree = _read_patch(board, given.patch)
  patches = [*board.baseline.patches, *([patch] if patch else [])]
  with (
    tempfile.TemporaryDirectory() as temporary,
    runs.folder(board.code, patches) as root,
  ):
    base = Path(temporary) / 'config.json'
    base.write_text(board.baseline.config)
    trusted = board.settings['trusted']
    about = describe(
      given.config or str(base), given.overrides, None, root, trusted
    )
  return _Prepared(patch, tree, about)


def _admit(
  board: board_lib.Board, given: NewProposal, prepared: _Prepared
) -> dict[str, Any]:
  """Checks a proposal, and returns what the ledger says of it."""
  _check(board, given)  # again: the board may have another of that name now
  patch, tree, about = prepared
  now = config.from_json(board.baseline.config)
  proposed = config.from_json(about['config'])
  proposals.check_sealed(proposed, Path(board.settings['sealed']))
  changed = proposals.changes(now, proposed)
  if not changed and patch is None:
    raise proposals.Refused(
      f'{given.name}: is no change: seeds, names and paths do not count'
    )
  proposals.check_changes(changed, board.settings['keys'])
  digest = proposals.digest(board.baseline.digest, changed, tree)
  for other in board.proposals:
    if other.digest == digest:
      raise proposals.Refused(
        f'{given.name}: changes the same as {other.name}, which was tested'
      )
  check_budget(board, about)
  return {
    'name': given.name,
    'why': given.why,
    'effect': given.effect,
    'config': config.to_json(proposals.merge(now, proposed, now)),
    'patch': patch,
    'base': len(board.baselines) - 1,
    'digest': digest,
    'changed': changed,
    'tokens': about['tokens'],
    'flops': about['flops'],
    'plan': _plan(board, given.effect),
  }


def _check(board: board_lib.Board, given: NewProposal) -> None:
  if not board.is_ready:
    raise config.ConfigError(
      f'{board.folder}: the baseline has not run, so its deviation is not '
      'known: python -m tools.arena run'
    )
  _check_name(board, given.name)
  if not 0 < given.effect < 1:
    raise config.ConfigError(
      f'--effect={given.effect}: give a part of the loss, such as 0.01'
    )


def _check_name(board: board_lib.Board, name: str) -> None:
  if not _NAME.fullmatch(name) or name == 'baseline':
    raise config.ConfigError(
      f'{name!r}: a name has letters, digits, dots, dashes and underscores, '
      'and is not baseline'
    )
  if any(x.name == name for x in board.proposals):
    raise proposals.Refused(f'{name}: this board has a proposal of that name')


def _read_patch(board: board_lib.Board, file: Path) -> tuple[str, str]:
  """Reads a patch, and gives it with the hash of the code that it makes."""
  try:
    patch = file.read_bytes().decode('utf-8')
  except (OSError, UnicodeDecodeError) as error:
    raise config.ConfigError(f'--patch={file}: {error}') from error
  if board.settings['sealed'] in patch:
    raise proposals.Refused(f'{file}: names the folder of the sealed split')
  _, tree = proposals.check_patch(
    runs.repository(board.code),
    board.code.commit or '',
    [*board.code.patches, *board.baseline.patches, patch],
    board.settings['paths'],
  )
  return patch, tree


def check_budget(board: board_lib.Board, about: Mapping[str, Any]) -> None:
  """Checks that a proposal costs no more than the baseline.

  Raises:
    proposals.Refused: it does.
  """
  budget = board.settings['budget']
  kind = budget['kind']
  if about[kind] > budget[kind]:
    raise proposals.Refused(
      f'it takes {about[kind]:,} {kind}, and this board grants '
      f'{budget[kind]:,}: take fewer steps'
    )


def _plan(board: board_lib.Board, effect: float) -> dict[str, Any]:
  """Says how many runs will find the stated effect, and how often they do.

  Raises:
    proposals.Refused: the effect is too small to be found.
  """
  deviation = board.deviation()
  if not deviation:
    raise config.ConfigError(
      f'{board.folder}: all runs of the baseline have one loss: its seed is '
      'not used'
    )
  rules, level = board.rules, board.next_level
  # Rounded down, which is the safe side.
  size = math.floor(effect / deviation * 20) / 20
  share, count = procedure.power(rules, size, level)
  if share < rules.power:
    least = procedure.smallest_effect(rules, level)
    may = '' if least is None else f': state at least {least * deviation:.2%}'
    raise proposals.Refused(
      f'--effect={effect}: is {size} standard deviations of a run, and would '
      f'be found with a chance of {share:.0%}{may}'
    )
  return {
    'deviation': deviation,
    'test': board.baseline.tests + 1,
    'power': share,
    'runs': count,
    'screening_runs': procedure.screening_runs(rules, size),
  }


def withdraw(folder: Path, name: str) -> dict[str, Any]:
  """Takes a proposal back; what its test has spent stays spent.

  Raises:
    config.ConfigError: there is none that is pending.
  """
  with locked(folder):
    proposal = board_lib.Board(folder).find(name)
    if proposal.decision is not None:
      raise config.ConfigError(f'{name}: is decided already')
    found = procedure.Decision(False, 'withdrawn', 'withdrawn')
    return ledger.append(folder, 'decision', {'of': name, **found._asdict()})
