"""Distillation: a student that learns what a teacher would have said.

  c.model = {'fn': 'lm.models.distill:make', 'body': ..., 'teacher': ...}
  c.init_from, c.init_paths = 'runs/large', ('=teacher',)

What was learnt is under `body`: `init_paths` 'body=' of another run takes it.
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
  """Makes a model of the body's logits, with a loss beside that of the text.

  `distill_loss` is weight * T^2 times the divergence KL(teacher || body) at
  temperature T, of each token of the batch; a body that is its teacher has 0.

  Args:
    vocab: V of both.
    body: spec of the student.
    teacher: spec of a model that reads the same batches, and never learns.
    temperature: T, divides both logits.
    weight: of the divergence; that of the text is 1.

  Raises:
    ValueError: a setting is out of range.

  Reference: Hinton et al. 2015, arXiv 1503.02531, section 2.
  """
  if not temperature > 0:
    raise ValueError(f'temperature={temperature} must be above 0')
  if not weight > 0:
    raise ValueError(f'weight={weight} must be above 0')
  student = config.build(body, vocab=vocab)
  master = config.build(teacher, vocab=vocab)

  def init(rng, batch):
    body_rng, teacher_rng = jax.random.split(rng)
    return {
      'body': student.init(body_rng, batch),
      'teacher': master.init(teacher_rng, batch),
    }

  def apply(params, batch, *, cache=None, rng=None):
    out = student.apply(params['body'], batch, cache=cache, rng=rng)
    if cache is not None:  # texts are the student's alone
      return out
    wanted_BLV, given_BLV = (
      jax.nn.log_softmax(x.logits.astype(jnp.float32) / temperature, axis=-1)
      for x in (master.apply(params['teacher'], batch), out)
    )
    apart_BL = jnp.sum(jnp.exp(wanted_BLV) * (wanted_BLV - given_BLV), axis=-1)
    live_BL = batch.weights > 0
    total = weight * temperature**2 * jnp.sum(jnp.where(live_BL, apart_BL, 0))
    metric = types.Metric(total, jnp.sum(live_BL).astype(jnp.float32))
    return out._replace(aux={**out.aux, 'distill_loss': metric})

  def start(params, batch, room):
    return student.start(params['body'], batch, room)

  # Chunked losses would not see the teacher, but need none of it.
  head = student.head and (
    lambda params, hidden: student.head(params['body'], hidden)
  )
  fixed = ('teacher/', *(f'body/{regex}' for regex in student.fixed))
  axes = (*student.axes, *master.axes)
  return types.Model(init, apply, start, axes, head, fixed)
