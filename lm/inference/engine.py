"""Continues texts token by token, for readers who watch: see `lm.serve`.

`generate.decode` draws a whole text in one compiled loop. Here the loop is in
Python and the settings are traced: another temperature compiles nothing, each
token can be shown when it is drawn, and a reader who leaves ends the work.
"""

import bisect
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm import checkpoint, config, errors, types
from lm.checkpoint import bucket_reader
from lm.inference import detokenizer, generate
from lm.inference import prompts as prompts_lib

MOST_LOGPROBS = 5  # likeliest tokens that are reported with each token
SMALLEST = 16  # positions: the smallest size that functions are compiled for
# Stands for log 0, which JSON cannot say: the number of OpenAI's service.
_NEVER = -9999.0

# The log p of a token, None if unknown, and the likeliest `(id, log p)`.
_Score = tuple[float | None, list[tuple[int, float]]]


class Run(NamedTuple):
  """A run that can continue texts.

  Attributes:
    tokenizer, model: of the run.
    prompt: makes the batch that the model continues, from the ids of texts.
    params: the model's parameters, on the device.
    form: see `prompts.Prompts`.
  """

  tokenizer: types.Tokenizer
  model: types.Model
  prompt: Callable[[Sequence[Sequence[int]]], types.Batch]
  params: types.Params
  form: Callable[[prompts_lib.Turns], list[int]] | None = None

  def read(self, text: str) -> list[int]:
    """Encodes a prompt, which a form makes a question of.

    Raises:
      ValueError: the text cannot be encoded.
    """
    if self.form is None:
      return self.tokenizer.encode(text)
    return self.form([('user', text)])


class Settings(NamedTuple):
  """Settings of how to continue texts.

  Attributes:
    length: how many tokens to draw for each text at most.
    temperature, top_p: see `generate.Sampler`.
    stop: strings that end a text and are left out of it.
    seed: the same seed gives the same texts.
    logprobs: how many of the likeliest tokens to report with each token, at
      most MOST_LOGPROBS; None reports no probabilities at all.
  """

  length: int
  temperature: float = 1.0
  top_p: float = 1.0
  stop: Sequence[str] = ()
  seed: int = 0
  logprobs: int | None = None


class Delta(NamedTuple):
  """The part of a text that has become certain in one step.

  Attributes:
    row: the number of the text.
    tokens: in order; the texts of all tokens, joined, are the whole text.
    finish_reason: why the text ends here, 'stop' or 'length'; None while it
      goes on.
  """

  row: int
  tokens: list[detokenizer.Token]
  finish_reason: str | None


def restore(
  workdir: str | Path, step: int | None = None, *, special: bool = False
) -> Run:
  """Restores a run that can continue texts.

  Args:
    workdir: of the run; a bucket's address is copied here first.
    step: of the checkpoint; None is the newest sound one.
    special: takes prompts as they are written: with special tokens, see
      `prompts.reading_special`, and without a form.

  Raises:
    config.ConfigError: the model does not continue texts, there is no such
      step, or the tokenizer's file has changed.
    errors.Failure: there is no sound checkpoint.
  """
  workdir = bucket_reader.local_folder(workdir, step)
  try:
    c, tokenizer, model = checkpoint.restore_run(workdir, step)
  except (ValueError, errors.Gone) as e:
    raise config.ConfigError(str(e)) from e
  how = prompts_lib.of_run(c, tokenizer, workdir)
  if how is None:
    raise config.ConfigError(
      f'{workdir}: it was trained by {prompts_lib.trained_by(c)}, which cannot '
      'continue a text'
    )
  params = jax.tree.map(jnp.asarray, checkpoint.restore_params(workdir, step))
  if special:
    read = prompts_lib.reading_special(tokenizer)
    return Run(read, model, how.batch, params)
  return Run(tokenizer, model, how.batch, params, how.form)


def capacity(run: Run, most: int) -> int:
  """Finds how many positions a model has for prompt and new tokens.

  Args:
    run: see `restore`.
    most: the largest answer; models without positions have room for any number.

  Raises:
    ValueError: the model cannot continue texts: `Model.start` says why.
  """
  batch = run.prompt([[]])

  def start(size: int) -> None:
    jax.eval_shape(lambda p: run.model.start(p, batch, size), run.params)

  def refuses(size: int) -> bool:
    try:
      start(size)
    except ValueError:
      return True
    return False

  start(1)
  if not refuses(most):
    return most
  return bisect.bisect_left(range(most), True, key=refuses) - 1


def stream(
  run: Run,
  prompts: Sequence[Sequence[int]],
  settings: Settings,
  *,
  capacity: int,
  check: Callable[[], None] = lambda: None,
) -> Iterator[list[Delta]]:
  """Continues texts, and yields after each token what has become certain.

  Several rows of one prompt get the texts that `sampling.texts` gives them.

  Args:
    run: see `restore`.
    prompts: the ids of each prompt.
    settings: how to continue them.
    capacity: positions of the model; prompt and new tokens must fit.
    check: is called before each token, and ends the work by an exception.
  """
  generate.check(
    temperature=settings.temperature,
    top_p=settings.top_p,
    seed=settings.seed,
  )
  ends, length = run.tokenizer.ends, settings.length
  batch = run.prompt(prompts)
  texts = [
    detokenizer.Detokenizer(
      run.tokenizer, settings.stop, ends, follows=goes_on(batch, ids)
    )
    for ids in prompts
  ]
  check()
  batch, new = _bucketed(batch, length, capacity)
  state = generate.prefill(
    run.params, batch, model=run.model, length=new, stop=ends
  )
  key = jax.random.key(settings.seed)
  for count in range(1, length + 1):
    check()
    token_B = _draw(
      key,
      state.count,
      state.logits,
      max(float(settings.temperature), generate.COLDEST),
      float(settings.top_p),
      greedy=settings.temperature < generate.COLDEST,
      nucleus=settings.top_p < 1,
    )
    scores = None
    if settings.logprobs is not None:
      scores = _scores(state.logits, token_B)
    # The device begins with the next token while the host makes texts.
    if count < length:
      state = _advance(run.params, state, token_B, model=run.model, stop=ends)
    tokens = np.asarray(token_B).tolist()
    listed = _listed(scores, settings.logprobs, len(tokens))
    deltas = []
    for b, text in enumerate(texts):
      if not text.finish_reason:
        ready = text.add(tokens[b], *listed[b], last=count == length)
        deltas.append(Delta(b, ready, text.finish_reason))
    yield [x for x in deltas if x.tokens or x.finish_reason]
    if all(text.finish_reason for text in texts):
      return


def goes_on(batch: types.Batch, ids: Sequence[int]) -> bool:
  """Tells whether what is drawn follows the text of a prompt.

  It does not after an empty prompt, nor where the encoder reads the prompt, and
  the decoder begins a text of its own.

  Args:
    batch: of the prompts.
    ids: of the prompt.
  """
  return bool(ids) and batch.tokens.shape[1] > 1


def prompt_logprobs(
  run: Run,
  prompts: Sequence[Sequence[int]],
  logprobs: int,
  check: Callable[[], None] = lambda: None,
) -> list[list[detokenizer.Token]]:
  """Computes log p of each token of prompts, given the tokens before it.

  It is None where a model reads a prompt in both directions.

  Args:
    run: see `restore`.
    prompts: the ids of each prompt.
    logprobs: see `Settings`.
    check: is called before each token, and ends the work by an exception.
  """
  batch = run.prompt(prompts)
  scores: list[list[_Score]] = [[(None, [])] * len(ids) for ids in prompts]
  if batch.source is None and batch.prefix is None:
    padded, _ = _bucketed(batch, 0, None)
    results = jax.device_get(_read(run.params, padded, model=run.model))
    # Position n has read bos and n ids of the prompt, so it scores id n.
    scores = [
      _listed([x[b] for x in results], logprobs, len(ids))
      for b, ids in enumerate(prompts)
    ]
  tokens: list[list[detokenizer.Token]] = []
  for ids, score in zip(prompts, scores, strict=True):
    text = detokenizer.Detokenizer(run.tokenizer, (), None)
    tokens.append([])
    for n, (i, (logprob, top)) in enumerate(zip(ids, score, strict=True), 1):
      check()
      tokens[-1] += text.add(i, logprob, top, last=n == len(ids))
  return tokens


def _bucket(size: int) -> int:
  """Rounds a size up to a power of two."""
  return max(SMALLEST, 1 << (size - 1).bit_length())


def _bucketed(
  batch: types.Batch, length: int, capacity: int | None
) -> tuple[types.Batch, int]:
  """Rounds sizes up, so that functions are compiled for few of them.

  Args:
    batch: of prompts.
    length: how many tokens will be drawn.
    capacity: positions of the model; None if it has no limit.

  Returns:
    The batch with more rows and positions, and the rounded number of tokens.
  """
  B, P = batch.tokens.shape
  width, new = _bucket(P) if P > 1 else 1, _bucket(length)
  if capacity is not None and width + new > capacity:
    # Near the end of the positions the prompt gets all that are left.
    new = new if P + new <= capacity else length
    width = capacity - new
  more = (1 << (B - 1).bit_length()) - B

  def padded(name: str, x_BL: types.Array) -> types.Array:
    size = x_BL.shape[1]
    columns = _bucket(size) if name.startswith('source') else width
    x_BL = np.pad(x_BL, ((0, 0), (0, columns - size)))  # segment 0 is padding
    return np.pad(x_BL, ((0, more), (0, 0)), 'edge')

  fields = batch._asdict().items()
  return types.Batch(
    **{name: padded(name, x) for name, x in fields if x is not None}
  ), new


@partial(jax.jit, static_argnames=('greedy', 'nucleus'))
def _draw(
  rng: jax.Array,
  count: jax.Array,
  logits_BV: jax.Array,
  temperature: float,
  top_p: float,
  *,
  greedy: bool,
  nucleus: bool,
) -> jax.Array:
  """Draws the tokens that `generate.decode` draws, but with traced settings."""
  sampler = generate.Sampler(
    temperature=0.0 if greedy else 1.0, top_p=top_p if nucleus else 1.0
  )
  # In float32 and by division, as `generate.draw` does: the same bits.
  logits_BV = logits_BV.astype(jnp.float32) / temperature
  return generate.draw(jax.random.fold_in(rng, count), logits_BV, sampler)


_advance = jax.jit(
  generate.advance, static_argnames=('model', 'stop'), donate_argnums=1
)


@jax.jit
def _scores(
  logits: jax.Array, tokens: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Computes log p of tokens [...] from logits [..., V], and of the likeliest.

  Returns:
    log p of the tokens [...]; log p and ids of the likeliest [..., k].
  """
  # In bfloat16 a sum over the vocabulary would lose most of its digits.
  log = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
  own = jnp.take_along_axis(log, tokens[..., None], axis=-1)[..., 0]
  return own, *jax.lax.top_k(log, min(MOST_LOGPROBS, log.shape[-1]))


@partial(jax.jit, static_argnames='model')
def _read(params: types.Params, batch: types.Batch, *, model: types.Model):
  logits_BLV = model.apply(params, batch).logits
  return _scores(logits_BLV[:, :-1], batch.tokens[:, 1:])


def _listed(scores, logprobs: int | None, count: int) -> list[_Score]:
  """Turns what `_scores` computes of some tokens into numbers for JSON.

  Args:
    scores: its three arrays, of one dimension of tokens; None if they were not
      asked for.
    logprobs: see `Settings`.
    count: how many tokens to list.
  """
  if scores is None or logprobs is None:
    return [(None, [])] * count
  own, values, ids = (np.asarray(x).tolist() for x in scores)

  def finite(score: float) -> float:
    return score if score > _NEVER else _NEVER  # nan is not above it either

  return [
    (
      finite(own[n]),
      [
        (i, score)
        for i, score in zip(ids[n][:logprobs], values[n], strict=False)
        if score > _NEVER
      ],
    )
    for n in range(count)
  ]
