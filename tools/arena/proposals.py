"""Says what a proposal changes, and refuses what a board does not let change.

What is refused here are mistakes. Whoever wants to cheat can: code that a patch
brings runs with the rights of its user.
"""

from collections.abc import Iterable, Mapping, Sequence
import hashlib
import json
from pathlib import Path
from typing import Any

from lm import config
from tools import checkout

# What a board lets change if it is made without --allow and --allow-path.
KEYS = ('model', 'optim', 'loss', 'steps', 'batch_size', 'microbatches')
PATHS = ('lm/layers/', 'lm/models/', 'lm/optim/', 'lm/training/step.py')
# What no board lets change: data, and what decides.
_FIXED_KEYS = (
  'data',
  'evals',
  'tokenizer',
  'early',
  'fit',
  'init_from',
  'branch_from',
)
_FIXED_PATHS = (
  'lm/checkpoint/',
  'lm/config/',
  'lm/corpus/',
  'lm/data/',
  'lm/evals/',
  'lm/evaluate.py',
  'lm/loss.py',  # evaluators compute with it, too
  'lm/metrics.py',
  'lm/planning/',
  'lm/reporting/',
  'lm/runtime/',
  'lm/train.py',
  'lm/training/evaluations.py',
  'lm/training/setup.py',
  'experiments/',
  'tests/',
  'tools/',
)
# Keys that change no loss but by chance. A proposal has those of the baseline.
_NEUTRAL = (
  'seed',
  'evaluate',
  'eval_every',
  'grace_seconds',
  'keep',
  'keep_every',
  'log_every',
  'mesh',
  'plan',
  'prefetch',
  'save_every',
  'sharding',
  'threads',
)
_LINK = '120000'  # git's mode of a symbolic link
_PATH_NAMES = ('path', 'target_path')


class Refused(config.ConfigError):
  """A proposal is not admitted to a board."""

  exit_code = 9


def check_allowed(keys: Sequence[str], paths: Sequence[str]) -> None:
  """Checks what a new board lets change.

  Raises:
    config.ConfigError: something that no board lets change.
  """
  for key in keys:
    if _covers(_FIXED_KEYS, key):
      raise config.ConfigError(
        f'--allow={key}: no board lets it change: data and evaluation are fixed'
      )
  for path in paths:
    if any(path.startswith(x) or x.startswith(path) for x in _FIXED_PATHS):
      raise config.ConfigError(
        f'--allow-path={path}: no board lets it change: it holds data, '
        'evaluation or tools'
      )


def changes(
  baseline: Mapping[str, Any], proposed: Mapping[str, Any]
) -> dict[str, list[Any]]:
  """Lists what a proposal changes: [before, after] by key; None where none is.

  Seeds, names of blocks, paths, and what changes no loss are left out.

  Args:
    baseline: its filled config.
    proposed: that of the proposal.
  """
  old, new = (
    config.flatten(_without_names(config.plain(x)))
    for x in (baseline, proposed)
  )
  return {
    key: [old.get(key), new.get(key)]
    for key in sorted(old.keys() | new.keys())
    if not _is_same(old, new, key) and not _is_neutral(key)
  }


def check_changes(found: Iterable[str], allowed: Sequence[str]) -> None:
  """Checks that a board lets keys change.

  Raises:
    Refused: it does not.
  """
  for key in found:
    if not _covers(allowed, key):
      raise Refused(
        f'{key}: is fixed on this board: a proposal may change '
        f'{", ".join(allowed)}'
      )


def merge(
  base: Mapping[str, Any], proposed: Mapping[str, Any], now: Mapping[str, Any]
) -> config.Config:
  """Makes the config of a proposal for the baseline of now.

  Args:
    base: the baseline that the proposal was made for.
    proposed: its config.
    now: the baseline of now.

  Returns:
    `now` with what differs between the other two, but for neutral keys.
  """
  old, new = config.flatten(base), config.flatten(proposed)
  result = config.plain(now)
  for key in sorted(old.keys() | new.keys()):
    if _is_neutral(key) or _is_same(old, new, key):
      continue
    *parents, name = key.split('.')
    tree = result
    for part in parents:
      inner = tree.get(part)
      if not isinstance(inner, dict):
        inner = tree[part] = {}
      tree = inner
    if key in new:
      tree[name] = new[key]
    else:
      tree.pop(name, None)
  return config.from_json(config.to_json(_without_empty(result)))


def digest(base: str, found: Mapping[str, list[Any]], tree: str | None) -> str:
  """Hashes what a proposal changes, so that the same one is known again.

  Args:
    base: the hash of its baseline.
    found: see `changes`.
    tree: hash of the code that its patch makes, see `check_patch`; None without
      one. How a patch is written does not count.
  """
  names = [base, repr(sorted(found.items())), *([tree] if tree else [])]
  return hashlib.sha256(json.dumps(names).encode()).hexdigest()


def check_patch(
  repository: str, commit: str, patches: Sequence[str], allowed: Sequence[str]
) -> tuple[list[str], str]:
  """Applies patches in a checkout of its own, and looks at the last of them.

  Args:
    repository: of the code.
    commit: of the board.
    patches: those of the baseline, and that of the proposal.
    allowed: what paths of a patch may begin with.

  Returns:
    What the last patch touches, and the hash of the code that it makes.

  Raises:
    Refused: it touches something else, or nothing, or makes a link.
    config.ConfigError: it does not apply.
  """
  *before, patch = [x.encode('utf-8', 'surrogateescape') for x in patches]
  with checkout.checkout(repository, commit, before) as root:

    def tree() -> str:
      checkout.git(root, 'add', '--all', '--force')
      return checkout.git(root, 'write-tree').strip()

    first = tree()
    checkout.git(root, 'apply', '--whitespace=nowarn', '-', given=patch)
    last = tree()
    raw = checkout.git(root, 'diff', '--raw', '--no-renames', '-z', first, last)
  # In turn ':MODE MODE HASH HASH STATUS', with the old and new, and the path.
  about, touched = raw.split('\0')[:-1:2], raw.split('\0')[1::2]
  for name, modes in zip(touched, about, strict=True):
    if modes.split(' ')[1] == _LINK:
      raise Refused(f'{name}: no patch may make a link')
    if name.startswith(_FIXED_PATHS):
      raise Refused(
        f'{name}: no patch may touch data, evaluation, tools or tests'
      )
    if not name.startswith(tuple(allowed)):
      raise Refused(
        f'{name}: is fixed on this board: a patch may touch '
        f'{", ".join(allowed)}'
      )
  if not touched:
    raise Refused('the patch changes nothing')
  return touched, last


def check_sealed(c: Mapping[str, Any], sealed: Path) -> None:
  """Checks that no path of a config leads to the sealed split.

  Raises:
    Refused: one does.
  """
  sealed = sealed.resolve()
  for key, value in config.flatten(c).items():
    if isinstance(value, str) and '/' in value and '://' not in value:
      path = Path(value).resolve()
      if path == sealed or path in sealed.parents or sealed in path.parents:
        raise Refused(
          f'{key}: {value} holds the sealed split: put that elsewhere'
        )


def _covers(prefixes: Iterable[str], key: str) -> bool:
  return any(f'{key}.'.startswith(f'{x}.') for x in prefixes)


def _is_neutral(key: str) -> bool:
  return _covers(_NEUTRAL, key) or key.rpartition('.')[2] in _PATH_NAMES


def _is_same(old: Mapping[str, Any], new: Mapping[str, Any], key: str) -> bool:
  if key not in old or key not in new:
    return False
  a, b = old[key], new[key]
  numbers = all(type(x) in (int, float) for x in (a, b))
  return a == b and (numbers or type(a) is type(b))


def _without_names(tree: Any) -> Any:
  """Replaces the names of blocks by their order, and drops unused blocks."""
  if not isinstance(tree, dict):
    return tree
  tree = {k: _without_names(v) for k, v in tree.items()}
  if isinstance(tree.get('blocks'), dict) and 'pattern' in tree:
    used = [*tree.get('first', ()), *tree['pattern']]
    places = {name: f'{n}' for n, name in enumerate(dict.fromkeys(used))}
    for part in ('first', 'pattern'):
      if part in tree:
        tree[part] = tuple(places[x] for x in tree[part])
    tree['blocks'] = {
      places[k]: v for k, v in tree['blocks'].items() if k in places
    }
  return tree


def _without_empty(tree: dict[str, Any]) -> dict[str, Any]:
  """Drops a dict whose last key was removed."""
  cleaned = {
    k: _without_empty(v) if isinstance(v, dict) else v for k, v in tree.items()
  }
  return {k: v for k, v in cleaned.items() if v != {} or tree[k] == {}}
