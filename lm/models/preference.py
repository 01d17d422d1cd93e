"""DPO: a model learns to prefer the better one of two answers.

  c.data.form = {'fn': 'lm.data.finetuning.pair_forms:prefer'}
  c.model = {'fn': 'lm.models.preference:make', 'body': ..., 'beta': 0.1}
  c.init_from, c.init_paths = 'runs/tuned', ('=body', '=reference')

The parameters that learn are under `body`: another run starts from them with
the `init_paths` ('body=',).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lm import config, types


def make(
  *, vocab: int, body: Mapping[str, Any], beta: float = 0.1
) -> types.Model:
  """Makes a classifier of rows that hold two answers, the better one first.

  The answers are documents 1 and 2 of a row, each after its question; the
  tokens of answers have type 1. Logits [B, 1, 2] are (margin, 0), where the
  margin is beta times how much more the body prefers the first answer than the
  reference does. With class 0 as the target, the cross-entropy is the loss of
  DPO, and the accuracy is how often the body has moved the right way. Losses
  that the body has of its own, such as those of experts, are added.

  Args:
    vocab: V of the body.
    body: the spec of a decoder. The reference is a second one, which never
      learns.
    beta: how strongly the body is held near the reference.

  Raises:
    ValueError: beta is not above 0.

  Reference: Rafailov et al. 2023, arXiv 2305.18290, equation 7.
  """
  if not beta > 0:
    raise ValueError(f'beta={beta} must be above 0')
  model = config.build(body, vocab=vocab)

  def parameters(batch):
    return {
      'body': model.parameters(batch),
      'reference': model.parameters(batch),
    }

  def likelihoods(params, batch, rng=None):
    """Sums log probabilities of each answer's tokens: [B, 2], and the aux."""
    # Targets of these rows are classes, so the next tokens are shifted here; L
    # is one shorter from here on.
    out = model.apply(params, batch, rng=rng)
    logits_BLV = out.logits[:, :-1]
    following = batch.tokens[:, 1:]
    log_BLV = jax.nn.log_softmax(logits_BLV.astype(jnp.float32), axis=-1)
    log_BL = jnp.take_along_axis(log_BLV, following[..., None], -1)[..., 0]
    # The first token of a document is not predicted from the document before.
    answer_BL = (batch.token_types[:, 1:] == 1) & (
      batch.segments[:, 1:] == batch.segments[:, :-1]
    )
    sums = [
      jnp.sum(jnp.where(answer_BL & (batch.segments[:, 1:] == n), log_BL, 0), 1)
      for n in (1, 2)
    ]
    return jnp.stack(sums, axis=1), out.aux

  def apply(params, batch, *, cache=None, rng=None):
    assert cache is None, 'a preference has no cache'
    # The reference gets no rng, so no dropout: its answer must never change.
    body_B2, aux = likelihoods(params['body'], batch, rng)
    reference_B2, _ = likelihoods(params['reference'], batch)
    gain_B2 = body_B2 - reference_B2
    margin_B = beta * (gain_B2[:, 0] - gain_B2[:, 1])
    logits_B2 = jnp.stack([margin_B, jnp.zeros_like(margin_B)], axis=1)
    return types.Output(logits_B2[:, None], None, aux)

  def start(params, batch, room):
    raise ValueError('a preference scores answers and writes none')

  fixed = ('reference/', *(f'body/{regex}' for regex in model.fixed))
  return types.Model(
    parameters,
    apply,
    start,
    model.axes,
    fixed=fixed,
    matrices=model.matrices,
    growth=model.growth,
  )
