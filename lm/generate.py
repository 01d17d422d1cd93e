"""Sampling from any model through `Model.start` and `Model.apply`."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lm import types


class Sampler(NamedTuple):
  """How the next token is drawn; hashable, so that it can be compiled in.

  Attributes:
    temperature: divides the logits; 0 takes the likeliest token.
    top_k: keeps the k likeliest tokens; 0 keeps all. Reference: Fan et al.
      2018, arXiv 1805.04833, section 5.1.
    top_p: keeps the smallest set of likeliest tokens whose mass reaches it.
      Reference: Holtzman et al. 2019, arXiv 1904.09751, section 3.1.
  """

  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0

  def check(self) -> 'Sampler':
    """Returns itself.

    Raises:
      ValueError: for a value outside its range.
    """
    if not 0 <= self.temperature < float('inf'):
      raise ValueError(f'temperature={self.temperature} must be 0 or more')
    if self.top_k < 0:
      raise ValueError(f'top_k={self.top_k} must be 0 (off) or more')
    if not 0 < self.top_p <= 1:
      raise ValueError(f'top_p={self.top_p} must be above 0 and at most 1')
    return self


def draw(rng: jax.Array, logits_BV: jax.Array, sampler: Sampler) -> jax.Array:
  """Draws one token a row: int32 [B]. Rows draw independently of each other."""
  if not sampler.temperature:
    return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
  logits_BV = logits_BV.astype(jnp.float32) / sampler.temperature
  V = logits_BV.shape[-1]
  if 0 < sampler.top_k < V:
    least_B1 = jax.lax.top_k(logits_BV, sampler.top_k)[0][:, -1:]
    logits_BV = jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)
  if sampler.top_p < 1:
    sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
    mass_BV = jax.nn.softmax(sorted_BV, axis=-1)
    # The mass before a token, so that the one that crosses top_p is kept.
    before_BV = jnp.cumsum(mass_BV, axis=-1) - mass_BV
    kept_BV = jnp.where(before_BV < sampler.top_p, sorted_BV, jnp.inf)
    least_B1 = jnp.min(kept_BV, axis=-1, keepdims=True)
    logits_BV = jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)
  # A key a row: what a row draws does not depend on how many others there are.
  keys_B = jax.vmap(partial(jax.random.fold_in, rng))(
    jnp.arange(len(logits_BV))
  )
  return jax.vmap(jax.random.categorical)(keys_B, logits_BV).astype(jnp.int32)


@partial(jax.jit, static_argnames=('model', 'sampler', 'length', 'stop'))
def generate(
  params: types.Params,
  batch: types.Batch,
  *,
  model: types.Model,
  sampler: Sampler,
  length: int,
  stop: int,
  rng: jax.Array,
) -> jax.Array:
  """Continues each row of a batch of prompts.

  Args:
    params: the model's parameters.
    batch: prompts padded on the right, as an objective's `prompt` makes them.
    model: compiled in; so are the sampler, `length` and `stop`.
    sampler: how to draw.
    length: tokens to generate at the most.
    stop: the id after which a row ends.
    rng: same key, same text.

  Returns:
    int32 [B, length]; from a row's first `stop` on, all are `stop`.
  """
  B, P = batch.tokens.shape
  cache = model.start(params, batch, P + length)
  out = model.apply(params, batch, cache=cache)
  counts_B = jnp.sum(batch.segments > 0, axis=1)
  logits_BV = jnp.take_along_axis(
    out.logits, (counts_B - 1)[:, None, None], axis=1
  )[:, 0]
  text_BL = jnp.full((B, length), stop, jnp.int32)

  def unfinished(carry):
    n, _, _, _, done_B = carry
    return (n < length) & ~jnp.all(done_B)

  def extend(carry):
    n, cache, logits_BV, text_BL, done_B = carry
    token_B = draw(jax.random.fold_in(rng, n), logits_BV, sampler)
    token_B = jnp.where(done_B, stop, token_B)
    text_BL = text_BL.at[:, n].set(token_B)
    one_B1 = jnp.ones((B, 1), jnp.int32)
    # Written to the slot after the longest prompt; positions go on from each
    # row's own length, and padded slots in between belong to segment 0.
    part = types.Batch(
      tokens=token_B[:, None],
      targets=token_B[:, None],
      weights=one_B1.astype(jnp.float32),
      positions=(counts_B + n)[:, None].astype(jnp.int32),
      segments=one_B1,
    )
    out = model.apply(params, part, cache=cache)
    done_B |= token_B == stop
    return n + 1, out.cache, out.logits[:, 0], text_BL, done_B

  done_B = jnp.zeros((B,), bool)
  carry = (jnp.zeros((), jnp.int32), out.cache, logits_BV, text_BL, done_B)
  return jax.lax.while_loop(unfinished, extend, carry)[3]
