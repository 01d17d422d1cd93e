"""lm: language-model pretraining as pure functions over plain trees.

Start with types.py, then climb: config and tree; layers, loss, optim and
sharding; models and data; step, checkpoint and generate; evals and log; train.

    import lm

    model = lm.config.build(c.model, vocab=tokenizer.size)

Submodules are imported when they are first named, so that `import lm` costs
nothing and a data worker never meets jax.
"""

import importlib
import pkgutil
from types import ModuleType


def __getattr__(name: str) -> ModuleType:
  if name not in __dir__():
    raise AttributeError(f'module lm has no attribute {name!r}')
  return importlib.import_module(f'lm.{name}')


def __dir__() -> list[str]:
  return sorted(m.name for m in pkgutil.iter_modules(__path__))
