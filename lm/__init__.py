"""lm: language-model pretraining as pure functions over plain trees.

    import lm

    c = lm.config.load('configs/gpt/tiny.py')
    state = lm.train.train(c, 'runs/a')

Start with types.py, then climb: config and tree; layers, loss, optim and
sharding; models and data; checkpoint; training and evals; train.

Submodules are imported when they are first named, so that `import lm` costs
nothing and a data worker never meets jax.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # editors see what `__getattr__` imports
  from lm import (
    checkpoint,
    config,
    corpus,
    data,
    errors,
    evals,
    evaluate,
    fit,
    inference,
    initial,
    interop,
    layers,
    loss,
    metrics,
    models,
    optim,
    plan,
    planning,
    predict,
    reporting,
    runtime,
    sample,
    serve,
    sharding,
    splitmix,
    sweep,
    sweeping,
    train,
    training,
    tree,
    types,
  )

__all__ = [
  'checkpoint',
  'config',
  'corpus',
  'data',
  'errors',
  'evals',
  'evaluate',
  'fit',
  'inference',
  'initial',
  'interop',
  'layers',
  'loss',
  'metrics',
  'models',
  'optim',
  'plan',
  'planning',
  'predict',
  'reporting',
  'runtime',
  'sample',
  'serve',
  'sharding',
  'splitmix',
  'sweep',
  'sweeping',
  'train',
  'training',
  'tree',
  'types',
]


def __getattr__(name: str) -> ModuleType:
  if name not in __all__:
    raise AttributeError(f'module lm has no attribute {name!r}')
  return importlib.import_module(f'lm.{name}')


def __dir__() -> list[str]:
  return __all__
