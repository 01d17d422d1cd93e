"""What a checkpoint says of its run: config, tokenizer and model, rebuilt."""

from collections.abc import Iterable
from pathlib import Path
import sys
from typing import Any, NamedTuple

import numpy as np

from lm import checkpoint, config, tree, types

# What may differ between a checkpoint and the config that resumes it: where and
# how often, never what is computed. `allow` names more.
FREE = (
  'allow',
  'early',
  'eval_every',
  'evals',
  'evaluate',
  'keep',
  'keep_every',
  'log_every',
  'max_skipped',
  'mesh',
  'plan',
  'prefetch',
  'save_every',
  'sharding',
  'threads',
)


class Saved(NamedTuple):
  """A run's config, and what it builds."""

  config: config.Config
  tokenizer: types.Tokenizer
  model: types.Model


def build(workdir: str | Path, step: int | None = None) -> Saved:
  """Rebuilds a run's tokenizer and model from a checkpoint; None: the newest.

  Raises:
    config.ConfigError: the config cannot be built, or the tokenizer is not the
      one that the run was trained with.
    errors.Failure: there is no sound checkpoint.
  """
  meta = checkpoint.read_meta(workdir, step)
  c = config.from_json(meta['config'])
  tokenizer = config.build(c.tokenizer)
  if tokenizer.sha256 != meta['tokenizer']:
    raise config.ConfigError(
      f'{workdir}: trained with tokenizer {meta["tokenizer"][:12]}, and its'
      f' tokenizer is {tokenizer.sha256[:12]} now: bring that file back'
    )
  return Saved(c, tokenizer, config.build(c.model, vocab=tokenizer.size))


def parameters(
  workdir: str | Path,
  paths: Iterable[str],
  like: types.Params,
  tokenizer: types.Tokenizer,
) -> dict[str, np.ndarray]:
  """Reads what another run starts from, of a run's newest sound checkpoint.

  Args:
    workdir: of the run.
    paths: 'theirs=ours' each: the parameters at or below the path `theirs` of
      the run become those at or below `ours`; 'x' is 'x=x', and an empty path
      is the whole tree. None at all take it as it is.
    like: shapes of the parameters that the other run has.
    tokenizer: the other run's.

  Returns:
    Arrays by path, as in `like`.

  Raises:
    config.ConfigError: one side lacks a parameter that the other has there, or
      has it in another shape or type; a parameter is taken twice; or a table
      of words is of another tokenizer.
    errors.Failure: there is no sound checkpoint.
  """
  have = dict(tree.paths(checkpoint.restore_params(workdir)))
  want = dict(tree.paths(like))
  found: dict[str, np.ndarray] = {}
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
    taken, needed = (
      {f'{ours}/{rest}'.strip('/'): leaf for rest, leaf in parts.items()}
      for parts in (_below(have, theirs), _below(want, ours))
    )
    if lines := tree.diff(taken, needed):
      raise config.ConfigError(
        f'{what} does not fit the model: {"; ".join(lines)}'
      )
    if twice := sorted(found.keys() & taken.keys()):
      raise config.ConfigError(f'{what}: {twice[0]} is taken twice: remove one')
    found |= taken
  theirs = checkpoint.read_meta(workdir)['tokenizer']
  tables = [path for path in found if path.endswith('embed/table')]
  if tables and theirs != tokenizer.sha256:
    raise config.ConfigError(
      f'init_from={workdir}: the words of its {tables[0]} are of tokenizer '
      f'{theirs[:12]}, and this one is {tokenizer.sha256[:12]}: use that, or '
      'leave the table out of init_paths'
    )
  return found


def _below(flat: dict[str, Any], path: str) -> dict[str, Any]:
  """Picks what lies at or below a path, by the rest of its own path."""
  return {
    key[len(path) :].strip('/'): leaf
    for key, leaf in flat.items()
    if not path or f'{key}/'.startswith(f'{path}/')
  }


def check_same(
  meta: dict[str, Any], c: config.Config, workdir: Path, allow: Iterable[str]
) -> None:
  """Checks that a checkpoint was made with a config.

  Args:
    meta: of the checkpoint.
    c: filled.
    workdir: where it lies, for the message.
    allow: keys, or prefixes of keys, that may differ; so may `c.allow`.

  Raises:
    config.ConfigError: it was made with another; where the line has no room for
      all differences, they are printed before.
  """
  old = config.from_json(meta['config'])
  lines = config.diff(old, c, allow=(*allow, *c.allow))
  if not lines:
    return
  error = config.ConfigError(
    f'{workdir}: was made with another config: {"; ".join(lines)}; use'
    ' another --workdir, or name the keys in --config.allow'
  )
  if not all(line in str(error) for line in lines):  # it had no room
    print('\n'.join(lines), file=sys.stderr)
  raise error
