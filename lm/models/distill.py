"""Distillation: a student learns the probabilities that a teacher gives.

  c.model = {'fn': 'lm.models.distill:make', 'body': ..., 'teacher': ...}
  c.init_from, c.init_paths = 'runs/large', ('=teacher',)

The parameters of the student are under `body`: another run starts from them
with the `init_paths` ('body=',).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lm import config, types


def make(
  *,
  vocab: int,
  body: Mapping[str, Any],
  teacher: Mapping[str, Any],
  temperature: float = 2.0,
  weight: float = 1.0,
) -> types.Model:
  """Makes a model with the student's logits and one more loss.

  `distill_loss` is the mean of weight * T^2 * KL(teacher || student), in nats,
  at temperature T, over the tokens that are scored. It is 0 for a student that
  equals its teacher.

  Args:
    vocab: V of both models.
    body: the spec of the student.
    teacher: the spec of a model that reads the same batches and never learns.
    temperature: T, which divides the logits of both.
    weight: weight of the divergence, where the loss of the text has weight 1.

  Raises:
    ValueError: a setting is out of range.

  Reference: Hinton et al. 2015, arXiv 1503.02531, section 2.
  """
  if not temperature > 0:
    raise ValueError(f'temperature={temperature} must be above 0')
  if not weight > 0:
    raise ValueError(f'weight={weight} must be above 0')
  student = config.build(body, vocab=vocab)
  teacher_model = config.build(teacher, vocab=vocab)

  def parameters(batch):
    return {
      'body': student.parameters(batch),
      'teacher': teacher_model.parameters(batch),
    }

  def apply(params, batch, *, cache=None, rng=None):
    out = student.apply(params['body'], batch, cache=cache, rng=rng)
    if cache is not None:  # the student generates texts without its teacher
      return out
    teacher_BLV, student_BLV = (
      jax.nn.log_softmax(x.logits.astype(jnp.float32) / temperature, axis=-1)
      for x in (teacher_model.apply(params['teacher'], batch), out)
    )
    # KL(p || q) = sum of p (log p - log q). Its gradient shrinks with 1 / T^2,
    # so T^2 keeps its share of the loss the same at all temperatures.
    divergence_BL = jnp.sum(
      jnp.exp(teacher_BLV) * (teacher_BLV - student_BLV), axis=-1
    )
    live_BL = batch.weights > 0
    total = (
      weight * temperature**2 * jnp.sum(jnp.where(live_BL, divergence_BL, 0))
    )
    metric = types.Metric(total, jnp.sum(live_BL).astype(jnp.float32))
    return out._replace(aux={**out.aux, 'distill_loss': metric})

  def start(params, batch, room):
    return student.start(params['body'], batch, room)

  # A loss in chunks scores the text alone, for which the student's output layer
  # is enough.
  head = student.head and (
    lambda params, hidden: student.head(params['body'], hidden)
  )
  fixed = ('teacher/', *(f'body/{regex}' for regex in student.fixed))
  axes = (*student.axes, *teacher_model.axes)
  matrices = (*student.matrices, *teacher_model.matrices)
  return types.Model(
    parameters,
    apply,
    start,
    axes,
    head,
    fixed,
    matrices,
    growth=student.growth,
  )
