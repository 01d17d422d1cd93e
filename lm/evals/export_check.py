"""Whether what was made of a model still says what the model said: a probe.

A probe is 64 texts and what each of their tokens cost the original. Whatever is
made of it, smaller or for another machine, reads them again, and is refused
when its loss has risen by more than a budget. `probe.json` goes along with what
is made: what is made of that again is held against the first original.
"""

from collections.abc import Callable, Mapping
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lm import config, errors, loss, types
from lm.data import objectives, shards, windows

NAME = 'probe.json'
ROWS = 64
_TOGETHER = 4  # rows; a sentence vector is compared with those beside it
_DTYPES = {'weights': np.float32, 'prefix': np.bool_}  # int32 are the others


class Worse(errors.Failure):
  """What was made of a model costs more than its budget: it is refused."""

  exit_code = 9


class Probe(NamedTuple):
  """Texts, and what they cost the original.

  Attributes:
    batch: a text a row, as the model's objective lays it out. Where the logits
      are none over the vocabulary, targets are the original's own answers.
    nats: float32, of each target; 0 where it is not scored.
    about: where both come from.
  """

  batch: types.Batch
  nats: np.ndarray
  about: dict[str, Any]


class Verdict(NamedTuple):
  """Two models' losses on a probe.

  Attributes:
    original_nats, result_nats: a token, on average.
    rise_nats: the average of the differences, in double.
    largest_nats: the largest difference at one token, up or down.
    tokens: how many were scored.
  """

  original_nats: float
  result_nats: float
  rise_nats: float
  largest_nats: float
  tokens: int


def make(
  params: types.Params,
  model: types.Model,
  tokenizer: types.Tokenizer,
  *,
  path: str | Path,
  length: int,
  objective: Mapping[str, Any] = objectives.CAUSAL,
  about: Mapping[str, Any],
) -> Probe:
  """Asks the original.

  Of each of 64 windows, spread evenly over a dataset, the longest part of one
  document is a text; there are fewer where the dataset has fewer windows.

  Args:
    params, model, tokenizer: the original.
    path: directory of token shards.
    length, objective: of the run's data.
    about: what to tell of the original.

  Raises:
    ValueError: the dataset cannot be used, nothing in it is scored, or the
      original's own losses are not finite.
  """
  made = config.build(objective, tokenizer=tokenizer, length=length)
  cut = windows.Windows(shards.load(path, tokenizer), made.window, key=None)
  which = spread(cut.count)
  rows, sizes = cut.read(which)
  for n, row in enumerate(rows):
    window = row[1 : sizes[n] + 1]
    ends = np.flatnonzero(window == tokenizer.eos) + 1
    text = max(np.split(window, ends), key=len)
    sizes[n] = len(text)
    row[0], row[1 : len(text) + 1] = tokenizer.eos, text
  batch = made.make(rows, sizes, cut.keys(which))
  like = jax.eval_shape(model.apply, params, batch).logits
  if like.shape != (*batch.targets.shape, tokenizer.size):
    batch = batch._replace(targets=batch.targets[:, :1])  # a text a row
    answers = _over(lambda *x: model.apply(*x).logits.argmax(-1), params, batch)
    ones = np.ones(answers.shape, np.float32)
    batch = batch._replace(targets=answers, weights=ones)
  if not (batch.weights > 0).any():
    raise ValueError(f'{path}: no token of it is scored: give other texts')
  return asked(params, model, batch, {**about, 'data': cut.source.fingerprint})


def asked(
  params: types.Params,
  model: types.Model,
  batch: types.Batch,
  about: Mapping[str, Any],
) -> Probe:
  """Asks the original what a batch costs it.

  Raises:
    ValueError: its losses are not finite.
  """
  cost = nats(model.apply, params, batch)
  if not np.isfinite(cost).all():
    raise ValueError('probe: the losses of the original are not finite there')
  return Probe(batch, cost, {**about, 'rows': len(cost)})


def spread(count: int) -> np.ndarray:
  """Chooses `ROWS` of `count` rows, or all of fewer, evenly."""
  return np.unique(np.linspace(0, count - 1, ROWS).astype(np.int64))


def nats(
  apply: Callable[..., types.Output], params: types.Params, batch: types.Batch
) -> np.ndarray:
  """Asks what each target costs a model: float32, 0 where it is not scored."""

  def cost(params, part):
    return loss.cross_entropy(apply(params, part).logits, part.targets)

  return np.where(batch.weights > 0, _over(cost, params, batch), 0)


def compare(probe: Probe, cost: np.ndarray) -> Verdict:
  """Holds a model's answers against those of the original."""
  weights = probe.batch.weights.astype(np.float64)
  apart = cost.astype(np.float64) - probe.nats
  total = weights.sum()
  return Verdict(
    float((weights * probe.nats).sum() / total),
    float((weights * cost).sum() / total),
    float((weights * apart).sum() / total),
    float(np.abs(apart).max()),
    int((weights > 0).sum()),
  )


def refusal(verdict: Verdict, budget_nats: float, what: str) -> Worse | None:
  """Says that a model has become worse: its loss rose by more than a budget.

  Losses that are not finite are worse; None: it may be used.
  """
  if verdict.rise_nats <= budget_nats:
    return None
  return Worse(
    f'{what}: refused: its loss is {verdict.result_nats:.4g} nats, not '
    f'{verdict.original_nats:.4g}: {verdict.rise_nats:.4g} more, over '
    f'--budget={budget_nats:g}: change it less, or allow more'
  )


def save(probe: Probe, path: Path) -> None:
  """Writes a probe as JSON, with a sha256 of its own."""
  batch = {
    k: v.tolist() for k, v in probe.batch._asdict().items() if v is not None
  }
  content = {'about': probe.about, 'batch': batch, 'nats': probe.nats.tolist()}
  path.write_text(json.dumps({**content, 'sha256': _sha256(content)}))


def load(path: Path) -> Probe:
  """Reads what `save` wrote.

  Raises:
    errors.Damaged: it is not that.
  """
  try:
    content = json.loads(path.read_bytes())
    digest = content.pop('sha256')
    if digest != _sha256(content):
      raise ValueError('its sha256 differs')
    batch = {
      name: np.asarray(rows, _DTYPES.get(name, np.int32))
      for name, rows in content['batch'].items()
    }
    found = np.asarray(content['nats'], np.float32)
    return Probe(types.Batch(**batch), found, content['about'])
  except (AttributeError, LookupError, RecursionError, TypeError, ValueError):
    raise errors.Damaged(
      f'{path}: its bytes are not those that were written: bring it back, or '
      'delete it and give --text'
    ) from None


def _over(run, params, batch) -> np.ndarray:
  """Runs `(params, part of the batch) -> array` over all rows."""
  run = jax.jit(run)
  parts = [
    jax.tree.map(lambda x, n=n: x[n : n + _TOGETHER], batch)
    for n in range(0, len(batch.tokens), _TOGETHER)
  ]
  return np.concatenate([np.asarray(run(params, part)) for part in parts])


def _sha256(content: dict[str, Any]) -> str:
  text = json.dumps(content, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()
