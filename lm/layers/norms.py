"""Normalization of each token's vector: LayerNorm and RMSNorm."""

from collections.abc import Callable
from functools import partial

from flax import linen as nn
import jax
import jax.numpy as jnp

from lm.layers import checks, initializers


class RMSNorm(nn.Module):
  """Divides by the root mean square, and scales.

  Attributes:
    epsilon: added to the mean square, so that a row of zeros is not divided by
      zero. 1e-6 is the value of Llama and Qwen.
    offset: added to the scale, which then starts at 1 - offset. Gemma's weights
      need 1.

  Reference: Zhang and Sennrich 2019, arXiv 1910.07467.
  """

  epsilon: float = 1e-6
  offset: float = 0.0

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    init = initializers.constant(1 - self.offset)
    scale = self.param('scale', init, x.shape[-1:]) + self.offset
    return _normalized(x, scale, None, self.epsilon, False)


class LayerNorm(nn.Module):
  """Subtracts the mean, divides by the standard deviation, scales and shifts.

  Attributes:
    epsilon: added to the variance; 1e-5 is the value of GPT-2.
    bias: whether to add a learned shift.

  Reference: Ba et al. 2016, arXiv 1607.06450.
  """

  epsilon: float = 1e-5
  bias: bool = True

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    scale = self.param('scale', initializers.ONES, x.shape[-1:])
    bias = None
    if self.bias:
      bias = self.param('bias', initializers.ZEROS, x.shape[-1:])
    return _normalized(x, scale, bias, self.epsilon, True)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _normalized(x, scale, bias, epsilon, centered):
  """Normalizes rows, with a gradient that is written by hand.

  It keeps `x` and two numbers a row for the backward pass. Autodiff keeps more:
  on a GPU it writes a float32 array as large as `x` for the gradient of the
  scale, which took 2 % of a step of GPT-2 on an H200.
  """
  return _forward(x, scale, bias, epsilon, centered)[0]


def _forward(x, scale, bias, epsilon, centered):
  # Float32, since the mean of 4,096 bfloat16 squares loses its last 6 bits. The
  # variance takes a second pass, since mean(x^2) - mean(x)^2 cancels when the
  # mean is large.
  wide = x.astype(jnp.float32)
  mean = jnp.zeros((*x.shape[:-1], 1))
  if centered:
    mean = jnp.mean(wide, axis=-1, keepdims=True)
    wide -= mean
  square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
  factor = jax.lax.rsqrt(square + epsilon)
  wide *= factor
  wide *= _broadcast(scale, x)
  if bias is not None:
    wide += _broadcast(bias, x)
  return wide.astype(x.dtype), (x, scale, bias, mean, factor)


def _backward(epsilon, centered, residuals, cotangent):
  del epsilon
  x, scale, bias, mean, factor = residuals
  # Without a barrier a GPU's compiler computes the means of all rows again, and
  # writes the normalized rows in float32 on the way.
  x, mean, factor = jax.lax.optimization_barrier((x, mean, factor))
  wide = (x.astype(jnp.float32) - mean) * factor
  cotangent = cotangent.astype(jnp.float32)

  def summed(gradient, like):
    rows = tuple(range(x.ndim - 1))
    return jnp.sum(gradient, axis=rows).astype(like.dtype)

  dscale = summed(cotangent * wide, scale)
  dbias = None if bias is None else summed(cotangent, bias)
  cotangent *= _broadcast(scale, x)
  # Normalizing removes from the gradient what points along the row, since a
  # longer row gives the same result; centering removes the mean.
  dx = cotangent - wide * jnp.mean(cotangent * wide, axis=-1, keepdims=True)
  if centered:
    dx -= jnp.mean(cotangent, axis=-1, keepdims=True)
  return (dx * factor).astype(x.dtype), dscale, dbias


_normalized.defvjp(_forward, _backward)


def _broadcast(vector, x):
  # Explicit, because implicit rank promotion is an error in the tests.
  return vector.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))


def rmsnorm(
  *, epsilon: float = 1e-6, offset: float = 0.0
) -> Callable[..., nn.Module]:
  """Makes a builder of `RMSNorm`, given `name`."""
  checks.check_above_zero(epsilon=epsilon)
  return partial(RMSNorm, epsilon=epsilon, offset=offset)


def layernorm(
  *, epsilon: float = 1e-5, bias: bool = True
) -> Callable[..., nn.Module]:
  """Makes a builder of `LayerNorm`, given `name`."""
  checks.check_above_zero(epsilon=epsilon)
  return partial(LayerNorm, epsilon=epsilon, bias=bias)
