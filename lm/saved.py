"""What a checkpoint says of its run: config, tokenizer and model, rebuilt."""

from pathlib import Path
from typing import NamedTuple

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
