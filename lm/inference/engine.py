"""Going on from texts token by token, for those who look on: `lm.serve`.

What `generate.extend` does in one compiled loop is done here a token at a time,
with settings that are traced: another temperature compiles nothing, a reader
sees each token as it comes, and one who leaves ends the work.
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
from lm.inference import generate

MOST_TOLD = 5  # likeliest tokens that are told; all of them or none are found
SMALLEST = 16  # positions, of the sizes that functions are compiled for
# Below it logits over temperature leave float32: the likeliest token is taken.
_COLDEST = 1e-3
_NEVER = -9999.0  # the log of 0, as JSON cannot say it; the service's own word


class Run(NamedTuple):
  """What texts are drawn with.

  Attributes:
    tokenizer: of the run.
    model: of the run.
    prompt: texts' ids to the batch that the model goes on from.
    params: on the device.
  """

  tokenizer: types.Tokenizer
  model: types.Model
  prompt: Callable[[Sequence[Sequence[int]]], types.Batch]
  params: types.Params


class Settings(NamedTuple):
  """How rows are gone on with.

  Attributes:
    length: tokens each, at the most.
    temperature, top_p: see `generate.Sampler`.
    stop: strings that end a text and are left out.
    seed: same seed, same texts.
    told: how many of the likeliest tokens to tell, at most MOST_TOLD; None
      tells no probabilities at all.
  """

  length: int
  temperature: float = 1.0
  top_p: float = 1.0
  stop: Sequence[str] = ()
  seed: int = 0
  told: int | None = None


class Token(NamedTuple):
  """A token whose text can no longer change.

  Attributes:
    text: what it adds to the text: nothing for an end or half a character,
      whose last token brings it whole.
    offset: of that, in characters from the text's beginning.
    name: the token decoded alone.
    logprob: under the model itself, without a sampler; None: not told.
    best: the likeliest tokens' names there with theirs, and this one.
  """

  text: str
  offset: int
  name: str
  logprob: float | None
  best: dict[str, float]


class Part(NamedTuple):
  """What has become sure of a row in a step.

  Attributes:
    row: which one.
    tokens: in order; their texts, joined, are the row's text.
    finish: why it ends here: 'stop' or 'length'; None: it goes on.
  """

  row: int
  tokens: list[Token]
  finish: str | None


def restore(workdir: str | Path, step: int | None = None) -> Run:
  """Reads a run that can go on from a text; None: the newest sound step.

  Raises:
    config.ConfigError: it goes on from no text, there is no such step, or the
      tokenizer's file has changed.
    errors.Failure: there is no sound checkpoint.
  """
  workdir = bucket_reader.local_folder(workdir, step)
  try:
    c, tokenizer, model = checkpoint.restore_run(workdir, step)
  except (ValueError, errors.Gone) as e:
    raise config.ConfigError(str(e)) from e
  # A head tuned on records has no objective.
  trained = c.data.objective if 'objective' in c.data else c.data
  prompt = None
  if trained is not c.data:
    made = config.build(trained, tokenizer=tokenizer, length=c.data.length)
    prompt = made.prompt
  if prompt is None:
    raise config.ConfigError(
      f'{workdir}: trained by {trained.fn}, which goes on from no text'
    )
  params = jax.tree.map(jnp.asarray, checkpoint.restore_params(workdir, step))
  return Run(tokenizer, model, prompt, params)


def before(text: str, stop: Sequence[str]) -> str:
  """Cuts a text before the first stop string in it."""
  cuts = [text.index(word) for word in stop if word in text]
  return text[: min(cuts, default=len(text))]


def sure(text: str, stop: Sequence[str]) -> int:
  """Counts the characters that stay, whatever comes after them.

  The rest may become a stop string, or is a part of a character.
  """
  text = text.rstrip('\ufffd')
  backs = (
    n for word in stop for n in range(1, len(word)) if text.endswith(word[:n])
  )
  return len(text) - max(backs, default=0)


def room(run: Run, most: int) -> int:
  """Finds how many positions, prompt and new ones, the model has; or `most`.

  Raises:
    ValueError: of `Model.start`, which has room for nothing.
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


def parts(
  run: Run,
  rows: Sequence[Sequence[int]],
  settings: Settings,
  *,
  most: int,
  wait: Callable[[], None] = lambda: None,
) -> Iterator[list[Part]]:
  """Yields, a token each, what has become sure of all rows.

  The texts of one prompt in many rows are those of `sample.texts`.

  Args:
    run: of `restore`.
    rows: ids of each one's prompt.
    settings: how to go on.
    most: the `room`, which must hold prompts and new tokens.
    wait: called before each token; ends the work by what it raises.
  """
  eos, length = run.tokenizer.eos, settings.length
  texts = [_Text(run.tokenizer, settings.stop, eos) for _ in rows]
  wait()
  batch, new = _bucketed(run.prompt(rows), length, most)
  state = generate.begin(
    run.params, batch, model=run.model, length=new, stop=eos
  )
  key = jax.random.key(settings.seed)
  for count in range(1, length + 1):
    wait()
    token_B = _draw(
      key,
      state.count,
      state.logits,
      max(float(settings.temperature), _COLDEST),
      # Smaller ones would be 0 in float32, and keep no token at all.
      max(float(settings.top_p), 1e-30),
      greedy=settings.temperature < _COLDEST,
      nucleus=settings.top_p < 1,
    )
    scores = None
    if settings.told is not None:
      scores = _scores(state.logits, token_B)
    if count < length:  # asked for now: the device works while texts are made
      state = _feed(run.params, state, token_B, model=run.model, stop=eos)
    drawn = np.asarray(token_B).tolist()
    told = _told(scores, settings.told, len(drawn))
    found = []
    for b, text in enumerate(texts):
      if not text.finish:
        ready = text.add(drawn[b], *told[b], last=count == length)
        found.append(Part(b, ready, text.finish))
    yield [part for part in found if part.tokens or part.finish]
    if all(text.finish for text in texts):
      return


def costs(
  run: Run, rows: Sequence[Sequence[int]], told: int
) -> list[list[Token]]:
  """Tells what the tokens of prompts cost, each given those before it.

  Where a model sees a prompt from both sides it has no cost: it is None.

  Args:
    run: of `restore`.
    rows: ids of each prompt.
    told: as of `Settings`.
  """
  batch = run.prompt(rows)
  scores: list[list[tuple]] = [[(None, [])] * len(ids) for ids in rows]
  if batch.source is None and batch.prefix is None:
    padded, _ = _bucketed(batch, 0, None)
    found = jax.device_get(_read(run.params, padded, model=run.model))
    # Position n has bos and n of the ids before it.
    scores = [
      _told([x[b] for x in found], told, len(ids)) for b, ids in enumerate(rows)
    ]
  tokens = []
  for ids, score in zip(rows, scores, strict=True):
    text = _Text(run.tokenizer, (), None)
    pairs = [*zip(ids, score, strict=True)]
    tokens.append(
      [
        token
        for n, (i, (logprob, best)) in enumerate(pairs, start=1)
        for token in text.add(i, logprob, best, last=n == len(pairs))
      ]
    )
  return tokens


class _Text:
  """A text as it grows; what may become a stop string is kept back.

  Attributes:
    finish: why it has ended; None: it goes on.
  """

  def __init__(
    self, tokenizer: types.Tokenizer, stop: Sequence[str], eos: int | None
  ):
    """Takes the id that ends it; None: none does."""
    self._tokenizer, self._stop, self._eos = tokenizer, stop, eos
    self._ids: list[int] = []
    self._kept: list[tuple[int, Token]] = []  # with the end of its text
    self._seen = 0  # characters that are whole
    self._told = 0  # of them, those that are returned
    self.finish: str | None = None

  def add(
    self,
    token: int,
    logprob: float | None,
    best: list[tuple[int, float]],
    *,
    last: bool,
  ) -> list[Token]:
    """Takes a token; returns those whose texts are sure now."""
    if token != self._eos:
      self._ids.append(token)
    whole = self._tokenizer.decode(self._ids)
    text = before(whole, self._stop)
    if token == self._eos or len(text) < len(whole):
      self.finish = 'stop'
    elif last:
      self.finish = 'length'
    # Half a character is no text yet.
    self._seen = len(text if self.finish else text.rstrip('\ufffd'))
    name = self._name(token)
    names: dict[str, float] = {}
    if logprob is not None:
      for i, score in (*best, (token, logprob)):
        names.setdefault(self._name(i), score)  # of one name, the likelier
    self._kept.append((self._seen, Token('', 0, name, logprob, names)))
    certain = len(text) if self.finish else sure(text, self._stop)
    ready = []
    while self._kept and (self.finish or self._kept[0][0] <= certain):
      end, kept = self._kept.pop(0)
      start, self._told = self._told, max(self._told, min(end, len(text)))
      # Of a stop string nothing is told.
      if start < len(text) or len(text) == len(whole):
        new = text[start : self._told]
        ready.append(kept._replace(text=new, offset=start))
    return ready

  def _name(self, token: int) -> str:
    if token == self._tokenizer.eos:
      return '<eos>'
    return self._tokenizer.decode([token]) or f'<{token}>'


def _bucket(size: int) -> int:
  return max(SMALLEST, 1 << (size - 1).bit_length())


def _bucketed(
  batch: types.Batch, length: int, most: int | None
) -> tuple[types.Batch, int]:
  """Rounds sizes up, so that few of them are compiled for.

  Args:
    batch: of prompts.
    length: tokens to come.
    most: positions that there are; None: any number.

  Returns:
    The batch with rows and positions added, and room for tokens.
  """
  B, P = batch.tokens.shape
  width, new = _bucket(P) if P > 1 else 1, _bucket(length)
  if most is not None and width + new > most:
    # Near the end of the room the prompt gets all that is left.
    new = new if P + new <= most else length
    width = most - new
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
  """Draws as `generate.extend` does, by numbers that are not compiled in."""
  sampler = generate.Sampler(
    temperature=0.0 if greedy else 1.0, top_p=top_p if nucleus else 1.0
  )
  logits_BV = logits_BV.astype(jnp.float32) / temperature  # as `generate.draw`
  return generate.draw(jax.random.fold_in(rng, count), logits_BV, sampler)


_feed = jax.jit(
  generate.feed, static_argnames=('model', 'stop'), donate_argnums=1
)


@jax.jit
def _scores(
  logits: jax.Array, tokens: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Gives log p of tokens [...] by logits [..., V], and of the likeliest."""
  # Sums over V lose digits in bfloat16.
  log = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
  own = jnp.take_along_axis(log, tokens[..., None], axis=-1)[..., 0]
  return own, *jax.lax.top_k(log, min(MOST_TOLD, log.shape[-1]))


@partial(jax.jit, static_argnames='model')
def _read(params: types.Params, batch: types.Batch, *, model: types.Model):
  logits_BLV = model.apply(params, batch).logits
  return _scores(logits_BLV[:, :-1], batch.tokens[:, 1:])


def _told(
  scores, told: int | None, count: int
) -> list[tuple[float | None, list[tuple[int, float]]]]:
  """Lists a token's log p and the likeliest `(id, log p)`, for each token."""
  if scores is None or told is None:
    return [(None, [])] * count
  own, values, ids = (np.asarray(x).tolist() for x in scores)

  def finite(score: float) -> float:
    return score if score > _NEVER else _NEVER

  return [
    (
      finite(own[n]),
      [
        (i, score)
        for i, score in zip(ids[n][:told], values[n], strict=False)
        if score > _NEVER
      ],
    )
    for n in range(count)
  ]
