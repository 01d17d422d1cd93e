"""The context of an evaluator: the run that it evaluates."""

from typing import NamedTuple

import jax

from lm import types


class Context(NamedTuple):
  """The run that is evaluated, without its parameters.

  Attributes:
    model: the model, whose parameters the evaluator is called with.
    tokenizer: the run's tokenizer.
    mesh: the devices that hold the parameters.
  """

  model: types.Model
  tokenizer: types.Tokenizer
  mesh: jax.sharding.Mesh
