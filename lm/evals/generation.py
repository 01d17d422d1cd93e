"""Evaluators of generated texts: translations, summaries, answers.

  {'fn': 'lm.evals.generation:make', 'batch_size': 64, 'length': 64, 'new': 48,
   'records': {'fn': 'lm.data.finetuning.pair_readers:multi30k', 'path': ...,
               'target': ...},
   'form': the form that the model was trained with,
   'metrics': ('bleu', 'chrf')}

`answers` measures how likely a model finds the answers of the records instead.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
import hashlib
import math
from typing import Any

import jax
import numpy as np

from lm import sharding, types
from lm.data import objectives
from lm.data.finetuning import batching, tasks
from lm.data.finetuning import records as record_lib
from lm.evals import classification, results, scoring, text_metrics
from lm.evals import context as context_lib
from lm.inference import beam, detokenizer, generate


def make(
  *,
  context: context_lib.Context,
  records: Mapping[str, Any],
  form: Mapping[str, Any],
  batch_size: int,
  length: int,
  new: int,
  metrics: Sequence[str] = ('bleu', 'chrf'),
  beams: int = 1,
  penalty: float = 1.0,
  language: str = 'en',
  folds: int = 1,
  fold: int | None = None,
  limit: int | None = None,
) -> Callable[[types.Params], results.Result]:
  """Makes an evaluator of the likeliest texts that a model generates.

  Args:
    context: the run that is evaluated.
    records: spec of the reader of records, which are pairs.
    form: spec of the form that the model was trained with, see `tasks.make`.
    batch_size: texts at a time; changes nothing but speed.
    length: L, the most positions of a prompt.
    new: the most tokens of an answer.
    metrics: some of `text_metrics.METRICS`: BLEU and chrF of sacrebleu, over
      the whole set; ROUGE-1, -2 and -L of rouge-score, with stems, the best
      over the targets of a record; exact match and F1 of words, as in
      `classification.spans`.
    beams: number of beams of `beam.search`; 1 is greedy.
    penalty: for length, of `beam.search`.
    language: of the answers; 'zh' counts characters in place of words.
    folds: number of parts that the records are divided into.
    fold: the only part that is evaluated; None: all.
    limit: number of records that are evaluated, the first ones; None: all.

  Returns:
    `params -> Result`, whose metrics are those asked for and those of
    `text_metrics.variety`. An item has the answer and the metrics that are
    counted text by text: chrF, ROUGE, exact and F1. The card has the signatures
    of sacrebleu.

  Raises:
    ValueError: a setting is out of range, the form generates nothing, or a
      package is missing.
  """
  for name in metrics:
    if name not in text_metrics.METRICS:
      known = ', '.join(text_metrics.METRICS)
      raise ValueError(f'metrics: {name!r} is not one of {known}')
  settings = {'batch_size': batch_size, 'new': new, 'beams': beams}
  for key, value in settings.items():
    objectives.check_whole(key, value, 1)
  classification.check_language(language)
  data, prompt, _ = _read(
    records, form, context.tokenizer, length, folds, fold, limit
  )
  scorers = [
    text_metrics.METRICS[name](data.records, language) for name in metrics
  ]
  answer = _generator(context, prompt, batch_size, length, new, beams, penalty)

  def evaluate(params: types.Params) -> results.Result:
    # Sorted by length, so that few texts of a batch wait for a long one.
    order = sorted(
      range(len(data.records)), key=lambda n: len(data.records[n].source)
    )
    texts = [''] * len(data.records)
    for start in range(0, len(order), batch_size):
      part = order[start : start + batch_size]
      answered = answer(params, [data.records[n] for n in part])
      for n, text in zip(part, answered, strict=True):
        texts[n] = text
    items: list[results.Item] = [
      {'id': record.id, 'answer': text}
      for record, text in zip(data.records, texts, strict=True)
    ]
    metric: dict[str, float] = {}
    card = data.card._asdict()
    for name, scorer in zip(metrics, scorers, strict=True):
      metric |= scorer.score(texts, items)
      if scorer.signature is not None:
        card[name] = scorer.signature()
    metric |= text_metrics.variety(texts, language)
    return results.Result(metric, items, card)

  return evaluate


def answers(
  *,
  context: context_lib.Context,
  records: Mapping[str, Any],
  form: Mapping[str, Any],
  batch_size: int,
  length: int,
  folds: int = 1,
  fold: int | None = None,
  limit: int | None = None,
) -> Callable[[types.Params], results.Result]:
  """Makes an evaluator of the loss of a model on the answers of records.

  This is the loss of training, on records that are held out: only the tokens
  that the form scores count, which are those of answers and their ends. The
  arguments are the same as in `make`.

  Returns:
    `params -> Result`, whose metrics are `loss_nats` and `perplexity` per
    token, `tokens`, and `answer_nats`, the mean over records of the nats of a
    whole answer. An item has its `answer_nats` and `tokens`; one without
    scored tokens has no `answer_nats`.

  Raises:
    ValueError: see `make`; or the form scores no tokens.
  """
  model, tokenizer, mesh = context
  objectives.check_whole('batch_size', batch_size, 1)
  data, _, (built, rows) = _read(
    records, form, tokenizer, length, folds, fold, limit
  )
  tasks.check_scored(data, rows)
  host, hosts = sharding.host(mesh, batch_size)
  token_nats = scoring.compiled(model.apply, mesh)

  def evaluate(params: types.Params) -> results.Result:
    nats, tokens = np.zeros((2, len(data.records)))
    for n in range(0, len(rows), batch_size):
      part = rows[n : n + batch_size]
      filled = [[row] for row in part] + [[]] * (batch_size - len(part))
      batch = batching.assemble(filled, built, length, tokenizer)
      with jax.set_mesh(mesh):
        nats_BL, _ = token_nats(params, sharding.put(batch, mesh, host, hosts))
      scored_BL = np.asarray(nats_BL, np.float64) * batch.weights
      # A record may have several rows; rows of padding have none.
      for row, row_nats, row_tokens in zip(
        part, scored_BL.sum(1), batch.weights.sum(1), strict=False
      ):
        nats[row.record] += row_nats
        tokens[row.record] += row_tokens
    items: list[results.Item] = [
      {
        'id': record.id,
        'answer_nats': x if count else None,
        'tokens': int(count),
      }
      for record, x, count in zip(
        data.records, nats.tolist(), tokens.tolist(), strict=True
      )
    ]
    loss_nats = float(nats.sum() / tokens.sum())
    metric = {
      'loss_nats': loss_nats,
      'perplexity': math.exp(min(loss_nats, 700)),
      **results.means(items, 'answer_nats'),
      'tokens': int(tokens.sum()),
    }
    return results.Result(metric, items, data.card._asdict())

  return evaluate


def ended(tokens_BL: types.Array, tokenizer: types.Tokenizer) -> list[str]:
  """Decodes the tokens before the end of each row."""
  return [
    detokenizer.decode(
      detokenizer.until_end(ids, tokenizer), tokenizer, follows=False
    ).strip()
    for ids in np.asarray(tokens_BL).tolist()
  ]


def seed(name: str) -> int:
  """Draws a prompt's seed from its name, so that others do not change it."""
  return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)


def sampled(
  context: context_lib.Context,
  prompt: Callable[[Sequence[list[int]]], types.Batch],
  sampler: generate.Sampler,
  *,
  batch_size: int,
  length: int,
  new: int,
  key: jax.Array,
) -> Callable[
  [types.Params, Sequence[list[int]], Sequence[str]], Iterator[str]
]:
  """Makes `(params, ids of prompts, names of prompts) -> continuations`.

  Args:
    context: the run that is evaluated.
    prompt: of the objective, see `objectives.Objective`.
    sampler: settings of how tokens are drawn.
    batch_size: texts at a time.
    length: L, the most tokens of a prompt.
    new: the most tokens of a continuation.
    key: folded with the seed of each prompt, which follows from its name.
  """
  model, tokenizer, mesh = context

  def sample(
    params: types.Params, ids: Sequence[list[int]], names: Sequence[str]
  ) -> Iterator[str]:
    for first in range(0, len(ids), batch_size):
      count = min(batch_size, len(ids) - first)
      # Filled up, so that one program serves all batches.
      filled = [first + min(n, count - 1) for n in range(batch_size)]
      batch = widened(prompt([ids[n] for n in filled]), length)
      seeds_B = np.array([seed(names[n]) for n in filled], np.uint32)
      with jax.set_mesh(mesh):
        state = generate.generate(
          params,
          sharding.put(batch, mesh),
          model=model,
          sampler=sampler,
          length=new,
          stop=tokenizer.ends,
          rng=jax.vmap(lambda x: jax.random.fold_in(key, x))(seeds_B),
        )
      yield from ended(state.tokens, tokenizer)[:count]

  return sample


def widened(batch: types.Batch, length: int) -> types.Batch:
  """Pads a decoder's prompts to a power of two, so that few programs compile.

  Args:
    batch: of prompts. One with a source is returned as it is, as every source
      has the same width.
    length: the widest that prompts may be padded to.
  """
  size = batch.tokens.shape[1]
  if batch.source is not None:
    return batch
  width = min(max(16, 1 << (size - 1).bit_length()), max(length, size))
  return batch._replace(
    **{
      name: np.pad(x, ((0, 0), (0, width - size)))
      for name, x in batch._asdict().items()
      if x is not None
    }
  )


def _read(
  records: Mapping[str, Any],
  form: Mapping[str, Any],
  tokenizer: types.Tokenizer,
  length: int,
  folds: int,
  fold: int | None,
  limit: int | None,
) -> tuple[
  record_lib.Records,
  Callable[[Sequence[Any]], types.Batch],
  tuple[batching.Form, list[batching.Row]],
]:
  """Reads records, and the prompt, the form and the rows made of them.

  Raises:
    ValueError: the form generates nothing.
  """
  data, built, rows = classification.read(
    records, form, tokenizer, length, folds, fold, limit
  )
  if built.prompt is None:
    raise ValueError(
      f'{form["fn"]}: generates nothing: use lm.evals.classification'
    )
  return data, built.prompt, (built, rows)


def _generator(
  context: context_lib.Context,
  prompt: Callable[[Sequence[Any]], types.Batch],
  batch_size: int,
  length: int,
  new: int,
  beams: int,
  penalty: float,
) -> Callable[[types.Params, Sequence[Any]], list[str]]:
  """Makes `(params, records) -> answers` for at most `batch_size` records."""
  model, tokenizer, mesh = context
  settings = {'model': model, 'length': new, 'stop': tokenizer.ends}
  greedy = partial(
    generate.generate,
    sampler=generate.Sampler(temperature=0),
    rng=jax.random.key(0),  # which greedy sampling does not use
    **settings,
  )
  search = partial(beam.search, beams=beams, penalty=penalty, **settings)

  def answer(params: types.Params, part: Sequence[Any]) -> list[str]:
    # Filled up, so that one program serves all batches.
    filled = [*part, *[part[-1]] * (batch_size - len(part))]
    prompts = widened(prompt(filled), length)
    with jax.set_mesh(mesh):
      batch = sharding.put(prompts, mesh)
      if beams == 1:
        tokens_BL = greedy(params, batch).tokens
      else:
        tokens_BL = search(params, batch)[0][:, 0]
    return ended(tokens_BL[: len(part)], tokenizer)

  return answer
