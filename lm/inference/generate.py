"""Generates text with any model: prompts are read once, then tokens are drawn.

`prefill` reads prompts into the cache of a model, and `decode` draws tokens in
one compiled loop. Both need nothing of a model but `Model.start` and
`Model.apply`.
"""

from collections.abc import Iterator, Sequence
import functools
from functools import partial
import math
import numbers
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lm import types

Stop = int | Sequence[int]  # hashable, since it is compiled in

# Least and most of each setting, for all programs that draw. A seed is uint32
# on the device, where a larger one would be another; float32 holds the rest.
RANGES = {
  'temperature': (0, 100),
  'top_k': (0, 2**31 - 1),
  'top_p': (0, 1),
  'min_p': (0, 1),
  'repetition_penalty': (0.01, 100),
  'seed': (0, 2**32 - 1),
}
WHOLE = ('top_k', 'seed')
# At a lower temperature logits leave the range of float32: the likeliest token
# is taken instead.
COLDEST = 1e-3
# A smaller top_p would be 0 in float32, and keep no token at all.
_SMALLEST = 1e-30


def check(**settings: Any) -> None:
  """Checks settings of drawing, by their names in `RANGES`.

  Raises:
    ValueError: naming the first that is no such number.
  """
  for name, value in settings.items():
    low, high = RANGES[name]
    kind = numbers.Integral if name in WHOLE else numbers.Real
    # A bool is an int; nan compares as false.
    good = isinstance(value, kind) and not isinstance(value, bool)
    if not good or not low <= value <= high:
      number = 'a whole number' if name in WHOLE else 'a number'
      raise ValueError(f'{name}={value} must be {number} from {low} to {high}')


class Sampler(NamedTuple):
  """Settings of how the next token is drawn.

  They apply in the order repetition_penalty, temperature, top_k, top_p, min_p.
  The tuple is hashable, so that it can be compiled in.

  Attributes:
    temperature: divides the logits; 0, and what is below `COLDEST`, takes the
      likeliest token.
    top_k: keeps the k likeliest tokens; 0 keeps all. Reference: Fan et al.
      2018, arXiv 1805.04833, section 5.1.
    top_p: keeps the smallest set of likeliest tokens whose total probability
      reaches this; 0 takes the likeliest token. Reference: Holtzman et al.
      2019, arXiv 1904.09751, section 3.1.
    min_p: keeps tokens whose probability is at least this fraction of the
      likeliest token's; 0 keeps all. Reference: Nguyen et al. 2024, arXiv
      2407.01082, section 3.
    repetition_penalty: divides the positive logits of tokens that are in the
      prompt or the text already, and multiplies the negative ones; 1 changes
      nothing. Reference: Keskar et al. 2019, arXiv 1909.05858, section 4.1.
  """

  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  repetition_penalty: float = 1.0

  def check(self) -> 'Sampler':
    """Returns itself, if all settings are in range.

    Raises:
      ValueError: a setting is out of range.
    """
    check(**self._asdict())
    return self


class State(NamedTuple):
  """Texts that are being generated, one a row.

  Attributes:
    count: int32 [], how many tokens have been drawn for each row.
    cache: the model's cache.
    logits: float32 [B, V], logits of the next token.
    tokens: int32 [B, L], the tokens drawn; after the token that ends a row, the
      first id of `stop`.
    nats: float32 [B, L], -log p of each token under the model alone, without
      the sampler; 0 after the end of a row.
    done: bool [B], the rows that have ended.
    seen: bool [B, V], the tokens in prompt and text; None unless there is a
      repetition penalty.
    prompt: int32 [B], the number of tokens in each prompt.
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
  """Draws one token for each row: int32 [B].

  Rows are independent: what a row draws does not depend on the other rows.

  Args:
    rng: the key of this step, or one key for each row [B].
    logits_BV: logits of the next token.
    sampler: how to draw; its top_p may be traced.
    seen_BV: bool, the tokens that `repetition_penalty` applies to; None applies
      it to none.
  """
  if seen_BV is not None:
    penalty = sampler.repetition_penalty
    worse_BV = jnp.where(
      logits_BV > 0, logits_BV / penalty, logits_BV * penalty
    )
    logits_BV = jnp.where(seen_BV, worse_BV, logits_BV)
  if sampler.temperature < COLDEST:
    return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
  logits_BV = logits_BV.astype(jnp.float32) / sampler.temperature
  V = logits_BV.shape[-1]
  if 0 < sampler.top_k < V:
    least_B1 = jax.lax.top_k(logits_BV, sampler.top_k)[0][:, -1:]
    logits_BV = jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)
  # The value of a traced top_p is unknown here, so it is not compared with 1.
  if isinstance(sampler.top_p, jax.Array) or sampler.top_p < 1:
    sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
    mass_BV = jax.nn.softmax(sorted_BV, axis=-1)
    # A token is kept by the mass before it, so that the token which crosses
    # top_p is kept too, and at least one always is.
    before_BV = jnp.cumsum(mass_BV, axis=-1) - mass_BV
    share = jnp.maximum(sampler.top_p, _SMALLEST)
    kept_BV = jnp.where(before_BV < share, sorted_BV, jnp.inf)
    least_B1 = jnp.min(kept_BV, axis=-1, keepdims=True)
    logits_BV = jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)
  if sampler.min_p:
    best_B1 = jnp.max(logits_BV, axis=-1, keepdims=True)
    least_B1 = best_B1 + math.log(sampler.min_p)
    logits_BV = jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)
  # Each row has a key of its own, so that it draws the same tokens in a batch
  # of any size.
  keys_B = rng
  if not rng.ndim:
    rows_B = jnp.arange(len(logits_BV))
    keys_B = jax.vmap(partial(jax.random.fold_in, rng))(rows_B)
  return jax.vmap(jax.random.categorical)(keys_B, logits_BV).astype(jnp.int32)


@partial(jax.jit, static_argnames=('model', 'length', 'stop', 'penalty'))
def prefill(
  params: types.Params,
  batch: types.Batch,
  *,
  model: types.Model,
  length: int,
  stop: Stop,
  penalty: bool = False,
) -> State:
  """Reads prompts into the model's cache, and draws no token yet.

  Args:
    params: the model's parameters.
    batch: prompts, padded on the right, as an objective's `prompt` makes them.
    model: the model, which is compiled in.
    length: L, how many tokens can be drawn for each row.
    stop: the id after which a row ends, or a tuple of such ids.
    penalty: whether to record the tokens of prompt and text, which
      `repetition_penalty` needs.

  Raises:
    ValueError: prompt and text are longer than the model's positions.
  """
  B, P = batch.tokens.shape
  cache = model.start(params, batch, P + length)
  out = model.apply(params, batch, cache=cache)
  live_BP = batch.segments > 0  # segment 0 is padding
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
    tokens=jnp.full((B, length), filler(stop), jnp.int32),
    nats=jnp.zeros((B, length)),
    done=jnp.zeros(B, bool),
    seen=seen_BV,
    prompt=prompt_B,
  )


@partial(
  jax.jit, static_argnames=('model', 'sampler', 'stop'), donate_argnums=1
)
def decode(
  params: types.Params,
  state: State,
  rng: jax.Array,
  until: jax.Array | int,
  *,
  model: types.Model,
  sampler: Sampler,
  stop: Stop,
) -> State:
  """Draws tokens until each row has `until` of them, or all rows have ended.

  Args:
    params: the model's parameters.
    state: the result of `prefill` or of this function; its memory is reused.
    rng: the key of all texts, or one key for each row [B]; the same key at each
      call.
    until: how many tokens to have, at most the `length` given to `prefill`.
    model, sampler, stop: see `prefill` and `Sampler`; they are compiled in.
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
    return advance(params, state, token_B, model=model, stop=stop)

  return jax.lax.while_loop(unfinished, step, state)


def advance(
  params: types.Params,
  state: State,
  token_B: jax.Array,
  *,
  model: types.Model,
  stop: Stop,
) -> State:
  """Adds a token to each row, and computes the logits of the next one.

  Rows that have ended get the first id of `stop`, at no cost in nats.
  """
  n = state.count
  token_B = jnp.where(state.done, filler(stop), token_B)
  nats_B = jnp.where(state.done, 0, _nats(state.logits, token_B))
  seen_BV = state.seen
  if seen_BV is not None:
    seen_BV = seen_BV.at[jnp.arange(len(token_B)), token_B].set(True)
  out = model.apply(params, next_batch(token_B, state), cache=state.cache)
  return state._replace(
    count=n + 1,
    cache=out.cache,
    logits=out.logits[:, 0],
    tokens=state.tokens.at[:, n].set(token_B),
    nats=state.nats.at[:, n].set(nats_B),
    done=state.done | is_end(token_B, stop),
    seen=seen_BV,
  )


def filler(stop: Stop) -> int:
  """Returns the id that stands after the end of a row."""
  return stop if isinstance(stop, int) else stop[0]


def is_end(tokens: jax.Array, stop: Stop) -> jax.Array:
  """Tells which tokens end a row."""
  ends = (stop,) if isinstance(stop, int) else stop
  return functools.reduce(operator.or_, [tokens == i for i in ends])


def next_batch(token_B: jax.Array, state: State) -> types.Batch:
  """Makes a batch of one more token for each row."""
  one_B1 = jnp.ones((len(token_B), 1), jnp.int32)
  # The cache writes the token after the longest prompt of the batch. Positions
  # continue from the row's own prompt, and the padding between them is in
  # segment 0, where nothing attends to it.
  return types.Batch(
    tokens=token_B[:, None],
    targets=token_B[:, None],
    weights=one_B1.astype(jnp.float32),
    positions=(state.prompt + state.count)[:, None],
    segments=one_B1,
  )


def generate(
  params: types.Params,
  batch: types.Batch,
  *,
  model: types.Model,
  sampler: Sampler,
  length: int,
  stop: Stop,
  rng: jax.Array,
) -> State:
  """Continues each prompt of a batch.

  Args:
    params, batch, model: see `prefill`.
    sampler: how to draw.
    length: how many tokens to generate at most.
    stop: the id after which a row ends, or a tuple of such ids.
    rng: a key for all rows: the same key gives the same texts. Or a key for
      each row [B]: then the text of a row depends on no other row.

  Returns:
    The last state. Its `tokens` and `nats` are the result.
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
  stop: Stop,
  rng: jax.Array,
  every: int = 8,
) -> Iterator[State]:
  """Yields the state after every `every` tokens, and the last state.

  Read a state before you ask for the next one, which reuses its memory. The
  arguments are those of `generate`.
  """
  state = prefill(
    params,
    batch,
    model=model,
    length=length,
    stop=stop,
    penalty=sampler.repetition_penalty != 1,
  )
  for until in range(every, length + every, every):
    state = decode(
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


def _nats(logits_BV: jax.Array, token_B: jax.Array) -> jax.Array:
  """Returns -log p of each row's token."""
  log_z_B = jax.nn.logsumexp(logits_BV, axis=-1)
  score_B1 = jnp.take_along_axis(logits_BV, token_B[:, None], axis=1)
  return log_z_B - score_B1[:, 0]
