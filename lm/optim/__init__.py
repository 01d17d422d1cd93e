"""Optimizers and schedules; `fn='lm.optim.optimizers:adamw'` in a config."""

from collections.abc import Mapping, Sequence
from typing import Any

# Sharding rows for optimizer state that does not have its parameter's shape;
# put them before a model's own table when sharding a TrainState. All other
# leaves have the shape and the path of their parameter, or rank 0. Adafactor's
# moments are vectors (or belong to norms and biases), so copies are cheap.
AXES = (
  (r'^opt_state/(.*/)?scale/(\d+/)?(v_row|v_col|v)/', ()),
  (r'^opt_state/(.*/)?ns_coeffs$', ()),
)


def holding(spec: Mapping[str, Any], fixed: Sequence[str]) -> dict[str, Any]:
  """Adds `Model.fixed` to what an optimizer's spec freezes."""
  held = [spec.get('freeze', ''), *(f'^(?:{regex})' for regex in fixed)]
  freeze = '|'.join(regex for regex in held if regex)
  return {**spec, 'freeze': freeze} if freeze else dict(spec)
