"""Optimizers, their rules and schedules; see `optimizers.make`."""

from collections.abc import Mapping
from typing import Any

from lm import config, types
from lm.optim import transfer

# Sharding rows for optimizer state that does not have its parameter's shape;
# put them before a model's own table when sharding a TrainState. All other
# leaves have the shape and the path of their parameter, or rank 0. Adafactor's
# moments are vectors (or belong to norms and biases), as are NorMuon's and the
# norms of a sphere, so copies are cheap. SOAP's matrices [N, S, S] are larger
# than parameters: they are cut as the width is.
AXES = (
  (r'^opt_state/(.*/)?scale/(\d+/)?(v_row|v_col|v)/', ()),
  (r'^opt_state/(.*/)?ns_coeffs$', ()),
  (r'^opt_state/(.*/)?spikes/norms$', ()),
  (r'^opt_state/(.*/)?(neurons|radius)/', ()),
  (
    r'^opt_state/(.*/)?(factors|bases)/.*/(rows|columns)$',
    (None, None, 'embed'),
  ),
)


def fitted(spec: Mapping[str, Any], model: types.Model) -> dict[str, Any]:
  """Adds to an optimizer's spec what the model says of its parameters.

  Parameters that never learn (`Model.fixed`) are frozen. If the rule's
  `matrices` are None, or those of a sphere, they become the hidden ones of
  `Model.matrices`. Rates of a model that has grown (`Model.growth`) follow, see
  `lm.optim.transfer`.

  Raises:
    config.ConfigError: the rates of a model that has grown cannot follow.
  """
  spec = config.plain(spec)
  frozen = [spec.get('freeze', ''), *(f'^(?:{regex})' for regex in model.fixed)]
  if freeze := '|'.join(regex for regex in frozen if regex):
    spec['freeze'] = freeze
  rule = spec.get('rule', {})
  hidden = tuple((x.path, x.summed, x.out) for x in model.matrices if x.hidden)
  if 'matrices' in rule and rule['matrices'] is None:
    rule['matrices'] = hidden
  if spec.get('sphere') and spec.get('matrices') is None:
    spec['matrices'] = hidden
  return spec if model.growth == (1, 1) else transfer.fitted(spec, model)
