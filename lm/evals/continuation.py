"""Evaluates how repetitive the texts are that a model writes freely.

{'fn': 'lm.evals.continuation:make', 'path': 'novels.jsonl.gz',
 'batch_size': 32, 'length': 64, 'new': 128}
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from lm import config, types
from lm.data import names, objectives
from lm.data.finetuning import fields, record_files
from lm.data.finetuning import records as record_lib
from lm.evals import classification, generation, results, text_metrics
from lm.evals import context as context_lib
from lm.inference import generate


def make(
  *,
  context: context_lib.Context,
  path: str,
  batch_size: int,
  length: int,
  new: int,
  sampler: Mapping[str, Any] | None = None,
  language: str = 'en',
  objective: Mapping[str, Any] = objectives.CAUSAL,
) -> Callable[[types.Params], results.Result]:
  """Makes an evaluator of continuations of held-out texts.

  A prompt is the first `length` - 1 tokens of a text, after bos. What a person
  has written there, the next `new` tokens, is measured in the same way, and is
  the aim: less repetition is not better without end.

  Args:
    context: the run that is evaluated.
    path: of a file of JSON lines with a `text`, or a pattern.
    batch_size: texts at a time; changes nothing but speed.
    length: L, the tokens of a prompt, bos among them.
    new: the most tokens of a continuation.
    sampler: settings of `generate.Sampler`; None takes the likeliest token, as
      the reference does. Each prompt has a random key of its own.
    language: of the texts; 'zh' counts characters in place of words.
    objective: spec of the objective that the model was trained for.

  Returns:
    `params -> Result`, whose metrics are those of `text_metrics.variety`, and
    the same under 'NAME/person' for what people wrote. An item has the
    continuation and its repetition.

  Raises:
    ValueError: a setting is out of range, no text is long enough, or the
      objective generates nothing.

  Reference: Welleck et al. 2020, arXiv 1908.04319, section 6.
  """
  settings = {'batch_size': batch_size, 'length': length, 'new': new}
  for key, value in settings.items():
    objectives.check_whole(key, value, 1)
  drawing: dict[str, Any] = {'temperature': 0.0, **(sampler or {})}
  if unknown := drawing.keys() - {*generate.Sampler._fields}:
    raise ValueError(f'sampler: unknown key {min(unknown)}')
  drawn = generate.Sampler(**drawing).check()
  classification.check_language(language)
  built = config.build(objective, tokenizer=context.tokenizer, length=length)
  if built.prompt is None:
    raise ValueError(f'{objective["fn"]}: nothing can be sampled from it')
  prompts, written = _cut(context.tokenizer, path, length, new)
  card = record_lib.dataset_card(
    *('continuation', path, 'given by the user', '', 'repetition')
  )
  sample = generation.sampled(
    context,
    built.prompt,
    drawn,
    batch_size=batch_size,
    length=length,
    new=new,
    key=jax.random.key(0),
  )
  seeds = [str(n) for n in range(len(prompts))]
  person = {
    f'{name}/person': value
    for name, value in text_metrics.variety(written, language).items()
  }

  def evaluate(params: types.Params) -> results.Result:
    texts = [*sample(params, prompts, seeds)]
    items: list[results.Item] = [
      {
        'id': f'continuation/{n}',
        'text': text,
        'repetition': text_metrics.variety([text], language)['repetition'],
      }
      for n, text in enumerate(texts)
    ]
    metric = text_metrics.variety(texts, language) | person
    return results.Result(metric, items, card._asdict())

  return evaluate


def _cut(
  tokenizer: types.Tokenizer,
  path: str,
  length: int,
  new: int,
) -> tuple[list[list[int]], list[str]]:
  """Cuts texts into prompts, without bos, and what people went on with.

  Raises:
    ValueError: no text is long enough, or a row has no text.
  """
  prompts, written = [], []
  where = names.short(path)
  for n, row in enumerate(record_files.json_lines(path)):
    try:
      text = fields.text(row, 'text')
    except fields.FieldError as error:
      raise ValueError(f'task {where}: line {n + 1}: {error}') from error
    # Few tokens have more than 16 characters, and a novel has a million.
    ids = tokenizer.encode(text[: 16 * (length + new)])
    if len(ids) >= length - 1 + new:
      prompts.append(ids[: length - 1])
      written.append(tokenizer.decode(ids[length - 1 : length - 1 + new]))
  if not prompts:
    raise ValueError(
      f'task {where}: no text has {length - 1 + new} tokens; lower length'
    )
  return prompts, written
