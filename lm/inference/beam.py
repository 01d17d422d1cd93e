"""Beam search: likely texts from any model, without drawing."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lm import types
from lm.inference import generate


class Held(NamedTuple):
  """Texts that have ended, of each row the W best.

  Attributes:
    tokens: int32 [B, W, L], the best text first.
    scores: float32 [B, W]; -inf where a row has fewer texts.
  """

  tokens: jax.Array
  scores: jax.Array


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
  stop: generate.Stop,
  penalty: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
  """Searches for likely texts: the `beams` best texts of each row.

  At each step the W best of all continuations are looked at. Those that end are
  held apart, so that no unfinished text can push them out. The W best of those
  that do not end are continued. A row is done when it holds W texts, none of
  which any continuation could beat; at `length` tokens all texts end. The score
  of a text is the sum of log p over ((5 + tokens) / 6)^penalty.

  Args:
    params, batch, model, length, stop: see `generate.generate`.
    beams: W; 1 takes the likeliest token at each step if the penalty is 0.
    penalty: the exponent above; 0 compares sums, which favours short texts, and
      1 nearly compares means.

  Returns:
    tokens: int32 [B, W, length], the best text first; after the token
      that ends a text, the first id of `stop`.
    scores: float32 [B, W]; -inf where there are fewer texts than beams.

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
  held = Held(state.tokens[:, :, 0], jnp.full((B, beams), -jnp.inf))

  def score(total, size):
    return total / ((5 + size) / 6) ** penalty

  def unfinished(carry):
    state, total_BW, held = carry
    n = state.count[0, 0]
    # Sums only fall, and of an equal sum the longest or the shortest text has
    # the best score, whatever the sign of the penalty.
    best_BW = jnp.maximum(score(total_BW, n + 1), score(total_BW, length))
    done_B = jnp.max(best_BW, axis=1) <= jnp.min(held.scores, axis=1)
    return (n < length) & ~jnp.all(done_B)

  def step(carry):
    state, total_BW, held = carry
    n = state.count[0, 0]
    log_BWV = jax.nn.log_softmax(state.logits[:, :, 0], axis=-1)
    sum_BWV = total_BW[..., None] + log_BWV
    best_BW, parent_BW, token_BW = _best(sum_BWV)
    ends_BW = generate.is_end(token_BW, stop) | (n + 1 == length)
    held = _hold(
      held,
      _extended(state, parent_BW, token_BW).tokens[:, :, 0],
      jnp.where(ends_BW, score(best_BW, n + 1), -jnp.inf),
    )
    ended_V = generate.is_end(jnp.arange(sum_BWV.shape[-1]), stop)
    total_BW, parent_BW, token_BW = _best(
      jnp.where(ended_V[None, None], -jnp.inf, sum_BWV)
    )
    state = _extended(state, parent_BW, token_BW)
    out = jax.vmap(
      jax.vmap(
        lambda token, state: model.apply(
          params, generate.next_batch(token[None], state), cache=state.cache
        )
      )
    )(token_BW, state)
    state = state._replace(
      count=state.count + 1, cache=out.cache, logits=out.logits[:, :, :, 0]
    )
    return state, total_BW, held

  carry = (state, total_BW, held)
  _, _, held = jax.lax.while_loop(unfinished, step, carry)
  return held.tokens, held.scores


def _best(sum_BWV: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Finds the W likeliest ways to continue the W texts of a row by a token.

  Returns:
    Their sums of log p, the numbers of the texts, and the tokens: [B, W] each.
  """
  B, W, V = sum_BWV.shape
  best_BW, at_BW = jax.lax.top_k(sum_BWV.reshape(B, W * V), W)
  return best_BW, at_BW // V, (at_BW % V).astype(jnp.int32)


def _extended(
  state: generate.State, parent_BW: jax.Array, token_BW: jax.Array
) -> generate.State:
  """Takes the states of some texts [B, W, 1, ...] and adds a token to each."""
  state = jax.tree.map(
    lambda x: jax.vmap(lambda x, parent: x[parent])(x, parent_BW), state
  )
  n = state.count[0, 0]
  return state._replace(tokens=state.tokens.at[:, :, 0, n].set(token_BW))


def _hold(held: Held, tokens_BWL: jax.Array, scores_BW: jax.Array) -> Held:
  """Keeps the W best of the texts that are held and as many others."""
  W = scores_BW.shape[1]
  tokens = jnp.concatenate([held.tokens, tokens_BWL], axis=1)
  # Of equal scores the first is kept, so that what comes after a row is done
  # changes nothing.
  best_BW, at_BW = jax.lax.top_k(
    jnp.concatenate([held.scores, scores_BW], axis=1), W
  )
  return Held(jnp.take_along_axis(tokens, at_BW[..., None], axis=1), best_BW)
