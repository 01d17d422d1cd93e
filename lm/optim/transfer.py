"""Transfer: learning rates that are tuned at one width and right at all.

A parameter has one of four classes, by which of its dimensions grow with the
width. The logical axes of its row say that, so a new part of a model needs
nothing of its own:

  input   finite fan-in, growing fan-out: embeddings, positions, convolutions,
          and all vectors as wide as the stream: norm scales and biases
  hidden  both grow: what a block multiplies with, experts among them
  output  growing fan-in, finite fan-out: head, router, classes
  fixed   nothing grows: biases of the vocabulary or of T5's buckets

`TABLE` has the factors, as powers of how many times wider a model is than its
base. Three things decide on a rate: initial values, the size of the rule's
update (`Rule.update_size`), and whether updates add up along a matrix: those of
Adam do, so that their effect grows with the fan-in; Muon's, orthogonal, do only
by its square root.

Weight decay keeps its strength, rate * decay, whatever the factor of the rate:
a factor f of the rate is one of 1 / f of the decay. And `eps` falls as the
gradients do: they are divided by their size before the rule sees them, which
for Adam is the same.

Depth: what a block adds is divided by the growth of the depth, see
`layers.transfer`, and so are the gradients of its parameters.

Reference: Yang et al. 2022, arXiv 2203.03466, table 3 (table 8 where the table
is tied) and appendix B; Everett et al. 2024, arXiv 2407.05872, section 3 and
table 1 (Adafactor, eps); Dey et al. 2025, arXiv 2505.01618, table 1 (depth,
eps, decay); Yang, Simon and Bernstein 2023, arXiv 2310.17813, condition 1
(Muon).
"""

from collections.abc import Mapping, Sequence
import dataclasses
import re
from types import MappingProxyType
from typing import Any, NamedTuple

import optax

from lm import config, initial, sharding, tree, types
from lm.optim import masks, rules, spheres

# Dimensions that grow with the width; one without a name after that of heads
# holds the features of a head, and grows with them.
_GROWING = ('embed', 'mlp', 'heads', 'kv_heads', sharding.WHOLE)
_HEADS = ('heads', 'kv_heads')

Classes = Sequence[tuple[str, str]]


class Powers(NamedTuple):
  """Powers of the growth of the width that a class of parameters has.

  Attributes:
    std: of initial values.
    gradient: of the size of gradients, and so of Adam's eps.
    rates: of learning rates, by `Rule.update_size`.
  """

  std: float
  gradient: float
  rates: Mapping[str, float]


def _rates(**powers: float) -> Mapping[str, float]:
  return MappingProxyType(powers)


TABLE: Mapping[str, Powers] = MappingProxyType(
  {
    'input': Powers(
      0.0,
      -1.0,
      _rates(
        element=0.0,
        gradient=1.0,
        relative=0.0,
        spectral=0.0,
        matched=0.0,
        angular=0.0,
      ),
    ),
    'hidden': Powers(
      -0.5,
      -1.0,
      _rates(
        element=-1.0,
        gradient=0.0,
        relative=-0.5,
        spectral=0.0,
        matched=-0.5,
        angular=0.0,
      ),
    ),
    'output': Powers(
      -1.0,
      0.0,
      _rates(
        element=-1.0,
        gradient=-1.0,
        relative=0.0,
        spectral=-0.5,
        matched=-1.0,
        angular=0.0,
      ),
    ),
    'fixed': Powers(
      0.0,
      0.0,
      _rates(
        element=0.0,
        gradient=0.0,
        relative=0.0,
        spectral=0.0,
        matched=0.0,
        angular=0.0,
      ),
    ),
  }
)


def classify(axes: Sequence[str | None], summed: int = 0, out: int = 0) -> str:
  """Finds the class of a parameter.

  Args:
    axes: logical axes of its last dimensions.
    summed, out: see `types.Matrix`; 0 for what no product reads. Of such a
      parameter with several dimensions the first is taken for its fan-in.
  """
  grows = [
    name in _GROWING or (name is None and n > 0 and axes[n - 1] in _HEADS)
    for n, name in enumerate(axes)
  ]
  if summed and out:
    grows = grows[-summed - out :]
    fan_in, fan_out = grows[:-out], grows[-out:]
  elif len(axes) > 1 and axes[0] not in _HEADS:
    fan_in, fan_out = grows[:1], grows[1:]  # of a table a row is read
  else:
    fan_in, fan_out = [], grows
  if any(fan_in):
    return 'hidden' if any(fan_out) else 'output'
  return 'input' if any(fan_out) else 'fixed'


def classes(model: types.Model) -> Classes:
  """Lists the classes of a model's parameters: regexes, first match wins."""
  matrices = {x.path: (x.summed, x.out) for x in model.matrices}
  return tuple(
    (regex, classify(axes, *matrices.get(regex, ())))
    for regex, axes in model.axes
  )


def drawn(parameters: Any, model: types.Model) -> Any:
  """Gives drawn parameters the deviations that a model's width asks for.

  Args:
    parameters: of the base's deviations, see `initial.Parameter`.
    model: with its growth.
  """
  found, width = classes(model), model.growth[0]

  def scaled(path: str, parameter: Any) -> Any:
    factor = width ** _powers(path, found).std
    return parameter if factor == 1 else _scaled(parameter, factor)

  return tree.map_paths(scaled, parameters)


def _scaled(parameter: Any, factor: float) -> Any:
  if isinstance(parameter, initial.Stacked):
    members = (_scaled(x, factor) for x in parameter.parameters)
    return initial.Stacked(tuple(members))
  law = parameter.distribution
  # Constants are 0 here, or belong to no matrix.
  if not isinstance(law, initial.Normal):
    return parameter
  law = initial.Normal(law.std * factor)
  return dataclasses.replace(parameter, distribution=law)


def fitted(spec: Mapping[str, Any], model: types.Model) -> dict[str, Any]:
  """Adds to an optimizer's spec the factors of a model's parameters.

  Raises:
    config.ConfigError: the optimizer has no rule, or has penalties.
  """
  if 'rule' not in spec:
    raise config.ConfigError(
      f'model.init.base_width: {spec.get("fn")} has no rule whose rates could '
      'follow the width: use lm.optim.optimizers:make'
    )
  for key in ('l1', 'l2'):
    if spec.get(key):
      raise config.ConfigError(
        f'model.init.base_width: optim.{key}={spec[key]} is a gradient, which '
        'does not transfer: set it to 0 and use optim.decay'
      )
  width, depth = model.growth
  rule = {
    'fn': 'lm.optim.transfer:rule',
    'rule': spec['rule'],
    'classes': classes(model),
    'width': width,
    'depth': depth,
    'sphere': spec.get('sphere', ''),
    'matrices': spec.get('matrices') or (),
  }
  return {**spec, 'rule': rule}


def rule(
  *,
  rule: Mapping[str, Any],
  classes: Classes,
  width: float,
  depth: float,
  sphere: str = '',
  matrices: masks.Matrices = (),
) -> rules.Rule:
  """Makes a rule whose updates have the size that the width asks for.

  `optim.fitted` names it in a spec; configs do not.

  Args:
    rule: spec of the rule.
    classes: of the parameters, see the function `classes`.
    width: how many times wider the model is than its base.
    depth: how many times deeper.
    sphere: see `optimizers.make`, as for matrices.

  Raises:
    ValueError: the rule does not say how large its updates are.
  """
  own = config.build(rule)
  if own.update_size is None:
    raise ValueError(
      f'{rule["fn"]} says no update_size, so that its rates cannot follow '
      'model.init.base_width: return Rule(..., update_size=...)'
    )
  matrices = tuple((regex, summed, out) for regex, summed, out in matrices)
  size = spheres.update_size(own.update_size, sphere, matrices)

  def gradient(path: str) -> float:
    if size(path) == 'gradient':
      return 1.0  # the table's rates are for gradients as they are
    inside = depth if masks.is_block(path) else 1.0
    return inside * width ** -_powers(path, classes).gradient

  def rate(path: str) -> float:
    inside = masks.is_block(path) and size(path) == 'gradient'
    power = _powers(path, classes).rates[size(path)]
    return (depth if inside else 1.0) * width**power

  def update(updates: Any, state: Any, params: Any = None) -> Any:
    return own.scale.update(masks.multiplied(updates, gradient), state, params)

  scale = optax.GradientTransformation(own.scale.init, update)
  return own._replace(scale=scale, factor=rate)


def _powers(path: str, classes: Classes) -> Powers:
  for regex, found in classes:
    if re.search(regex, path):
      return TABLE[found]
  raise ValueError(f'{path}: no row of the sharding table matches: add one')
