"""A mixture of experts: mlps, of which each token reads a few."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from lm import config, types
from lm.layers import (
  activations,
  checks,
  dispatch,
  initializers,
  linear,
  parts,
  routing,
)
from lm.layers import mlp as mlp_lib

ROWS = (
  # No matrix in the sense of Muon: rows are scores, and small.
  parts.Row(r'router$', ('embed', None)),
  parts.Row(r'experts/(up|gate)$', ('expert', 'embed', 'mlp'), 1, 1),
  parts.Row(r'experts/down$', ('expert', 'mlp', 'embed'), 1, 1),
  parts.Row(r'shared/(up|gate)$', ('embed', 'mlp'), 1, 1),
  parts.Row(r'shared/down$', ('mlp', 'embed'), 1, 1),
)


def make(
  *,
  shared: parts.Shared,
  count: int,
  width: int | None = None,
  activation: str = 'swiglu',
  shared_experts: int = 0,
  capacity: float | None = None,
  router: Mapping[str, Any] | None = None,
) -> parts.Mlp:
  """Makes a mixture of experts.

  Args:
    shared: what the model's parts have in common.
    count: E.
    width: F of an expert; None is 4 D.
    activation: one of `activations.FUNCTIONS`.
    shared_experts: experts that all tokens read beside those they choose, one
      mlp so many times as wide. Reference: DeepSeekMoE, arXiv 2401.06066,
      section 3.2.
    capacity: None: every token reads all experts it chose. Otherwise an expert
      takes the first `capacity * K L / E` tokens of a row that chose it, and
      others lose it; E / K drops nothing. Earlier positions come first,
      whatever their rank of choice, so that none depends on a later one; in
      GShard (arXiv 2006.16668, algorithm 1) all first choices come before all
      second ones. A row's documents share its places, and each call with a
      cache counts anew: such a model does not compute the same when packed or
      cut otherwise.
    router: spec of `routing.router`; None is its defaults.

  Raises:
    ValueError: for settings that do not fit together.
  """
  how = routing.router() if router is None else config.build(router)
  F = 4 * shared.width if width is None else width
  checks.check_counts(count=count, width=F)
  checks.check_choices(activation=(activation, activations.FUNCTIONS))
  if how.top_k > count:
    raise ValueError(f'top_k={how.top_k} is more than count={count} experts')
  if how.normalize and how.top_k == 1 < count:
    raise ValueError(
      'top_k=1 with normalize gives each choice weight 1, from which a router '
      'learns nothing: set normalize=False'
    )
  if not shared_experts >= 0:
    raise ValueError(f'shared_experts={shared_experts} must be at least 0')
  if capacity is not None and not capacity > 0:
    raise ValueError(f'capacity={capacity} must be above 0')
  products = 3 if activation in activations.GATED else 2
  build = partial(
    Mixture,
    count=count,
    width=F,
    router=how,
    shared_experts=shared_experts,
    capacity=capacity,
    activation=activation,
    kernel_init=shared.kernel(),
    output_init=shared.output,
    dtype=shared.dtype,
    compute_dtype=shared.compute_dtype,
  )

  def flops(length: int) -> float:
    del length
    read = how.top_k + shared_experts
    return 2 * shared.width * (count + products * F * read)

  return parts.Mlp(build, ROWS, flops)


class Mixture(nn.Module):
  """Routes tokens to experts and adds up what these say.

  Experts are `mlp.Dense`s without biases. The router computes in float32:
  choices made in bfloat16 are unstable (Switch, section 2.4).

  Attributes:
    count, width, shared_experts, capacity: see `make`.
    router: see `routing.router`.
    activation, kernel_init, dtype, compute_dtype: see `mlp.Dense`.
    output_init: makes the initializer of output kernels from the number of
      their inputs.
  """

  count: int
  width: int
  router: routing.Router
  shared_experts: int
  capacity: float | None
  activation: str
  kernel_init: initializers.Initializer
  output_init: Callable[[int], initializers.Initializer]
  dtype: str
  compute_dtype: str

  @nn.compact
  def __call__(
    self, x_BLD: jax.Array, text: parts.Text
  ) -> tuple[jax.Array, dict[str, types.Metric]]:
    """Returns [B, L, D] and what `routing.measure` measures.

    Padding reads no routed expert and counts nowhere.
    """
    E, D, F = self.count, x_BLD.shape[-1], self.width
    how = self.router
    router_DE = self.param('router', self.kernel_init, (D, E))
    logits_BLE = linear.contract(
      'BLD,DE->BLE', x_BLD, router_DE, 'float32', 'float32'
    )
    scores_BLE = routing.SCORINGS[how.scoring](logits_BLE)
    bias_E = None
    if how.balance_bias:
      bias_E = self.param('router_bias', initializers.ZEROS, (E,))
    choices_BLK, weights_BLK = routing.choose(
      logits_BLE, scores_BLE, bias_E, how.top_k, how.normalize
    )
    live_BL = text.segments > 0
    # Past the last expert: chosen by nobody.
    choices_BLK = jnp.where(live_BL[..., None], choices_BLK, E)
    kernels = Kernels(
      count=E,
      width=F,
      gated=self.activation in activations.GATED,
      kernel_init=self.kernel_init,
      output_init=self.output_init(F),
      name='experts',
    )(D)
    y_BLD = dispatch.apply(
      x_BLD,
      choices_BLK,
      weights_BLK,
      kernels,
      activation=self.activation,
      capacity=self.capacity,
      dtype=self.dtype,
      compute_dtype=self.compute_dtype,
    )
    if self.shared_experts:
      common = mlp_lib.Dense(
        width=self.shared_experts * F,
        activation=self.activation,
        bias=False,
        kernel_init=self.kernel_init,
        output_init=self.output_init(self.shared_experts * F),
        dtype=self.dtype,
        compute_dtype=self.compute_dtype,
        name='shared',
      )
      y_BLD += common(x_BLD)[0]
    metrics = routing.measure(
      logits_BLE,
      scores_BLE,
      choices_BLK,
      live_BL,
      bias_E,
      how.balance_weight,
      how.z_weight,
    )
    return y_BLD, metrics


class Kernels(nn.Module):
  """Holds experts' kernels: `up`, `gate` [E, D, F] and `down` [E, F, D]."""

  count: int
  width: int
  gated: bool
  kernel_init: initializers.Initializer
  output_init: initializers.Initializer

  @nn.compact
  def __call__(self, inputs: int) -> dict[str, jax.Array]:
    into = self.count, inputs, self.width
    kernels = {'up': self.param('up', self.kernel_init, into)}
    if self.gated:
      kernels['gate'] = self.param('gate', self.kernel_init, into)
    shape = self.count, self.width, inputs
    return {**kernels, 'down': self.param('down', self.output_init, shape)}
