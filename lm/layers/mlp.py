"""The mlp of a block: two products, or three with a gate."""

from functools import partial

from flax import linen as nn
import jax

from lm import types
from lm.layers import activations, checks, initializers, linear, parts

ROWS = (
  parts.Row(r'(up|gate)$', ('embed', 'mlp'), 1, 1),
  parts.Row(r'down$', ('mlp', 'embed'), 1, 1),
  parts.Row(r'(up|gate)_bias$', ('mlp',)),
)


def make(
  *,
  shared: parts.Shared,
  width: int | None = None,
  activation: str = 'gelu',
  bias: bool = False,
) -> parts.Mlp:
  """Makes an mlp.

  Args:
    shared: what the model's parts have in common.
    width: F; None is 4 D.
    activation: one of `activations.FUNCTIONS`.
    bias: adds a bias to each product.

  Raises:
    ValueError: for a setting that is not known or below 1.
  """
  F = 4 * shared.width if width is None else width
  checks.check_choices(activation=(activation, activations.FUNCTIONS))
  checks.check_counts(width=F)
  products = 3 if activation in activations.GATED else 2
  build = partial(
    Dense,
    width=F,
    activation=activation,
    bias=bias,
    kernel_init=shared.kernel(),
    output_init=shared.output(F),
    dtype=shared.dtype,
    compute_dtype=shared.compute_dtype,
  )

  def flops(length: int) -> float:
    del length
    return 2 * products * shared.width * F

  return parts.Mlp(build, ROWS, flops)


class Dense(nn.Module):
  """Two layers, or three with a gate.

  Attributes:
    width: F.
    activation: one of `activations.FUNCTIONS`: 'relu2' is So et al. 2021, arXiv
      2109.08668; 'swiglu' and 'geglu' add the gate, Shazeer 2020, arXiv
      2002.05202.
    bias, kernel_init, output_init, dtype, compute_dtype: as in `Attention`.
  """

  width: int
  activation: str
  bias: bool
  kernel_init: initializers.Initializer
  output_init: initializers.Initializer
  dtype: str
  compute_dtype: str

  @nn.compact
  def __call__(
    self, x_BLD: jax.Array, text: parts.Text | None = None
  ) -> tuple[jax.Array, dict[str, types.Metric]]:
    """Returns [B, L, D], and an empty dict: nothing is measured."""
    del text
    D, F = x_BLD.shape[-1], self.width

    def project(name, spec, x, init, shape):
      y = linear.contract(
        spec, x, self.param(name, init, shape), self.compute_dtype, self.dtype
      )
      if self.bias:
        bias = self.param(f'{name}_bias', initializers.ZEROS, shape[-1:])
        y += bias.astype(self.dtype)[None, None]
      return y

    into = 'BLD,DF->BLF'
    h_BLF = project('up', into, x_BLD, self.kernel_init, (D, F))
    activate = activations.FUNCTIONS[self.activation]
    if self.activation in activations.GATED:
      gate_BLF = project('gate', into, x_BLD, self.kernel_init, (D, F))
      h_BLF *= activate(gate_BLF)
    else:
      h_BLF = activate(h_BLF)
    y_BLD = project('down', 'BLF,FD->BLD', h_BLF, self.output_init, (F, D))
    return y_BLD, {}
