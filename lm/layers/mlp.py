"""The mlp of a block: two products, or three with a gate."""

from collections.abc import Callable
from functools import partial

from flax import linen as nn
import jax
import jax.numpy as jnp

from lm import types
from lm.layers import checks, initializers, linear, parts


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
  """Computes the tanh form of GELU; the gradient keeps x alone.

  Autodiff keeps more: 1 to 2 % of a step of GPT-2 on an H200, and a tenth of
  its memory.

  Reference: Hendrycks and Gimpel 2016, arXiv 1606.08415, section 2.
  """
  return jax.nn.gelu(x, approximate=True)


def _gelu_backward(x, cotangent):
  # Or the compiler would keep what it has computed of x.
  x = jax.lax.optimization_barrier(x)
  return jax.vjp(jax.nn.gelu, x)[1](cotangent)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  # The tanh form is GPT-2's; the exact one, BERT's, differs by 1e-3.
  'gelu': gelu,
  'gelu_exact': lambda x: jax.nn.gelu(x, approximate=False),
  'relu': jax.nn.relu,
  'relu2': lambda x: jnp.square(jax.nn.relu(x)),
  'swiglu': jax.nn.silu,
  'geglu': gelu,
}
GATED = ('swiglu', 'geglu')

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
    activation: one of `ACTIVATIONS`.
    bias: adds a bias to each product.

  Raises:
    ValueError: for a setting that is not known or below 1.
  """
  F = 4 * shared.width if width is None else width
  checks.check_choices(activation=(activation, ACTIVATIONS))
  checks.check_counts(width=F)
  products = 3 if activation in GATED else 2
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
    activation: one of `ACTIVATIONS`: 'relu2' is So et al. 2021, arXiv
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
    activate = ACTIVATIONS[self.activation]
    if self.activation in GATED:
      gate_BLF = project('gate', into, x_BLD, self.kernel_init, (D, F))
      h_BLF *= activate(gate_BLF)
    else:
      h_BLF = activate(h_BLF)
    y_BLD = project('down', 'BLF,FD->BLD', h_BLF, self.output_init, (F, D))
    return y_BLD, {}
