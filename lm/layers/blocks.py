"""The mlp and the pre-norm residual block."""

from collections.abc import Callable

from flax import linen as nn
import jax
import jax.numpy as jnp

from lm.layers import linear

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  # The tanh form is GPT-2's; the exact one differs by 1e-3.
  'gelu': lambda x: jax.nn.gelu(x, approximate=True),
  'swiglu': jax.nn.silu,
  'relu2': lambda x: jnp.square(jax.nn.relu(x)),
}


class Mlp(nn.Module):
  """Two layers, or three with a gate.

  Attributes:
    width: F.
    activation: 'gelu', 'relu2' (So et al. 2021, arXiv 2109.08668), or 'swiglu',
      which adds the gate (Shazeer 2020, arXiv 2002.05202).
    bias, kernel_init, output_init, dtype, operands: as in `Attention`.
  """

  width: int
  activation: str
  bias: bool
  kernel_init: nn.initializers.Initializer
  output_init: nn.initializers.Initializer
  dtype: str
  operands: str

  @nn.compact
  def __call__(self, x_BLD: jax.Array) -> jax.Array:
    D, F = x_BLD.shape[-1], self.width

    def project(name, spec, x, init, shape):
      y = linear.contract(
        spec, x, self.param(name, init, shape), self.operands, self.dtype
      )
      if self.bias:
        bias = self.param(f'{name}_bias', nn.initializers.zeros, shape[-1:])
        y += bias.astype(self.dtype)[None, None]
      return y

    into = 'BLD,DF->BLF'
    h_BLF = project('up', into, x_BLD, self.kernel_init, (D, F))
    activate = ACTIVATIONS[self.activation]
    if self.activation == 'swiglu':
      gate_BLF = project('gate', into, x_BLD, self.kernel_init, (D, F))
      h_BLF *= activate(gate_BLF)
    else:
      h_BLF = activate(h_BLF)
    return project('down', 'BLF,FD->BLD', h_BLF, self.output_init, (F, D))


class Block(nn.Module):
  """Adds attention and the mlp of the normalized stream to the stream.

  Attributes:
    norm, attention, mlp: build the parts, given `name`.
    dropout: rate on each branch; on when the module has a 'dropout' rng.

  Reference: pre-norm, Xiong et al. 2020, arXiv 2002.04745.
  """

  norm: Callable[..., nn.Module]
  attention: Callable[..., nn.Module]
  mlp: Callable[..., nn.Module]
  dropout: float

  @nn.compact
  def __call__(self, x_BLD, positions_BL, mask_B1LS, cache):
    mixed_BLD, cache = self.attention(name='attention')(
      self.norm(name='attention_norm')(x_BLD), positions_BL, mask_B1LS, cache
    )
    x_BLD += dropout(self, self.dropout, mixed_BLD)
    h_BLD = self.mlp(name='mlp')(self.norm(name='mlp_norm')(x_BLD))
    x_BLD += dropout(self, self.dropout, h_BLD)
    return x_BLD, cache


def dropout(module: nn.Module, rate: float, x: jax.Array) -> jax.Array:
  """Zeroes a share of the entries when `module` was given a dropout rng.

  Reference: Srivastava et al. 2014, JMLR 15.
  """
  if not rate or not module.has_rng('dropout'):
    return x
  keep = jax.random.bernoulli(module.make_rng('dropout'), 1 - rate, x.shape)
  return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))
