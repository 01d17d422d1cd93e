"""How likely a model finds a text: nats a token, bits a byte, perplexity."""

from collections.abc import Callable, Mapping
import math
from typing import Any

import jax

from lm import loss, metrics, sharding, types
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
  chunks: int = 1,
) -> Evaluator:
  """Makes an evaluator that reads every token of a dataset exactly once.

  Documents are cut in windows of `length`: a token sees what lies left of it
  in its window, so that longer windows give lower losses.

  Args:
    context: the run that is evaluated.
    path: directory of token shards.
    batch_size: windows at a time; changes nothing but speed.
    length: L, targets a window.
    objective: spec of what makes examples of windows; but for a causal one,
      losses are not the text's, and only they and their number are given.
    words: words of the text (ends of lines included), for perplexity a word;
      None leaves it out.
    chunks: as of `loss.make`, for less memory.

  Returns:
    `params -> {loss_nats, perplexity, bits_per_byte, tokens}`: nats a token,
    the ends of documents included; bits over the UTF-8 bytes of the text.

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

  score_output = loss.make(chunks=chunks)

  @jax.jit
  def score(params, batch):
    head = model.head and jax.tree_util.Partial(model.head, params)
    return score_output(model.apply(params, batch), batch, head)

  def evaluate(params: types.Params) -> dict[str, float]:
    # Summed on the host in double: a float32 sum of 10^7 losses has 2 digits.
    nats = tokens = 0.0
    assert data.steps is not None and data.text_bytes is not None
    pending = None  # the device works on a batch while the next one is read
    host, hosts = sharding.host(mesh, batch_size)
    for _, batch in prefetch.batches(
      data, 0, data.steps, threads=1, host=host, hosts=hosts
    ):
      with jax.set_mesh(mesh):
        result = score(params, sharding.put(batch, mesh, host, hosts))
      for done in filter(None, [pending]):
        nats, tokens = nats + float(done.total), tokens + float(done.weight)
      pending = result
    assert pending is not None
    nats, tokens = nats + float(pending.total), tokens + float(pending.weight)
    result = {'loss_nats': nats / tokens}
    if data.bytes_per_token is not None:
      result |= {
        'perplexity': math.exp(min(nats / tokens, 700)),
        'bits_per_byte': metrics.bits_per_byte(nats, data.text_bytes),
      }
      if words is not None:
        result['word_perplexity'] = math.exp(min(nats / words, 700))
    return {**result, 'tokens': int(tokens)}

  return evaluate
