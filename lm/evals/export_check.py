"""Checks that an exported model still matches the original.

A probe is 64 texts and the loss of the original at each of their tokens. An
exported model, smaller or for another machine, reads the same texts, and is
refused if its mean loss has risen by more than a budget. `probe.json` goes
along with the exported model: what is exported from that again is compared with
the first original.
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
from lm.runtime import regular_files

NAME = 'probe.json'
ROWS = 64
# Rows at a time: the loss of a sentence vector depends on those beside it.
_TOGETHER = 4
_DTYPES = {'weights': np.float32, 'prefix': np.bool_}  # all others: int32


class Worse(errors.Failure):
  """The loss of an exported model has risen by more than the budget."""

  exit_code = 9


class Probe(NamedTuple):
  """Texts, and the losses of the original on them.

  Attributes:
    batch: one text per row, as the model's objective lays it out. If the logits
      are not over the vocabulary, the targets are the original's own answers.
    nats: the loss at each target, float32; 0 where nothing is scored.
    about: where model and texts come from.
  """

  batch: types.Batch
  nats: np.ndarray
  about: dict[str, Any]


class Decision(NamedTuple):
  """The losses of an original and of an exported model on a probe.

  Attributes:
    original_nats: mean loss per token of the original.
    result_nats: mean loss per token of the exported model.
    rise_nats: mean of the differences, in double precision.
    largest_nats: the largest difference at one token, up or down.
    tokens: number of tokens that were scored.
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
  """Makes a probe from a dataset: runs the original on 64 texts of it.

  The texts are parts of 64 windows, spread evenly over the dataset: the longest
  part of one document in each. A dataset with fewer windows gives fewer texts.

  Args:
    params: of the original.
    model: the original.
    tokenizer: of the original.
    path: folder of token shards.
    length: L, of the run's data.
    objective: spec of the run's objective.
    about: a description of the original that the probe keeps.

  Raises:
    ValueError: the dataset cannot be used, nothing in it is scored, or the
      original's own losses are not finite.
  """
  built = config.build(objective, tokenizer=tokenizer, length=length)
  cut = windows.Windows(shards.load(path, tokenizer), built.window, key=None)
  which = spread(cut.count)
  rows, sizes = cut.read(which)
  for n, row in enumerate(rows):
    window = row[1 : sizes[n] + 1]
    ends = np.flatnonzero(window == tokenizer.eos) + 1
    text = max(np.split(window, ends), key=len)
    sizes[n] = len(text)
    row[0], row[1 : len(text) + 1] = tokenizer.eos, text
  batch = built.make(rows, sizes, cut.keys(which))
  like = jax.eval_shape(model.apply, params, batch).logits
  if like.shape != (*batch.targets.shape, tokenizer.size):
    batch = batch._replace(targets=batch.targets[:, :1])  # one text per row
    answers = _over(lambda *x: model.apply(*x).logits.argmax(-1), params, batch)
    ones = np.ones(answers.shape, np.float32)
    batch = batch._replace(targets=answers, weights=ones)
  if not (batch.weights > 0).any():
    raise ValueError(f'{path}: no token of it is scored: give other texts')
  return probe_batch(
    params, model, batch, {**about, 'data': cut.source.fingerprint}
  )


def probe_batch(
  params: types.Params,
  model: types.Model,
  batch: types.Batch,
  about: Mapping[str, Any],
) -> Probe:
  """Makes a probe from a batch: runs the original on it.

  Raises:
    ValueError: its losses are not finite.
  """
  cost = nats(model.apply, params, batch)
  if not np.isfinite(cost).all():
    raise ValueError('probe: the losses of the original are not finite there')
  return Probe(batch, cost, {**about, 'rows': len(cost)})


def spread(count: int) -> np.ndarray:
  """Chooses `ROWS` of `count` rows, evenly spread, or all if there are few."""
  return np.unique(np.linspace(0, count - 1, ROWS).astype(np.int64))


def nats(
  apply: Callable[..., types.Output], params: types.Params, batch: types.Batch
) -> np.ndarray:
  """Computes a model's loss at each target: float32, 0 where not scored."""

  def cost(params, part):
    return loss.cross_entropy(apply(params, part).logits, part.targets)

  return np.where(batch.weights > 0, _over(cost, params, batch), 0)


def compare(probe: Probe, cost: np.ndarray) -> Decision:
  """Compares the losses of an exported model with those of the original.

  Args:
    probe: of the original.
    cost: losses of the exported model, as `nats` gives them.
  """
  weights = probe.batch.weights.astype(np.float64)
  apart = cost.astype(np.float64) - probe.nats
  total = weights.sum()
  return Decision(
    float((weights * probe.nats).sum() / total),
    float((weights * cost).sum() / total),
    float((weights * apart).sum() / total),
    float(np.abs(apart).max()),
    int((weights > 0).sum()),
  )


def refusal(decision: Decision, budget_nats: float, name: str) -> Worse | None:
  """Gives an error if the loss of a model rose by more than a budget.

  Losses that are not finite are worse, too.

  Args:
    decision: of `compare`.
    budget_nats: the largest allowed rise of the mean loss.
    name: of the exported model, for the error.
  """
  if decision.rise_nats <= budget_nats:
    return None
  return Worse(
    f'{name}: refused: its loss is {decision.result_nats:.4g} nats, not '
    f'{decision.original_nats:.4g}: {decision.rise_nats:.4g} more, over '
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
    errors.Damaged: the file holds something else.
  """
  try:
    with regular_files.open_read(path) as file:
      content = json.load(file)
    digest = content.pop('sha256')
    if digest != _sha256(content):
      raise ValueError('its sha256 differs')
    batch = {
      name: np.asarray(rows, _DTYPES.get(name, np.int32))
      for name, rows in content['batch'].items()
    }
    cost = np.asarray(content['nats'], np.float32)
    return Probe(types.Batch(**batch), cost, content['about'])
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
