"""Evaluates the likelihood of a dataset: nats, bits per byte, perplexity."""

from collections.abc import Callable, Mapping
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm import config, loss, metrics, sharding, types
from lm.data import objectives, prefetch, stream
from lm.evals import context as context_lib
from lm.evals import results


def make(
  *,
  context: context_lib.Context,
  path: str,
  batch_size: int,
  length: int,
  objective: Mapping[str, Any] = objectives.CAUSAL,
  words: int | None = None,
  chunks: int | None = None,
) -> results.Evaluator:
  """Makes an evaluator that reads every token of a dataset exactly once.

  Documents are cut into windows of `length`. A token sees the tokens before it
  in its window, so longer windows give lower losses.

  Args:
    context: the run that is evaluated.
    path: folder of token shards.
    batch_size: windows at a time; changes nothing but speed.
    length: L, targets per window.
    objective: spec of the objective that makes examples of windows. The losses
      of one that is not causal are not those of the text: then only their mean
      and number are given.
    words: number of words of the text (ends of lines included), for
      word_perplexity; None leaves it out.
    chunks: number of parts in which the loss is computed, see `loss.make`.

  Returns:
    `params -> Result`, whose metrics are loss_nats, perplexity, bits_per_byte
    and tokens: nats per token, ends of documents included; bits per byte of the
    UTF-8 text. bits_per_byte and word_perplexity are left out where the ids do
    not give back the text, because their likelihood is then not that of the
    text. An item is a document, with its nats and tokens. There are none with
    an objective that does not score each token once, or where several processes
    share the rows.

  Raises:
    ValueError: the dataset cannot be used.
  """
  model, tokenizer, mesh = context
  data = stream.once(
    path,
    tokenizer=tokenizer,
    batch_size=batch_size,
    length=length,
    objective=objective,
  )

  asked = config.build(objective, tokenizer=tokenizer, length=length)
  if chunks is not None and chunks < 1:
    raise ValueError(f'chunks={chunks} must be at least 1')

  score = _compiled(model.apply, model.head, chunks)

  def scored(params, host, hosts):
    """Yields each batch of the host with what the device has made of it."""
    assert data.steps is not None
    pending = None  # the device works on a batch while the next one is read
    for _, batch in prefetch.batches(
      data, 0, data.steps, threads=1, host=host, hosts=hosts
    ):
      with jax.set_mesh(mesh):
        found = score(params, sharding.put(batch, mesh, host, hosts))
      if pending is not None:
        yield pending
      pending = batch, *found
    assert pending is not None
    yield pending

  def evaluate(params: types.Params) -> results.Result:
    # Summed on the host in double precision: a float32 sum of 10^7 losses has
    # two digits.
    context_lib.check_scores(context, params, asked)
    nats = tokens = 0.0
    host, hosts = sharding.host(mesh, batch_size)
    documents = _Documents(tokenizer.eos)
    for batch, metric, nats_BL in scored(params, host, hosts):
      nats += float(metric.total)
      tokens += float(metric.weight)
      if data.likelihood and nats_BL.is_fully_addressable:
        documents.add(batch, np.asarray(nats_BL))
    result = {'loss_nats': nats / tokens}
    if data.likelihood:
      result['perplexity'] = math.exp(min(nats / tokens, 700))
    if data.bytes_per_token is not None:
      assert data.text_bytes is not None
      result['bits_per_byte'] = metrics.bits_per_byte(nats, data.text_bytes)
      if words is not None:
        result['word_perplexity'] = math.exp(min(nats / words, 700))
    return results.Result({**result, 'tokens': int(tokens)}, documents.items())

  return evaluate


@functools.lru_cache(maxsize=8)  # runs of equal models share these programs
def _compiled(
  apply: Callable[..., types.Output],
  head: Callable[..., Any] | None,
  chunks: int | None,
) -> Any:
  """Compiles `(params, batch) -> (its loss, nats [B, L])`."""

  def score(params, batch):
    bound = head and jax.tree_util.Partial(head, params)
    nats_BL = loss.token_nats(apply(params, batch), batch, bound, chunks)
    total = jnp.sum(nats_BL * batch.weights)
    return types.Metric(total, jnp.sum(batch.weights)), nats_BL

  return jax.jit(score)


class _Documents:
  """Sums the nats of documents, whose tokens come in order."""

  def __init__(self, eos: int):
    self._eos = eos  # ends each document
    self._nats, self._tokens = [0.0], [0]

  def add(self, batch: types.Batch, nats_BL: np.ndarray) -> None:
    """Adds the scored tokens of a batch, which come next, and their nats."""
    is_scored_BL = np.asarray(batch.weights) > 0
    targets = np.asarray(batch.targets)[is_scored_BL]
    nats = nats_BL[is_scored_BL]
    if not len(targets):
      return
    ends = targets == self._eos
    number = np.cumsum(ends) - ends  # of each token's document, in these
    sums, counts = np.bincount(number, nats), np.bincount(number)
    self._nats[-1] += float(sums[0])
    self._tokens[-1] += int(counts[0])
    self._nats += sums[1:].tolist()
    self._tokens += counts[1:].tolist()
    if ends[-1]:
      self._nats.append(0.0)
      self._tokens.append(0)

  def items(self) -> list[results.Item]:
    """Lists the documents that have tokens."""
    pairs = zip(self._nats, self._tokens, strict=True)
    return [
      {
        'id': f'documents/{n}',
        'nats': nats if math.isfinite(nats) else None,
        'tokens': tokens,
      }
      for n, (nats, tokens) in enumerate(pairs)
      if tokens
    ]
