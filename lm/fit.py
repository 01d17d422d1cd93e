"""Fitting: models that are counted or solved for, without gradients.

  python -m lm.fit --config=configs/ngram/wikitext2.py --workdir=runs/kn5

Reads every document of the config's sources once and saves what `c.fit` makes
of them as the checkpoint of step `c.steps`. `lm.evaluate` and `lm.sample` work
with it as with any other run.
"""

import sys

from lm import config

# Checked before the imports below take their seconds, as in lm.train.
_ARGS = (
  config.parse(sys.argv[1:], __doc__ or '', 'lm.fit')
  if __name__ == '__main__'
  else None
)

from pathlib import Path

import jax.numpy as jnp

from lm import checkpoint, tree, types
from lm.data import shards
from lm.runtime import compilation_cache, devices, memory
from lm.training import setup


def fit(
  c: config.Config,
  workdir: str | Path,
  asked: config.Asked | None = None,
) -> types.TrainState:
  """Fits a model, unless its run has one already.

  Args:
    c: a config with the keys of `configs/base.py`; `c.fit` is the spec of a
      function `(documents, *, vocab, bos, ...) -> Params`. Documents count once
      each, whatever the weights of sources.
    workdir: the run's folder, made when missing.
    asked: what the program was asked for, for the run's record.

  Returns:
    The state, which is also the checkpoint.

  Raises:
    config.ConfigError: the config cannot be used, or another one was fitted in
      `workdir`.
    errors.Failure: workdir is locked, storage or checkpoints are bad.
  """
  c = setup.fill(c)
  workdir = Path(workdir)
  if c.fit is None:
    raise config.ConfigError(
      'fit: None, so this config trains by gradients: use lm.train'
    )
  # The model too: a wrong setting is an error now, and not after the fit.
  tokenizer, _ = checkpoint.tokenizer_and_model(c)
  data = setup.open_data(c, tokenizer)
  with checkpoint.Checkpointer(workdir) as checkpointer:
    if checkpoint.steps(workdir):
      meta = checkpoint.read_meta(workdir)
      checkpoint.check_same_config(
        meta, c, workdir, allow=('evals', 'evaluate')
      )
    else:
      files = setup.files(c, workdir, None, {})
      sources = [
        shards.load(c.data.sources[name].path, tokenizer)
        for name in sorted(c.data.sources)
      ]
      params = config.build(
        c.fit,
        documents=(
          source.document(n)
          for source in sources
          for n in range(source.manifest.documents)
        ),
        vocab=tokenizer.size,
        bos=tokenizer.bos,
      )
      state = types.TrainState(jnp.int32(c.steps), params, (), {})
      print(f'{workdir}: {tree.count(params):,} numbers')
      checkpointer.enclose(checkpoint.enclosed(c, workdir))
      checkpointer.preflight(state)
      setup.store(files, checkpointer, c, data.state(0), asked)
      meta = setup.meta(c, data, tokenizer, c.steps)
      checkpointer.save(c.steps, state, meta)
      checkpointer.wait()
    checkpoint.verify(workdir, c.steps)
    params = checkpoint.restore_params(workdir, c.steps)
  return types.TrainState(jnp.int32(c.steps), params, (), {})


def main(argv: list[str]) -> None:
  """Runs the program; `config.main` turns errors into exit codes."""
  c, workdir = _ARGS or config.parse(argv, __doc__ or '', 'lm.fit')
  memory.prepare()
  compilation_cache.prepare()
  devices.announce()
  fit(c, workdir, config.asked())


if __name__ == '__main__':
  config.main(main)
