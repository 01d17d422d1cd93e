"""Optimizers and schedules; `fn='lm.optim.optimizers:adamw'` in a config."""

from collections.abc import Mapping
from typing import Any

from lm import types

# Sharding rows for optimizer state that does not have its parameter's shape;
# put them before a model's own table when sharding a TrainState. All other
# leaves have the shape and the path of their parameter, or rank 0. Adafactor's
# moments are vectors (or belong to norms and biases), so copies are cheap.
AXES = (
  (r'^opt_state/(.*/)?scale/(\d+/)?(v_row|v_col|v)/', ()),
  (r'^opt_state/(.*/)?ns_coeffs$', ()),
)


def fitted(spec: Mapping[str, Any], model: types.Model) -> dict[str, Any]:
  """Adds to an optimizer's spec what the model says of its parameters.

  What never learns (`Model.fixed`) is frozen; `matrices` None becomes
  the hidden ones of `Model.matrices`.
  """
  spec = dict(spec)
  held = [spec.get('freeze', ''), *(f'^(?:{regex})' for regex in model.fixed)]
  if freeze := '|'.join(regex for regex in held if regex):
    spec['freeze'] = freeze
  if 'matrices' in spec and spec['matrices'] is None:
    spec['matrices'] = tuple(
      (x.path, x.summed, x.out) for x in model.matrices if x.hidden
    )
  return spec
