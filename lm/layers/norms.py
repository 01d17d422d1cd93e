"""LayerNorm and RMSNorm."""

from flax import linen as nn
import jax
import jax.numpy as jnp


class RMSNorm(nn.Module):
  """Divides by the root mean square and scales.

  Reference: Zhang and Sennrich 2019, arXiv 1910.07467.
  """

  # Llama's and Qwen's value; below it a row of float32 zeros would be divided
  # by nearly nothing in the backward pass.
  epsilon: float = 1e-6

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    scale = self.param('scale', nn.initializers.ones, x.shape[-1:])
    # Float32: the mean of 4,096 bfloat16 squares loses its last 6 bits.
    wide = x.astype(jnp.float32)
    mean = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    wide *= jax.lax.rsqrt(mean + self.epsilon)
    return (wide * _broadcast(scale, x)).astype(x.dtype)


class LayerNorm(nn.Module):
  """Subtracts the mean, divides by the deviation, scales and shifts.

  Attributes:
    bias: whether to shift.

  Reference: Ba et al. 2016, arXiv 1607.06450.
  """

  bias: bool = True
  epsilon: float = 1e-5  # GPT-2's value

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
