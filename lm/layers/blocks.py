"""The mlp and the residual block."""

from collections.abc import Callable, Sequence

from flax import linen as nn
import jax
import jax.numpy as jnp

from lm import types
from lm.layers import attention, linear


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

# Sharding rows of a block's kernels; a model adds its own.
AXES = (
  (r'(attention|cross)/q$', ('embed', 'heads', None)),
  (r'(attention|cross)/[kv]$', ('embed', 'kv_heads', None)),
  (r'(attention|cross)/o$', ('heads', None, 'embed')),
  (r'(attention|cross)/q_bias$', ('heads', None)),
  (r'(attention|cross)/[kv]_bias$', ('kv_heads', None)),
  (r'mlp/(up|gate)$', ('embed', 'mlp')),
  (r'mlp/down$', ('mlp', 'embed')),
  (r'mlp/(up|gate)_bias$', ('mlp',)),
)


class Mlp(nn.Module):
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
  kernel_init: nn.initializers.Initializer
  output_init: nn.initializers.Initializer
  dtype: str
  compute_dtype: str

  @nn.compact
  def __call__(
    self, x_BLD: jax.Array, view: attention.View | None = None
  ) -> tuple[jax.Array, dict[str, types.Metric]]:
    """Returns [B, L, D] and what was measured: nothing."""
    del view
    D, F = x_BLD.shape[-1], self.width

    def project(name, spec, x, init, shape):
      y = linear.contract(
        spec, x, self.param(name, init, shape), self.compute_dtype, self.dtype
      )
      if self.bias:
        bias = self.param(f'{name}_bias', nn.initializers.zeros, shape[-1:])
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


ORDERS = ('pre', 'post', 'both')


class Block(nn.Module):
  """Adds attention, cross-attention where there is some, and the mlp.

  Attributes:
    norm, attention, cross, mlp: build the parts, given `name`; `cross` None has
      none; `mlp` is a `Mlp` or a `moe.Mixture`.
    dropout: rate on each branch; on when the module has a 'dropout' rng.
    order: 'pre' normalizes what a branch reads (Xiong et al. 2020, arXiv
      2002.04745), 'post' the sum of stream and branch (Vaswani et al. 2017,
      arXiv 1706.03762, section 3.1), 'both' what a branch reads and what it
      gives (Gemma 2, arXiv 2408.00118, section 2).
  """

  norm: Callable[..., nn.Module]
  attention: Callable[..., nn.Module]
  mlp: Callable[..., nn.Module]
  dropout: float
  cross: Callable[..., nn.Module] | None = None
  order: str = 'pre'

  @nn.compact
  def __call__(self, x_BLD, view, cache):
    """Returns [B, L, D], the new cache and what the mlp measures, by name.

    `view` is an `attention.View`.
    `cache` is None or `{'k', 'v', 'index'}`, and `memory`, the cache of the
    cross-attention, where there is one.
    """
    memory = None if cache is None else cache.get('memory')
    aux = {}

    def attend(h_BLD):
      nonlocal cache
      h_BLD, cache = self.attention(name='attention')(h_BLD, view, cache)
      return h_BLD

    def think(h_BLD):
      nonlocal aux
      h_BLD, aux = self.mlp(name='mlp')(h_BLD, view)
      return h_BLD

    x_BLD = self._add('attention', x_BLD, attend)
    if self.cross is not None:
      cross = self.cross(name='cross')
      x_BLD = self._add('cross', x_BLD, lambda h: cross(h, view, memory)[0])
    x_BLD = self._add('mlp', x_BLD, think)
    return x_BLD, cache, aux

  def _add(self, name, x_BLD, branch):
    norm_name = f'{name}_norm'
    h_BLD = x_BLD
    if self.order != 'post':
      h_BLD = self.norm(name=norm_name)(x_BLD)
    h_BLD = branch(h_BLD)
    if self.order == 'both':
      h_BLD = self.norm(name=f'{name}_after_norm')(h_BLD)
    x_BLD += dropout(self, self.dropout, h_BLD)
    return self.norm(name=norm_name)(x_BLD) if self.order == 'post' else x_BLD


def dropout(
  module: nn.Module, rate: float, x: jax.Array, shared: Sequence[int] = ()
) -> jax.Array:
  """Zeroes a share of the entries when `module` was given a dropout rng.

  Args:
    module: whose rng is used.
    rate: the share.
    x: any array.
    shared: dimensions along which all entries share their fate.

  Reference: Srivastava et al. 2014, JMLR 15.
  """
  if not rate or not module.has_rng('dropout'):
    return x
  shape = [1 if i in shared else size for i, size in enumerate(x.shape)]
  keep = jax.random.bernoulli(module.make_rng('dropout'), 1 - rate, shape)
  return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))
