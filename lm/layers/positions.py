"""Rotary positions."""

import jax
import jax.numpy as jnp


def rope(x_BLNH: jax.Array, positions_BL: jax.Array, base: float) -> jax.Array:
  """Rotates pairs of features by an angle that grows with the position.

  Pairs feature h with h + H/2, as GPT-NeoX and Llama weights expect; the paper
  pairs neighbours, which is the same up to a permutation of features.

  Reference: Su et al. 2021, arXiv 2104.09864, section 3.2.2.
  """
  half = x_BLNH.shape[-1] // 2
  frequencies = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
  # Float32: an angle of 10,000 radians in bfloat16 is off by whole turns.
  angles_BL1h = (
    positions_BL[..., None, None].astype(jnp.float32)
    * (frequencies[None, None, None, :])
  )
  cos, sin = jnp.cos(angles_BL1h), jnp.sin(angles_BL1h)
  a, b = jnp.split(x_BLNH.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate(
    [a * cos - b * sin, b * cos + a * sin], axis=-1
  ).astype(x_BLNH.dtype)
