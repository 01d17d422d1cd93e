"""Prompts of a run: a text to continue, or what its form makes of a request.

A run that was tuned on records by a form (`lm.data.finetuning.pair_forms`) has
only seen texts in that form, so that it is asked in no other way. The form is a
part of the run's config.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
import re
from typing import NamedTuple

import numpy as np

from lm import config, types
from lm.data import objectives
from lm.data.finetuning import batching, records

_SCORING = 'lm.data.finetuning.forms:'  # the module of forms that score
Turns = Sequence[tuple[str, str]]  # role and text of each turn
_TOO_LONG = 'more tokens than the form has room for; shorten it'


class TooLong(ValueError):
  """A text or conversation of which a form would leave a part out."""


class Prompts(NamedTuple):
  """How prompts are made.

  Attributes:
    batch: makes the batch that a model continues, from the ids of texts; that
      of a form with a source raises TooLong where they do not fit.
    form: returns the ids of a conversation that waits for an answer, and raises
      TooLong where it does not fit; None where a run continues texts.
  """

  batch: Callable[[Sequence[Sequence[int]]], types.Batch]
  form: Callable[[Turns], list[int]] | None = None


def of_run(
  c: config.Config, tokenizer: types.Tokenizer, workdir: str | Path
) -> Prompts | None:
  """Finds out how a run is asked; None if it does not write.

  Args:
    c: the run's config.
    tokenizer: of the run.
    workdir: of the run, outside of which its config may read no file.

  Raises:
    config.ConfigError: its form or objective cannot be built.
  """
  objective, form = part(c, 'objective'), part(c, 'form')
  if objective is not None:
    config.check_files(objective, workdir, key='data.objective')
    settings = {'tokenizer': tokenizer, 'length': c.data.length}
    batch = config.build(objective, **settings).prompt
    return None if batch is None else Prompts(batch)
  # What scores classes or places writes nothing.
  if form is None or str(form.get('fn')).startswith(_SCORING):
    return None
  config.check_files(form, workdir, key='data.form')
  form = config.build(form, tokenizer=tokenizer, length=c.data.length)
  return None if form.prompt is None else _of_form(form, tokenizer)


def part(c: config.Config, name: str) -> config.Config | None:
  """Finds the objective or the form that a run was trained with.

  Args:
    c: the run's config. The function of its data may be the user's own, with
      other settings.
    name: 'objective' or 'form'.

  Returns:
    Its spec; None where there is none, or no `data.length` to build it with.
  """
  if 'data' not in c or type(c.data.get('length')) is not int:
    return None
  spec = c.data.get(name)
  return spec if config.is_tree(spec) and 'fn' in spec else None


def trained_by(c: config.Config) -> str:
  """Names the function that a run was trained by, for messages."""
  spec = part(c, 'objective') or part(c, 'form') or c.get('data')
  return spec.fn if spec else 'a function that its config does not name'


def reading_special(tokenizer: types.Tokenizer) -> types.Tokenizer:
  """Makes a tokenizer that reads special tokens in a text, by their names.

  These are the names of its file, such as <|im_start|>, and <bos>, <eos>, <pad>
  and <mask>, which every tokenizer has. A prompt is trusted then: by default no
  text can spell a special token.
  """
  ids = {'<bos>': tokenizer.bos, '<eos>': tokenizer.eos, '<pad>': tokenizer.pad}
  if tokenizer.mask is not None:
    ids['<mask>'] = tokenizer.mask
  ids |= tokenizer.special
  # The longest first: one name may begin with another.
  names = sorted(ids, key=len, reverse=True)
  pattern = re.compile('|'.join(map(re.escape, names)))

  def encode(text: str) -> list[int]:
    found, start = [], 0
    for match in pattern.finditer(text):
      if start < match.start():
        found += tokenizer.encode(text[start : match.start()])
      found.append(ids[match[0]])
      start = match.end()
    return found + (tokenizer.encode(text[start:]) if text[start:] else [])

  return tokenizer._replace(
    encode=encode, encode_batch=lambda texts: [encode(x) for x in texts]
  )


def _of_form(form: batching.Form, tokenizer: types.Tokenizer) -> Prompts:
  """Splits what a form makes of a request: into ids, and ids into a batch."""
  build = form.prompt
  assert build is not None

  def waiting(turns: Turns) -> list[records.Chat]:
    # The form leaves out the last turn, which is what the model writes.
    return [records.Chat('prompt', (*turns, ('assistant', '')))]

  def ids(turns: Turns) -> list[int]:
    chats = waiting(turns)
    # A row with an empty answer and its end loses what the prompt would lose.
    if any(row.cut for row in form.rows(chats)):
      raise TooLong(_TOO_LONG)
    batch = build(chats)
    if batch.source is None or batch.source_segments is None:
      return batch.tokens[0][batch.segments[0] > 0].tolist()[1:]  # after bos
    return batch.source[0][batch.source_segments[0] > 0].tolist()[:-1]

  if form.source is None:
    return Prompts(
      lambda texts: objectives.padded(
        [[tokenizer.bos, *text] for text in texts], tokenizer.pad
      ),
      ids,
    )
  beginning, width = build(waiting([('user', '')])), form.source

  def batch(texts: Sequence[Sequence[int]]) -> types.Batch:
    source_BS = np.full((len(texts), width), tokenizer.pad, np.int32)
    segments_BS = np.zeros_like(source_BS)
    for row, segments, text in zip(source_BS, segments_BS, texts, strict=True):
      if len(text) >= width:
        raise TooLong(_TOO_LONG)
      read = [*text, tokenizer.eos]
      row[: len(read)], segments[: len(read)] = read, 1
    whole = {
      name: np.repeat(x, len(texts), axis=0)
      for name, x in beginning._asdict().items()
      if x is not None
    }
    return types.Batch(
      **{**whole, 'source': source_BS, 'source_segments': segments_BS}
    )

  return Prompts(batch, ids)
