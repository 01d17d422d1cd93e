"""Evaluators of what a model writes: translations, summaries, answers.

{'fn': 'lm.evals.generation:make', 'batch_size': 64, 'length': 64, 'new': 48,
 'records': {'fn': 'lm.data.finetuning.pair_readers:multi30k', 'path': ..., 'target': ...},
 'form': the form that the model was trained with, 'metrics': ('bleu', 'chrf')}

`answers` tells how likely it finds the answers that the records have.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
import math
from typing import Any

import jax
import numpy as np

from lm import sharding, types
from lm.data import objectives
from lm.data.finetuning import batching
from lm.evals import classification, results, scoring
from lm.evals import context as context_lib
from lm.inference import beam, generate

METRICS = ('bleu', 'chrf', 'rouge', 'exact', 'f1')
_NGRAMS = (1, 2)  # of distinct-n, Li et al. 2016
_REPEATED = 4  # words, of seq-rep-n, Welleck et al. 2020


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
  """Makes an evaluator of texts that a model writes, the likeliest ones.

  Args:
    context: the run that is evaluated.
    records, form, length, folds: as of `tasks.make`; records are pairs.
    batch_size: texts at a time; changes nothing but speed.
    new: the most tokens of an answer.
    metrics: of `METRICS`: BLEU and chrF of sacrebleu, over the whole set;
      ROUGE-1, -2 and -L of rouge-score, with stems, the best of a record's
      targets each; exact match and F1 of words as `labels.spans` has them.
    beams, penalty: of `beam.search`; 1 is greedy.
    language: of the answers; 'zh' counts characters.
    fold: judges this part of the records alone; None: all.
    limit: judges the first so many; None: all.

  Returns:
    `params -> Result`: the metrics; `distinct_1` and `distinct_2`, the share of
    words and pairs of words that are not said again, over the whole set (Li et
    al. 2016, arXiv 1510.03055, section 5.1); `repetition`, the share of an
    answer's runs of four words that it has said before, its mean over those
    that have one (seq-rep-4, Welleck et al. 2020, arXiv 1908.04319, section 6);
    and `length`, words an answer. An item has the answer and what is counted
    text by text: chrF, ROUGE, exact and F1. The card has the signatures of
    sacrebleu.

  Raises:
    ValueError: a setting is out of range, the form writes nothing, or a package
      is missing.
  """
  model, tokenizer, mesh = context
  for name in metrics:
    if name not in METRICS:
      raise ValueError(f'metrics: {name!r} is not one of {", ".join(METRICS)}')
  for key, value in (
    ('batch_size', batch_size),
    ('new', new),
    ('beams', beams),
  ):
    objectives.check_whole(key, value, 1)
  if language not in ('en', 'zh'):
    raise ValueError(f"language={language!r} is neither 'en' nor 'zh'")
  found, made, _ = classification.read(
    records, form, tokenizer, length, folds, fold, limit
  )
  prompt = made.prompt
  if prompt is None:
    raise ValueError(
      f'{form["fn"]}: writes nothing: use lm.evals.classification'
    )
  asked = found.records
  judges = [_JUDGES[name](asked, language) for name in metrics]
  if beams == 1:
    write = partial(
      generate.generate,
      model=model,
      sampler=generate.Sampler(temperature=0),
      length=new,
      stop=tokenizer.eos,
      rng=jax.random.key(0),
    )
  else:
    write = partial(
      beam.search,
      model=model,
      beams=beams,
      length=new,
      stop=tokenizer.eos,
      penalty=penalty,
    )

  def answer(params, part) -> list[str]:
    # Filled up, so that one program serves all parts.
    filled = [*part, *[part[-1]] * (batch_size - len(part))]
    batch = widened(prompt(filled), length)
    with jax.set_mesh(mesh):
      done = write(params, sharding.put(batch, mesh))
    tokens_BL = done.tokens if beams == 1 else done[0][:, 0]
    return ended(tokens_BL[: len(part)], tokenizer)

  def evaluate(params: types.Params) -> results.Result:
    # Alike in length, so that few wait for one.
    order = sorted(range(len(asked)), key=lambda n: len(asked[n].source))
    texts = [''] * len(asked)
    for n in range(0, len(order), batch_size):
      part = order[n : n + batch_size]
      for place, text in zip(
        part, answer(params, [asked[i] for i in part]), strict=True
      ):
        texts[place] = text
    items: list[results.Item] = [
      {'id': record.id, 'answer': text}
      for record, text in zip(asked, texts, strict=True)
    ]
    metric: dict[str, float] = {}
    card = found.card._asdict()
    for name, (judge, package) in zip(metrics, judges, strict=True):
      metric |= judge(texts, items)
      if package is not None:  # how sacrebleu counted, and which one
        card[name] = package.get_signature().format()
    return results.Result({**metric, **variety(texts, language)}, items, card)

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
  """Makes an evaluator of what the answers of records cost a model.

  This is the loss of training on records that are held out: of what the form
  scores, so of answers and their ends alone. Arguments are those of `make`.

  Returns:
    `params -> Result`: `loss_nats` and `perplexity` a token, `tokens`, and
    `answer_nats`, the mean over records of all that one costs. An item has its
    `answer_nats` and `tokens`.

  Raises:
    ValueError: as of `make`; the form scores no tokens.
  """
  model, tokenizer, mesh = context
  objectives.check_whole('batch_size', batch_size, 1)
  found, made, rows = classification.read(
    records, form, tokenizer, length, folds, fold, limit
  )
  if made.prompt is None:
    raise ValueError(
      f'{form["fn"]}: writes nothing: use lm.evals.classification'
    )
  host, hosts = sharding.host(mesh, batch_size)
  costs = scoring.compiled(model.apply, mesh)

  def evaluate(params: types.Params) -> results.Result:
    nats, tokens = np.zeros((2, len(found.records)))
    for n in range(0, len(rows), batch_size):
      part = rows[n : n + batch_size]
      filled = [[row] for row in part] + [[]] * (batch_size - len(part))
      batch = batching.assemble(filled, made, length, tokenizer)
      with jax.set_mesh(mesh):
        nats_BL, _ = costs(params, sharding.put(batch, mesh, host, hosts))
      cost_BL = np.asarray(nats_BL, np.float64) * batch.weights
      for row, cost, counted in zip(
        part, cost_BL.sum(1), batch.weights.sum(1), strict=False
      ):
        nats[row.record] += cost
        tokens[row.record] += counted
    items: list[results.Item] = [
      {'id': record.id, 'answer_nats': cost, 'tokens': int(count)}
      for record, cost, count in zip(
        found.records, nats.tolist(), tokens.tolist(), strict=True
      )
    ]
    loss_nats = float(nats.sum() / tokens.sum())
    metric = {
      'loss_nats': loss_nats,
      'perplexity': math.exp(min(loss_nats, 700)),
      **results.means(items, 'answer_nats'),
      'tokens': int(tokens.sum()),
    }
    return results.Result(metric, items, found.card._asdict())

  return evaluate


def variety(texts: Sequence[str], language: str) -> dict[str, float]:
  """Counts distinct-1, distinct-2, repetition and words a text; see `make`."""
  words = [list(x) if language == 'zh' else x.split() for x in texts]

  def grams(text, n):
    return [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]

  found = {}
  for n in _NGRAMS:
    every = [gram for text in words for gram in grams(text, n)]
    found[f'distinct_{n}'] = len(set(every)) / max(len(every), 1)
  again = [
    1 - len(set(every)) / len(every)
    for every in (grams(text, _REPEATED) for text in words)
    if every
  ]
  found['repetition'] = sum(again) / max(len(again), 1)
  found['length'] = sum(map(len, words)) / max(len(words), 1)
  return found


def ended(tokens_BL: types.Array, tokenizer: types.Tokenizer) -> list[str]:
  """Decodes what stands before the eos of each row."""
  texts = []
  for ids in np.asarray(tokens_BL).tolist():
    stop = ids.index(tokenizer.eos) if tokenizer.eos in ids else len(ids)
    texts.append(tokenizer.decode(ids[:stop]).strip())
  return texts


def widened(batch: types.Batch, length: int) -> types.Batch:
  """Pads prompts of a decoder to one of few widths, so that few compile."""
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


# Each `(records, language) -> (judge, metric of sacrebleu or None)`; judge is
# `(texts, items) -> metrics`, and adds to the items.
def _bleu(records, language):
  package = classification.package('sacrebleu', 'sacrebleu')
  metric = package.BLEU(tokenize='zh' if language == 'zh' else '13a')

  def judge(texts, items):
    del items  # of the whole set alone
    return {'bleu': metric.corpus_score(texts, _references(records)).score}

  return judge, metric


def _chrf(records, language):
  del language
  metric = classification.package('sacrebleu', 'sacrebleu').CHRF()

  def judge(texts, items):
    for record, text, item in zip(records, texts, items, strict=True):
      item['chrf'] = metric.sentence_score(text, record.targets).score
    return {'chrf': metric.corpus_score(texts, _references(records)).score}

  return judge, metric


def _rouge(records, language):
  package = classification.package('rouge_score.rouge_scorer', 'rouge-score')
  kinds = ['rouge1', 'rouge2', 'rougeL']
  words = _Characters() if language == 'zh' else None
  scorer = package.RougeScorer(kinds, use_stemmer=True, tokenizer=words)

  def judge(texts, items):
    for record, text, item in zip(records, texts, items, strict=True):
      scores = [scorer.score(target, text) for target in record.targets]
      for kind in kinds:
        item[kind] = max(score[kind].fmeasure for score in scores)
    return results.means(items, *kinds)

  return judge, None


def _answers(name, compare):
  def prepare(records, language):
    def judge(texts, items):
      for record, text, item in zip(records, texts, items, strict=True):
        item[name] = max(compare(text, x, language) for x in record.targets)
      return results.means(items, name)

    return judge, None

  return prepare


class _Characters:
  """What rouge-score asks for words: the characters of a text."""

  def tokenize(self, text: str) -> list[str]:
    return [x for x in text if not x.isspace()]


def _references(records) -> list[list[str | None]]:
  """Turns targets into as many lists as a record has at the most."""
  most = max(len(record.targets) for record in records)
  return [
    [
      record.targets[n] if n < len(record.targets) else None
      for record in records
    ]
    for n in range(most)
  ]


_JUDGES = {
  'bleu': _bleu,
  'chrf': _chrf,
  'rouge': _rouge,
  'exact': _answers('exact', classification.exact_match),
  'f1': _answers('f1', classification.overlap),
}
