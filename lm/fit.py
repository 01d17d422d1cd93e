"""Fitting a model by counting instead of gradients: n-grams.

  python -m lm.fit --config=configs/ngram/wikitext2.py --workdir=runs/kn5

Reads every document of the config's sources once and saves what `c.fit` makes
of them as the checkpoint of step `c.steps`. `lm.evaluate` and `lm.sample` then
work as for any other run.
"""

import sys

from lm import config

# Checked before the imports below take their seconds, as in lm.train.
_ARGS = (
  config.parse(sys.argv[1:], __doc__ or '') if __name__ == '__main__' else None
)

from pathlib import Path

import jax.numpy as jnp

from lm import checkpoint, tree, types
from lm.data import shards
from lm.runtime import devices, memory


def fit(c: config.Config, workdir: str | Path) -> types.TrainState:
  """Fits a model, or finds that it is done.

  Args:
    c: as `configs/base.py`; `c.fit` is the spec of a function `(documents, *,
      vocab, bos, ...) -> Params`. Documents count once each, whatever the
      weights of sources.
    workdir: made when missing.

  Returns:
    The state, which is also the checkpoint.

  Raises:
    config.ConfigError: the config cannot be used, or another one was fitted in
      `workdir`.
    errors.Failure: workdir is locked, storage or checkpoints are bad.
  """
  c = config.fill(c, given={'data': ('position',)})
  workdir = Path(workdir)
  if c.fit is None:
    raise config.ConfigError(
      'fit: None, so this config trains by gradients: use lm.train'
    )
  tokenizer = config.build(c.tokenizer)
  config.build(c.model, vocab=tokenizer.size)  # a wrong setting is told at once
  data = config.build(
    c.data, tokenizer=tokenizer, seed=c.seed, batch_size=c.batch_size
  )
  with checkpoint.Checkpointer(workdir) as saver:
    if checkpoint.steps(workdir):
      meta = checkpoint.read_meta(workdir)
      checkpoint.check_same_config(
        meta, c, workdir, allow=('evals', 'evaluate')
      )
    else:
      config.store(c, workdir / 'config.json')
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
      saver.preflight(state)
      meta = {
        'config': config.to_json(c),
        'data': data.state(c.steps),
        'diary': {},
        'tokenizer': tokenizer.sha256,
      }
      saver.save(c.steps, state, meta)
      saver.wait()
    checkpoint.verify(workdir, c.steps)
    params = checkpoint.restore_params(workdir, c.steps)
  return types.TrainState(jnp.int32(c.steps), params, (), {})


def main(argv: list[str]) -> None:
  """Runs the program; `config.main` turns errors into exit codes."""
  c, workdir = _ARGS or config.parse(argv, __doc__ or '')
  memory.prepare()
  devices.announce()
  fit(c, workdir)


if __name__ == '__main__':
  config.main(main)
