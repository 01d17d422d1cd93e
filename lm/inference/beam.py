"""Beam search: likely texts from any model, without drawing."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from lm import types
from lm.inference import generate


@partial(
  jax.jit, static_argnames=('model', 'beams', 'length', 'stop', 'penalty')
)
def search(
  params: types.Params,
  batch: types.Batch,
  *,
  model: types.Model,
  beams: int,
  length: int,
  stop: int,
  penalty: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
  """Searches for likely texts: keeps the `beams` best texts of each row.

  A text that has ended keeps its score and its place while others continue,
  until all have ended or have `length` tokens. The score of a text is the sum
  of log p over ((5 + tokens) / 6)^penalty.

  Args:
    params, batch, model, length, stop: see `generate.generate`.
    beams: W, how many texts to keep; 1 takes the likeliest token at each step.
    penalty: the exponent above; 0 compares sums, which favours short texts, and
      1 nearly compares means.

  Returns:
    tokens: int32 [B, W, length], the best text first; `stop` from its end on.
    scores: float32 [B, W].

  Reference: Wu et al. 2016, arXiv 1609.08144, section 7, without its term for
  coverage.
  """
  # Each text is a batch of one, so that `vmap` knows the axis of rows in the
  # cache of any model.
  single = jax.tree.map(lambda x: jnp.asarray(x)[:, None], batch)
  state = jax.vmap(
    lambda row: generate.prefill(
      params, row, model=model, length=length, stop=stop
    )
  )(single)
  B = len(batch.tokens)
  state = jax.tree.map(lambda x: jnp.repeat(x[:, None], beams, axis=1), state)
  # All beams are equal at first. If more than one counted, the best token would
  # be taken once for each of them.
  total_BW = jnp.where(jnp.arange(beams)[None] == 0, 0.0, -jnp.inf)
  total_BW = jnp.broadcast_to(total_BW, (B, beams))
  size_BW = jnp.zeros((B, beams), jnp.int32)

  def score(total, size):
    return total / ((5 + size) / 6) ** penalty

  def unfinished(carry):
    state, _, _ = carry
    return (state.count[0, 0] < length) & ~jnp.all(state.done)

  def step(carry):
    state, token_BW, total_BW, size_BW = _best_beams(
      *carry, stop=stop, score=score
    )
    out = jax.vmap(
      jax.vmap(
        lambda token, state: model.apply(
          params, generate.next_batch(token[None], state), cache=state.cache
        )
      )
    )(token_BW, state)
    n = state.count[0, 0]
    state = state._replace(
      count=state.count + 1,
      cache=out.cache,
      logits=out.logits[:, :, :, 0],
      tokens=state.tokens.at[:, :, 0, n].set(token_BW),
      done=state.done | (token_BW == stop)[..., None],
    )
    return state, total_BW, size_BW

  carry = (state, total_BW, size_BW)
  state, total_BW, size_BW = jax.lax.while_loop(unfinished, step, carry)
  scores_BW = score(total_BW, size_BW)
  order_BW = jnp.argsort(scores_BW, axis=1, descending=True)
  return (
    jnp.take_along_axis(state.tokens[:, :, 0], order_BW[..., None], axis=1),
    jnp.take_along_axis(scores_BW, order_BW, axis=1),
  )


def _best_beams(
  state: generate.State,
  total_BW: jax.Array,
  size_BW: jax.Array,
  *,
  stop: int,
  score: Callable[[jax.Array, jax.Array], jax.Array],
) -> tuple[generate.State, jax.Array, jax.Array, jax.Array]:
  """Chooses the W best ways to continue the W texts of each row by a token.

  Args:
    state: of all texts [B, W, 1, ...].
    total_BW: sums of log p.
    size_BW: numbers of tokens.
    stop: the id after which a text ends.
    score: `(sums, numbers) -> scores`.

  Returns:
    The states of the chosen texts, the new token of each, and their sums and
    numbers with it.
  """
  B, W = total_BW.shape
  V = state.logits.shape[-1]
  done_BW = state.done[..., 0]
  log_BWV = jax.nn.log_softmax(state.logits[:, :, 0], axis=-1)
  # A text that has ended has one continuation, which changes no score.
  ended_V = jnp.where(jnp.arange(V) == stop, 0.0, -jnp.inf)
  log_BWV = jnp.where(done_BW[..., None], ended_V[None, None], log_BWV)
  longer_BW = size_BW + ~done_BW
  sum_BWV = total_BW[..., None] + log_BWV
  _, best_BW = jax.lax.top_k(
    score(sum_BWV, longer_BW[..., None]).reshape(B, -1), W
  )
  parent_BW, token_BW = best_BW // V, (best_BW % V).astype(jnp.int32)

  def chosen(x):
    return jax.vmap(lambda x, parent: x[parent])(x, parent_BW)

  state, size_BW = jax.tree.map(chosen, (state, longer_BW))
  total_BW = jnp.take_along_axis(sum_BWV.reshape(B, -1), best_BW, axis=1)
  return state, token_BW, total_BW, size_BW
