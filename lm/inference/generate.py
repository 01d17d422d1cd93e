"""Text from any model through `Model.start` and `Model.apply`."""

from collections.abc import Iterator
from functools import partial
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lm import types


class Sampler(NamedTuple):
  """How the next token is drawn; hashable, so that it can be compiled in.

  In this order: repetition_penalty, temperature, top_k, top_p, min_p.

  Attributes:
    temperature: divides the logits; 0 takes the likeliest token.
    top_k: keeps the k likeliest tokens; 0 keeps all. Reference: Fan et al.
      2018, arXiv 1805.04833, section 5.1.
    top_p: keeps the smallest set of likeliest tokens whose mass reaches it.
      Reference: Holtzman et al. 2019, arXiv 1904.09751, section 3.1.
    min_p: keeps tokens at least this share as likely as the likeliest; 0 keeps
      all. Reference: Nguyen et al. 2024, arXiv 2407.01082, section 3.
    repetition_penalty: divides the logits above 0 of tokens that the text has
      already, and multiplies those below; 1 changes nothing. Reference: Keskar
      et al. 2019, arXiv 1909.05858, section 4.1.
  """

  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  repetition_penalty: float = 1.0

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
    if not 0 <= self.min_p <= 1:
      raise ValueError(f'min_p={self.min_p} must be from 0 to 1')
    if not 0 < self.repetition_penalty < float('inf'):
      raise ValueError(
        f'repetition_penalty={self.repetition_penalty} must be above 0'
      )
    return self


class State(NamedTuple):
  """A text on its way.

  Attributes:
    count: int32, tokens drawn.
    cache: of the model.
    logits: float32 [B, V], of the next token.
    tokens: int32 [B, L], what was drawn; `stop` from a row's end on.
    nats: float32 [B, L], what each cost: -log p under the model itself, without
      a sampler, and 0 after a row's end.
    done: bool [B], rows that have ended.
    seen: bool [B, V], tokens of prompt and text; None where nobody asks.
    prompt: int32 [B], tokens of each prompt.
  """

  count: types.Array
  cache: types.Cache
  logits: types.Array
  tokens: types.Array
  nats: types.Array
  done: types.Array
  seen: types.Array
  prompt: types.Array


def draw(
  rng: jax.Array,
  logits_BV: jax.Array,
  sampler: Sampler,
  seen_BV: jax.Array | None = None,
) -> jax.Array:
  """Draws one token a row: int32 [B]. Rows draw independently of each other.

  Args:
    rng: key of this step, or one a row [B].
    logits_BV: of the next token.
    sampler: how to draw; its top_p may be traced.
    seen_BV: bool, what `repetition_penalty` is for; None: nothing.
  """
  if seen_BV is not None:
    penalty = sampler.repetition_penalty
    worse_BV = jnp.where(
      logits_BV > 0, logits_BV / penalty, logits_BV * penalty
    )
    logits_BV = jnp.where(seen_BV, worse_BV, logits_BV)
  if not sampler.temperature:
    return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
  logits_BV = logits_BV.astype(jnp.float32) / sampler.temperature
  V = logits_BV.shape[-1]
  if 0 < sampler.top_k < V:
    least_B1 = jax.lax.top_k(logits_BV, sampler.top_k)[0][:, -1:]
    logits_BV = jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)
  # what is traced is not known to be 1
  if isinstance(sampler.top_p, jax.Array) or sampler.top_p < 1:
    sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
    mass_BV = jax.nn.softmax(sorted_BV, axis=-1)
    # The mass before a token, so that the one that crosses top_p is kept.
    before_BV = jnp.cumsum(mass_BV, axis=-1) - mass_BV
    kept_BV = jnp.where(before_BV < sampler.top_p, sorted_BV, jnp.inf)
    least_B1 = jnp.min(kept_BV, axis=-1, keepdims=True)
    logits_BV = jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)
  if sampler.min_p:
    best_B1 = jnp.max(logits_BV, axis=-1, keepdims=True)
    least_B1 = best_B1 + math.log(sampler.min_p)
    logits_BV = jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)
  # A key a row: what a row draws does not depend on how many others there are.
  keys_B = rng
  if not rng.ndim:
    rows_B = jnp.arange(len(logits_BV))
    keys_B = jax.vmap(partial(jax.random.fold_in, rng))(rows_B)
  return jax.vmap(jax.random.categorical)(keys_B, logits_BV).astype(jnp.int32)


@partial(jax.jit, static_argnames=('model', 'length', 'stop', 'penalty'))
def begin(
  params: types.Params,
  batch: types.Batch,
  *,
  model: types.Model,
  length: int,
  stop: int,
  penalty: bool = False,
) -> State:
  """Reads prompts, each padded on the right; draws nothing yet.

  Args:
    params: the model's parameters.
    batch: prompts, as an objective's `prompt` makes them.
    model: compiled in.
    length: L, tokens that there is room for.
    stop: the id after which a row ends.
    penalty: whether to note what the text has, for `repetition_penalty`.

  Raises:
    ValueError: the model has no room for prompt and text.
  """
  B, P = batch.tokens.shape
  cache = model.start(params, batch, P + length)
  out = model.apply(params, batch, cache=cache)
  live_BP = batch.segments > 0
  prompt_B = jnp.sum(live_BP, axis=1, dtype=jnp.int32)
  logits_BV = jnp.take_along_axis(
    out.logits, (prompt_B - 1)[:, None, None], axis=1
  )[:, 0]
  seen_BV = None
  if penalty:
    rows_BP = jnp.broadcast_to(jnp.arange(B)[:, None], (B, P))
    seen_BV = jnp.zeros(logits_BV.shape, bool)
    seen_BV = seen_BV.at[rows_BP, batch.tokens].max(live_BP)
  return State(
    count=jnp.zeros((), jnp.int32),
    cache=out.cache,
    logits=logits_BV,
    tokens=jnp.full((B, length), stop, jnp.int32),
    nats=jnp.zeros((B, length)),
    done=jnp.zeros(B, bool),
    seen=seen_BV,
    prompt=prompt_B,
  )


@partial(
  jax.jit, static_argnames=('model', 'sampler', 'stop'), donate_argnums=1
)
def extend(
  params: types.Params,
  state: State,
  rng: jax.Array,
  until: jax.Array | int,
  *,
  model: types.Model,
  sampler: Sampler,
  stop: int,
) -> State:
  """Draws tokens until there are `until`, or all rows have ended.

  Args:
    params: the model's parameters.
    state: of `begin` or of this; donated.
    rng: of the whole text, or one of each row [B]: the same at each call.
    until: at most the length that `begin` made room for.
    model, sampler, stop: compiled in.
  """

  def unfinished(state):
    return (state.count < until) & ~jnp.all(state.done)

  def step(state):
    fold = (
      jax.vmap(jax.random.fold_in, (0, None))
      if rng.ndim
      else jax.random.fold_in
    )
    key = fold(rng, state.count)
    token_B = draw(key, state.logits, sampler, state.seen)
    return feed(params, state, token_B, model=model, stop=stop)

  return jax.lax.while_loop(unfinished, step, state)


def feed(
  params: types.Params,
  state: State,
  token_B: jax.Array,
  *,
  model: types.Model,
  stop: int,
) -> State:
  """Adds a token to each row that has not ended, and asks for the next."""
  n = state.count
  token_B = jnp.where(state.done, stop, token_B)
  nats_B = jnp.where(state.done, 0, _nats(state.logits, token_B))
  seen_BV = state.seen
  if seen_BV is not None:
    seen_BV = seen_BV.at[jnp.arange(len(token_B)), token_B].set(True)
  out = model.apply(params, _next(token_B, state), cache=state.cache)
  return state._replace(
    count=n + 1,
    cache=out.cache,
    logits=out.logits[:, 0],
    tokens=state.tokens.at[:, n].set(token_B),
    nats=state.nats.at[:, n].set(nats_B),
    done=state.done | (token_B == stop),
    seen=seen_BV,
  )


def generate(
  params: types.Params,
  batch: types.Batch,
  *,
  model: types.Model,
  sampler: Sampler,
  length: int,
  stop: int,
  rng: jax.Array,
) -> State:
  """Continues each row of a batch of prompts.

  Args:
    params, batch, model: see `begin`.
    sampler: how to draw.
    length: tokens to generate at the most.
    stop: the id after which a row ends.
    rng: same key, same text; or a key a row [B], whose text then depends on
      nothing else of the batch.

  Returns:
    The last state: its `tokens` and `nats` are the result.
  """
  *_, last = stream(
    params,
    batch,
    model=model,
    sampler=sampler,
    length=length,
    stop=stop,
    rng=rng,
    every=length,
  )
  return last


def stream(
  params: types.Params,
  batch: types.Batch,
  *,
  model: types.Model,
  sampler: Sampler,
  length: int,
  stop: int,
  rng: jax.Array,
  every: int = 8,
) -> Iterator[State]:
  """Yields states on the way, `every` so many tokens, and the last one.

  Use a state before you ask for the next, which takes its memory.
  """
  state = begin(
    params,
    batch,
    model=model,
    length=length,
    stop=stop,
    penalty=sampler.repetition_penalty != 1,
  )
  for until in range(every, length + every, every):
    state = extend(
      params,
      state,
      rng,
      min(until, length),
      model=model,
      sampler=sampler,
      stop=stop,
    )
    yield state
    if until < length and bool(jnp.all(state.done)):
      break


@partial(
  jax.jit, static_argnames=('model', 'beams', 'length', 'stop', 'penalty')
)
def beam(
  params: types.Params,
  batch: types.Batch,
  *,
  model: types.Model,
  beams: int,
  length: int,
  stop: int,
  penalty: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
  """Searches for likely texts: keeps the `beams` best of each row's.

  A text that has ended stays among them with its score while others go on,
  until all have ended or there is no room. The score is the sum of log p over
  ((5 + tokens) / 6)^penalty.

  Args:
    params, batch, model, length, stop: as of `generate`.
    beams: W; 1 takes the likeliest token at each step.
    penalty: 0 compares sums, which favours short texts; 1 nearly means.

  Returns:
    tokens: int32 [B, W, length], the best first, `stop` from its end on.
    scores: float32 [B, W].

  Reference: Wu et al. 2016, arXiv 1609.08144, section 7, without coverage.
  """
  # Each text is a batch of one, so that `vmap` finds the places of rows in any
  # model's cache.
  alone = jax.tree.map(lambda x: jnp.asarray(x)[:, None], batch)
  state = jax.vmap(
    lambda row: begin(params, row, model=model, length=length, stop=stop)
  )(alone)
  B, V = len(batch.tokens), state.logits.shape[-1]
  state = jax.tree.map(lambda x: jnp.repeat(x[:, None], beams, axis=1), state)
  # All beams are equal at first: only one may be gone on from.
  total_BW = jnp.where(jnp.arange(beams)[None] == 0, 0.0, -jnp.inf)
  total_BW = jnp.broadcast_to(total_BW, (B, beams))
  size_BW = jnp.zeros((B, beams), jnp.int32)

  def score(total, size):
    return total / ((5 + size) / 6) ** penalty

  def unfinished(carry):
    state, _, _ = carry
    return (state.count[0, 0] < length) & ~jnp.all(state.done)

  def step(carry):
    state, total_BW, size_BW = carry
    done_BW = state.done[..., 0]
    log_BWV = jax.nn.log_softmax(state.logits[:, :, 0], axis=-1)
    # A text that has ended goes on in one way, which costs nothing.
    ended_V = jnp.where(jnp.arange(V) == stop, 0.0, -jnp.inf)
    log_BWV = jnp.where(done_BW[..., None], ended_V[None, None], log_BWV)
    longer_BW = size_BW + ~done_BW
    sum_BWV = total_BW[..., None] + log_BWV
    _, best_BW = jax.lax.top_k(
      score(sum_BWV, longer_BW[..., None]).reshape(B, -1), beams
    )
    parent_BW, token_BW = best_BW // V, (best_BW % V).astype(jnp.int32)

    def chosen(x):
      return jax.vmap(lambda x, parent: x[parent])(x, parent_BW)

    state, size_BW = jax.tree.map(chosen, (state, longer_BW))
    total_BW = jnp.take_along_axis(sum_BWV.reshape(B, -1), best_BW, axis=1)
    out = jax.vmap(
      jax.vmap(
        lambda token, state: model.apply(
          params, _next(token[None], state), cache=state.cache
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


def _next(token_B: jax.Array, state: State) -> types.Batch:
  """Makes the batch that one more token is."""
  one_B1 = jnp.ones((len(token_B), 1), jnp.int32)
  # Written to the slot after the longest prompt; positions go on from each
  # row's own length, and padded slots in between belong to segment 0.
  return types.Batch(
    tokens=token_B[:, None],
    targets=token_B[:, None],
    weights=one_B1.astype(jnp.float32),
    positions=(state.prompt + state.count)[:, None],
    segments=one_B1,
  )


def _nats(logits_BV: jax.Array, token_B: jax.Array) -> jax.Array:
  log_z_B = jax.nn.logsumexp(logits_BV, axis=-1)
  score_B1 = jnp.take_along_axis(logits_BV, token_B[:, None], axis=1)
  return log_z_B - score_B1[:, 0]
