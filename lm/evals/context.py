"""The context of an evaluator: the run that it evaluates."""

from typing import NamedTuple

import jax

from lm import config, types
from lm.data import objectives


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


def check_scores(
  context: Context, params: types.Params, objective: objectives.Objective
) -> None:
  """Checks that a model can say how likely texts are, in an objective's way.

  Args:
    context: the run that is evaluated.
    params: of the model, or their shapes.
    objective: how texts become examples.

  Raises:
    config.ConfigError: the model is made for other examples; or the objective
      continues texts, and the model does not: it sees later tokens.
  """
  model, example = context.model, objectives.example(objective, 1)
  cause = 'its outputs are classes, not tokens'
  try:
    out = jax.eval_shape(model.apply, params, example)
    fits = out.logits.shape == (*example.targets.shape, context.tokenizer.size)
    if fits and objective.prompt is not None:
      jax.eval_shape(lambda p: model.start(p, example, 1), params)
  except ValueError as error:
    fits, cause = False, str(error)
  if not fits:
    raise config.ConfigError(
      f'this model cannot score texts with this objective ({cause}): give the '
      "evaluator the objective of the run's data, or leave it out"
    )
