"""A run read back from its checkpoint: config, tokenizer, model, parameters."""

from collections.abc import Iterable, Mapping
import contextlib
from pathlib import Path
import sys
from typing import Any, NamedTuple

import numpy as np

from lm import config, errors, tree, types
from lm.checkpoint import manifest, manifest_format, read_locks, step_reader

# The config keys that may change when a run is resumed: where it runs and how
# often it reports, never what it computes. The config key `allow` names more.
CHANGEABLE_KEYS = (
  'allow',
  'branch_from',  # it has been read once there is a checkpoint
  'branch_step',
  'early',
  'eval_every',
  'evals',
  'evaluate',
  'grace_seconds',
  'keep',
  'keep_every',
  'log',
  'log_every',
  'max_rollbacks',
  'max_skipped',
  'mesh',
  'plan',
  'prefetch',
  'profile',
  'save_every',
  'sharding',
  'threads',
  'watchdog',
)


_OWN = 'tokenizer'  # the name, without its suffix, of a step's own copy


class RestoredRun(NamedTuple):
  """A run's config, and the tokenizer and model that it describes."""

  config: config.Config
  tokenizer: types.Tokenizer
  model: types.Model


def restore_run(workdir: str | Path, step: int | None = None) -> RestoredRun:
  """Rebuilds a run's tokenizer and model from the config in a checkpoint.

  Args:
    workdir: of the run.
    step: None for the newest sound one.

  Raises:
    config.ConfigError: the config cannot be built, or the tokenizer is not the
      one that the run was trained with.
    errors.Failure: there is no sound checkpoint.
  """
  content = manifest.newest(
    workdir,
    lambda n: (manifest.verify if step is None else manifest.read)(workdir, n),
    step,
  )
  meta = content['meta']
  c = config.read_untrusted(meta['config'])
  with read_locks.read_lock(workdir, content['step']):
    own = _own_tokenizer(workdir, content)
    if own is None:
      config.check_files(c.tokenizer, workdir, key='tokenizer')
    else:
      with c.unlocked():
        c.tokenizer.path = str(own)
    config.check_files(c.model, workdir, key='model')
    tokenizer = checked_tokenizer(c.tokenizer, workdir, meta)
  return RestoredRun(c, *tokenizer_and_model(c, tokenizer))


def checked_tokenizer(
  spec: config.Config, workdir: str | Path, meta: Mapping[str, Any]
) -> types.Tokenizer:
  """Builds a run's tokenizer, the one that it was trained with.

  Args:
    spec: of the tokenizer.
    workdir: of the run, for the message.
    meta: of its checkpoint; {} without one.

  Raises:
    config.ConfigError: it cannot be built, or is another one.
  """
  tokenizer = config.build(spec)
  if meta and tokenizer.sha256 != meta['tokenizer']:
    raise config.ConfigError(
      f'{workdir}: trained with tokenizer {meta["tokenizer"][:12]}, and its'
      f' tokenizer is {tokenizer.sha256[:12]} now: bring that file back'
    )
  return tokenizer


def tokenizer_path(c: config.Config, workdir: str | Path) -> Path | None:
  """Finds the file of a run's tokenizer: its own copy, if it has one.

  Every checkpoint holds one, so that a run can be moved, and goes on where the
  file that it was trained with is gone.

  Args:
    c: the run's config, whose file is taken for a run without a checkpoint.
    workdir: of the run.

  Returns:
    The path; None for a tokenizer without a file.
  """
  for step in reversed(manifest.steps(workdir)):
    with contextlib.suppress(errors.Failure):
      own = _own_tokenizer(workdir, manifest.read(workdir, step))
      if own is not None:
        return own
  return Path(c.tokenizer.path) if 'path' in c.tokenizer else None


def enclosed(c: config.Config, workdir: str | Path) -> dict[str, bytes]:
  """Reads the files that every checkpoint of a run holds beside its arrays.

  Args:
    c, workdir: the same as in `tokenizer_path`.
  """
  path = tokenizer_path(c, workdir)
  return {} if path is None else {f'{_OWN}{path.suffix}': path.read_bytes()}


def _own_tokenizer(
  workdir: str | Path, content: Mapping[str, Any]
) -> Path | None:
  """Finds the tokenizer inside a step, given the step's manifest.

  Raises:
    errors.Damaged: it is not the file that was written.
  """
  names = [x for x in content['files'] if Path(x).stem == _OWN and '/' not in x]
  if not names:
    return None
  path = manifest.directory(workdir, content['step']) / names[0]
  there = path if path.is_symlink() or path.is_file() else None
  if cause := manifest_format.file_error(there, content['files'][names[0]]):
    raise errors.Damaged(f'{path}: {cause}; use another step')
  return path


def tokenizer_and_model(
  c: config.Config, tokenizer: types.Tokenizer | None = None
) -> tuple[types.Tokenizer, types.Model]:
  """Builds the tokenizer and the model that a config describes.

  Args:
    c: a config.
    tokenizer: the one to use if it is known already; None builds the config's.

  Raises:
    config.ConfigError: one of them cannot be built.
  """
  known = config.build(c.tokenizer) if tokenizer is None else tokenizer
  return known, config.build(c.model, vocab=known.size)


def initial_params(
  workdir: str | Path,
  paths: Iterable[str],
  like: types.Params,
  tokenizer: types.Tokenizer,
) -> dict[str, np.ndarray]:
  """Reads the parameters with which a new run starts from another run's.

  They are those of the other run's newest sound checkpoint.

  Args:
    workdir: of the other run.
    paths: items of the form 'theirs=ours': the parameters at or below the path
      `theirs` of the other run become those at or below `ours`. 'x' stands for
      'x=x', and an empty path for the whole tree. Without any items, the whole
      tree is read as it is.
    like: shapes of the new run's parameters.
    tokenizer: the new run's.

  Returns:
    Arrays by their path in `like`.

  Raises:
    config.ConfigError: one side has no parameter where the other has one, or
      has it in another shape or type; a parameter is set twice; or a table of
      embeddings was trained with another tokenizer.
    errors.Failure: there is no sound checkpoint.
  """
  have = dict(tree.paths(step_reader.restore_params(workdir)))
  want = dict(tree.paths(like))
  result: dict[str, np.ndarray] = {}
  for item in paths or ('',):
    theirs, equals, ours = str(item).partition('=')
    ours = ours if equals else theirs
    what = f'init_paths={item}: {workdir}' if item else f'init_from={workdir}'
    for flat, path, who in ((have, theirs, 'it'), (want, ours, 'the model')):
      if not _below(flat, path):
        raise config.ConfigError(
          f'{what}: {who} has no parameters at {path}'
          f'{config.did_you_mean(path, flat)}'
        )
    new, needed = (
      {f'{ours}/{rest}'.strip('/'): leaf for rest, leaf in part.items()}
      for part in (_below(have, theirs), _below(want, ours))
    )
    if lines := tree.diff(new, needed):
      raise config.ConfigError(
        f'{what} does not fit the model: {"; ".join(lines)}'
      )
    if twice := sorted(result.keys() & new.keys()):
      raise config.ConfigError(f'{what}: {twice[0]} is set twice: remove one')
    result |= new
  _check_tokenizer(workdir, result, tokenizer)
  return result


def _check_tokenizer(
  workdir: str | Path, params: Iterable[str], tokenizer: types.Tokenizer
) -> None:
  """Refuses embeddings whose rows stand for the tokens of another tokenizer."""
  theirs = manifest.read_meta(workdir)['tokenizer']
  tables = [path for path in params if path.endswith('embed/table')]
  if tables and theirs != tokenizer.sha256:
    raise config.ConfigError(
      f'init_from={workdir}: its {tables[0]} was trained with tokenizer '
      f'{theirs[:12]}, and this one is {tokenizer.sha256[:12]}: use that, or '
      'leave the table out of init_paths'
    )


def _below(flat: dict[str, Any], path: str) -> dict[str, Any]:
  """Selects what is at or below a path, by the rest of its own path."""
  return {
    key[len(path) :].strip('/'): leaf
    for key, leaf in flat.items()
    if not path or f'{key}/'.startswith(f'{path}/')
  }


def check_same_config(
  meta: dict[str, Any],
  c: config.Config,
  workdir: Path,
  allow: Iterable[str],
  advice: str = 'use another --workdir',
) -> None:
  """Checks that a checkpoint was made with a config.

  Args:
    meta: of the checkpoint.
    c: filled.
    workdir: of the run, for the message.
    allow: keys, or prefixes of keys, that may differ; so may `c.allow`.
    advice: what to do if others differ.

  Raises:
    config.ConfigError: it was made with another config. Where one line has no
      room for all differences, they are printed on stderr first.
  """
  old = config.from_json(meta['config'])
  lines = config.diff(old, c, allow=(*allow, *c.allow))
  if not lines:
    return
  error = config.ConfigError(
    f'{workdir}: was made with another config: {"; ".join(lines)};'
    f' {advice}, or name the keys in --config.allow'
  )
  if not all(line in str(error) for line in lines):  # it was cut
    print('\n'.join(lines), file=sys.stderr)
  raise error
