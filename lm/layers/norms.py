"""LayerNorm and RMSNorm."""

from collections.abc import Callable
from functools import partial

from flax import linen as nn
import jax
import jax.numpy as jnp


class RMSNorm(nn.Module):
  """Divides by the root mean square and scales.

  Attributes:
    epsilon: added to the mean square. 1e-6 is Llama's and Qwen's; without any,
      a row of zeros would be divided by nothing.
    offset: added to the scale, which then starts at 1 - offset; Gemma's
      weights are made for 1.

  Reference: Zhang and Sennrich 2019, arXiv 1910.07467.
  """

  epsilon: float = 1e-6
  offset: float = 0.0

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    init = nn.initializers.constant(1 - self.offset)
    scale = self.param('scale', init, x.shape[-1:]) + self.offset
    # Float32: the mean of 4,096 bfloat16 squares loses its last 6 bits.
    wide = x.astype(jnp.float32)
    mean = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    wide *= jax.lax.rsqrt(mean + self.epsilon)
    return (wide * _broadcast(scale, x)).astype(x.dtype)


class LayerNorm(nn.Module):
  """Subtracts the mean, divides by the deviation, scales and shifts.

  Attributes:
    epsilon: added to the variance; 1e-5 is GPT-2's.
    bias: whether to shift.

  Reference: Ba et al. 2016, arXiv 1607.06450.
  """

  epsilon: float = 1e-5
  bias: bool = True

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    scale = self.param('scale', nn.initializers.ones, x.shape[-1:])
    # Float32 for the same reason as above; the two-pass variance because
    # mean(x^2) - mean(x)^2 cancels when the mean is large.
    wide = x.astype(jnp.float32)
    wide -= jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    wide *= jax.lax.rsqrt(variance + self.epsilon)
    wide *= _broadcast(scale, x)
    if self.bias:
      bias = self.param('bias', nn.initializers.zeros, x.shape[-1:])
      wide += _broadcast(bias, x)
    return wide.astype(x.dtype)


def _broadcast(vector, x):
  # Explicit, because implicit rank promotion is an error in the tests.
  return vector.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))


def make(
  name: str, *, epsilon: float | None, offset: float = 0.0, bias: bool = True
) -> Callable[..., nn.Module]:
  """Chooses a norm; the result builds a module, given `name`.

  Args:
    name: 'layernorm' or 'rmsnorm'.
    epsilon: None is the norm's own default.
    offset: of RMSNorm.
    bias: of LayerNorm.

  Raises:
    ValueError: for another name.
  """
  given = {} if epsilon is None else {'epsilon': epsilon}
  if name == 'rmsnorm':
    return partial(RMSNorm, offset=offset, **given)
  if name == 'layernorm':
    return partial(LayerNorm, bias=bias, **given)
  raise ValueError(f'norm={name!r} is not one of layernorm, rmsnorm')
