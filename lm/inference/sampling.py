"""Continues a prompt with a run: draws texts, or searches for likely ones."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from lm import config, types
from lm.inference import beam, detokenizer, engine, generate


class Settings(NamedTuple):
  """Settings of how to continue a prompt.

  Attributes:
    count: how many texts to make.
    length: how many tokens each text gets at most.
    temperature, top_k, top_p, min_p, repetition_penalty: see
      `generate.Sampler`.
    beams: above 0 nothing is drawn: the `count` best texts of a search with so
      many beams are returned, without nats. See `beam.search`.
    length_penalty: the penalty of that search.
    stop: strings that end a text and are left out of it.
    seed: the same seed gives the same texts.
  """

  count: int = 1
  length: int = 200
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  repetition_penalty: float = 1.0
  beams: int = 0
  length_penalty: float = 0.0
  stop: Sequence[str] = ()
  seed: int = 0

  def sampler(self) -> generate.Sampler:
    """Returns the settings of the sampler, once all settings are in range.

    Raises:
      config.ConfigError: a setting is out of range.
    """
    if self.count < 1 or self.length < 1:
      raise config.ConfigError(
        f'count={self.count}, length={self.length}: at least 1 each'
      )
    if self.beams and self.beams < self.count:
      raise config.ConfigError(
        f'beams={self.beams}: at least as many as count={self.count}'
      )
    if not 0 <= self.length_penalty < float('inf'):
      raise config.ConfigError(
        f'length_penalty={self.length_penalty}: 0 or more'
      )
    if not all(self.stop):
      raise config.ConfigError("stop='': ends every text at once; leave it out")
    with config.user_errors():
      generate.check(seed=self.seed)
      return generate.Sampler(
        self.temperature,
        self.top_k,
        self.top_p,
        self.min_p,
        self.repetition_penalty,
      ).check()


class Text(NamedTuple):
  """A text that continues a prompt.

  Attributes:
    text: the prompt and its continuation, cut before a stop string; the answer
      alone, where the run was tuned by a form.
    pieces: the tokens of the continuation, each decoded alone. Those of a stop
      string, and those drawn after it, are among them.
    nats: -log p of each piece under the model alone, without a sampler; empty
      after a beam search.
  """

  text: str
  pieces: list[str]
  nats: list[float]


def sample(
  workdir: str | Path,
  prompt: str = '',
  *,
  step: int | None = None,
  special: bool = False,
  **settings,
) -> list[str]:
  """Continues a prompt, and returns the texts.

  Args:
    workdir: of the run.
    prompt: see `texts`.
    step: of the checkpoint; None is the newest sound one.
    special: see `engine.restore`.
    **settings: fields of `Settings`.

  Raises:
    config.ConfigError, errors.Failure: see `texts`.
  """
  how = Settings(**settings)
  found = texts(workdir, prompt, how, step, special=special)
  return [x.text for x in found]


def texts(
  workdir: str | Path,
  prompt: str = '',
  settings: Settings | None = None,
  step: int | None = None,
  show: Callable[[list[str]], None] | None = None,
  *,
  special: bool = False,
) -> list[Text]:
  """Continues a prompt with a sound checkpoint of a run.

  Args:
    workdir: of the run.
    prompt: the text to continue; '' begins a document. A model with an encoder
      reads the prompt there. A run that was tuned by a form gets it in that
      form, as a user's turn.
    settings: how to continue it; None takes the defaults.
    step: of the checkpoint; None is the newest sound one.
    show: is called with all texts so far, every few tokens.
    special: see `engine.restore`.

  Raises:
    config.ConfigError: a setting is out of range, the text would be longer than
      the model's positions, there is no such step, or the tokenizer's file has
      changed.
    errors.Failure: there is no sound checkpoint.
  """
  settings = Settings() if settings is None else settings
  sampler = settings.sampler()
  run = engine.restore(workdir, step, special=special)
  with config.user_errors():  # prompt and text may be too long for the model
    if settings.beams:
      return _search(run, prompt, settings)
    return _draw(run, prompt, settings, sampler, show)


def _search(run: engine.Run, prompt: str, settings: Settings) -> list[Text]:
  ids = run.read(prompt)
  batch = run.prompt([ids])
  tokens, _ = beam.search(
    run.params,
    batch,
    model=run.model,
    beams=settings.beams,
    length=settings.length,
    stop=run.tokenizer.ends,
    penalty=settings.length_penalty,
  )
  rows = tokens[0, : settings.count].tolist()
  before = _before(run, prompt)
  texts = _decoded(
    rows, run.tokenizer, settings.stop, engine.goes_on(batch, ids)
  )
  return [
    Text(before + text, _pieces(ids, run.tokenizer), [])
    for text, ids, _ in texts
  ]


def _draw(
  run: engine.Run,
  prompt: str,
  settings: Settings,
  sampler: generate.Sampler,
  show: Callable[[list[str]], None] | None,
) -> list[Text]:
  tokenizer, stop, before = run.tokenizer, settings.stop, _before(run, prompt)
  ids = run.read(prompt)
  batch = run.prompt([ids] * settings.count)
  parts, nats = [], []
  for state in generate.stream(
    run.params,
    batch,
    model=run.model,
    sampler=sampler,
    length=settings.length,
    stop=tokenizer.ends,
    rng=jax.random.key(settings.seed),
  ):
    drawn = int(state.count)
    rows = state.tokens[:, :drawn].tolist()
    nats = state.nats[:, :drawn].tolist()
    parts = _decoded(rows, tokenizer, stop, engine.goes_on(batch, ids))
    if show is not None:
      show([before + text for text, _, _ in parts])
    # The loop on the device knows ids that end texts, but no stop strings.
    if stop and all(is_cut or len(ids) < drawn for _, ids, is_cut in parts):
      break
  return [
    Text(before + text, _pieces(ids, tokenizer), cost[: len(ids)])
    for (text, ids, _), cost in zip(parts, nats, strict=True)
  ]


def _before(run: engine.Run, prompt: str) -> str:
  """Returns what stands before the new text: an answer stands alone."""
  return prompt if run.form is None else ''


def _pieces(ids: Sequence[int], tokenizer: types.Tokenizer) -> list[str]:
  """Decodes each token alone, as one that follows others."""
  return [tokenizer.decode_next([i]) for i in ids]


def _decoded(
  rows: Iterable[list[int]],
  tokenizer: types.Tokenizer,
  stop: Sequence[str],
  follows: bool,
) -> list[tuple[str, list[int], bool]]:
  """Decodes each row up to its end.

  Returns:
    The text before a stop string, the ids, and whether there was such a string.
  """
  decoded = []
  for row in rows:
    ids = detokenizer.until_end(row, tokenizer)
    whole = detokenizer.decode(ids, tokenizer, follows=follows)
    text = detokenizer.cut(whole, stop)
    decoded.append((text, ids, len(text) < len(whole)))
  return decoded
