"""How a step is computed, beside the model and its optimizer."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax

from lm import types
from lm.training import deterministic, privacy, step


class Settings(NamedTuple):
  """How a step is computed, beside the model and its optimizer.

  Attributes:
    loss: see `step.train_step`.
    microbatches: parts of the batch that are computed one after another.
    numerics: 'deterministic' gives the same bits on 1, 2, 4 or more devices of
      one kind, up to `logical_shards`, and for any number of microbatches, see
      `lm.training.deterministic`; 'fast' does not.
    logical_shards: parts that a deterministic batch is cut into.
    private: how gradients are made private; None: they are not.
    freeze: regex of the parameters that the optimizer leaves alone beside
      `Model.fixed`; '': none.
  """

  loss: step.Loss = step.DEFAULT
  microbatches: int = 1
  numerics: str = 'fast'
  logical_shards: int = 8
  private: privacy.Privacy | None = None
  freeze: str = ''


def choose(
  settings: Settings,
  *,
  model: types.Model,
  example: types.Batch,
  mesh: jax.sharding.Mesh,
) -> Callable[..., Any]:
  """Chooses the step that settings ask for, and binds all that is constant."""
  common = {'model': model, 'loss': settings.loss}
  numerics, private = settings.numerics, settings.private
  if numerics not in ('fast', 'deterministic'):
    raise ValueError(
      f"numerics={numerics!r} is neither 'fast' nor 'deterministic'"
    )
  if model.compares_rows and (
    settings.microbatches > 1 or numerics == 'deterministic' or private
  ):
    raise ValueError(
      'the model compares the rows of a batch with each other: set'
      " microbatches=1, numerics='fast' and no privacy"
    )
  if private is not None:
    if numerics == 'deterministic':
      raise ValueError("privacy: not with numerics='deterministic': use 'fast'")
    if private.expected is None:
      raise ValueError(
        'privacy: each record has to be drawn by itself: set data.expected'
      )
    return partial(
      step.private_step,
      private=private,
      microbatches=settings.microbatches,
      **common,
    )
  if numerics == 'deterministic':
    shards = settings.logical_shards
    deterministic.check(mesh, len(example.tokens), shards)
    return partial(step.deterministic_step, shards=shards, mesh=mesh, **common)
  return partial(step.train_step, microbatches=settings.microbatches, **common)
