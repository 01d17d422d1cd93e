"""What a checkpoint says of its run: config, tokenizer and model, rebuilt."""

from collections.abc import Iterable
from pathlib import Path
import sys
from typing import Any, NamedTuple

from lm import checkpoint, config, types


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
