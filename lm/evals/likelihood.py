"""Evaluates the likelihood of a dataset: nats, bits per byte, perplexity."""

from collections.abc import Callable, Mapping
import math
from typing import Any

import jax

from lm import config, loss, metrics, sharding, types
from lm.data import objectives, prefetch, stream
from lm.evals import context as context_lib

Evaluator = Callable[[types.Params], dict[str, float]]


def make(
  *,
  context: context_lib.Context,
  path: str,
  batch_size: int,
  length: int,
  objective: Mapping[str, Any] = objectives.CAUSAL,
  words: int | None = None,
  chunks: int | None = None,
) -> Evaluator:
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
    `params -> {loss_nats, perplexity, bits_per_byte, tokens}`: nats per token,
    ends of documents included; bits per byte of the UTF-8 text. bits_per_byte
    and word_perplexity are left out where the ids do not give back the text,
    because their likelihood is then not that of the text.

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
  score_output = loss.make(chunks=chunks)

  @jax.jit
  def score(params, batch):
    head = model.head and jax.tree_util.Partial(model.head, params)
    return score_output(model.apply(params, batch), batch, head)

  def evaluate(params: types.Params) -> dict[str, float]:
    # Summed on the host in double precision: a float32 sum of 10^7 losses has
    # two digits.
    context_lib.check_scores(context, params, asked)
    nats = tokens = 0.0
    assert data.steps is not None and data.text_bytes is not None
    pending = None  # the device works on a batch while the next one is read
    host, hosts = sharding.host(mesh, batch_size)
    for _, batch in prefetch.batches(
      data, 0, data.steps, threads=1, host=host, hosts=hosts
    ):
      with jax.set_mesh(mesh):
        metric = score(params, sharding.put(batch, mesh, host, hosts))
      if pending is not None:
        nats += float(pending.total)
        tokens += float(pending.weight)
      pending = metric
    assert pending is not None
    nats, tokens = nats + float(pending.total), tokens + float(pending.weight)
    result = {'loss_nats': nats / tokens}
    if data.likelihood:
      result['perplexity'] = math.exp(min(nats / tokens, 700))
    if data.bytes_per_token is not None:
      result['bits_per_byte'] = metrics.bits_per_byte(nats, data.text_bytes)
      if words is not None:
        result['word_perplexity'] = math.exp(min(nats / words, 700))
    return {**result, 'tokens': int(tokens)}

  return evaluate
