"""Heads that turn any model into a classifier, a tagger or a reader.

A head reads the hidden vectors of a body, whose parameters are under `body`;
its own are under `task`. What it scores is targets of a batch like any other,
so that `loss.token_loss` and the training step are the same.

With `bidirectional` a decoder reads a text as the prefix of a prefix LM, so that
each token sees what follows it too (BehnamGhader et al. 2024, arXiv 2404.05961,
section 2.1, without their further pretraining). Other bodies do not mind.
"""

from collections.abc import Callable, Mapping
from typing import Any, cast

from flax import linen as nn
import jax
import jax.numpy as jnp

from lm import config, types
from lm.layers import linear, masks
from lm.models import settings

POOLS = ('first', 'last', 'mean')


def classify(
  *,
  vocab: int,
  body: Mapping[str, Any],
  classes: int,
  pool: str = 'first',
  hidden: bool = False,
  bias: bool = True,
  bidirectional: bool = False,
) -> types.Model:
  """Classifies the first K texts of each row: logits [B, K, C].

  K is that of the targets [B, K], 1 where rows are not packed.

  Args:
    vocab: V of the body.
    body: spec of a model.
    classes: C.
    pool: what stands for the text: its 'first' token (BERT's), its 'last'
      (GPT's), or the 'mean' of all.
    hidden: a layer of tanh before the classes, as BERT's pooler.
    bias: of the scores; a tuned decoder has none in transformers.
    bidirectional: see above.

  Raises:
    ValueError: for settings that do not fit together.
  """
  settings.check_choices(pool=(pool, POOLS))
  settings.check_counts(classes=classes)

  def read(out, batch):
    texts = batch.targets.shape[1]
    return pooled(out.hidden, batch.segments, pool, texts)

  return _make(vocab, body, Head(classes, hidden, bias), bidirectional, read)


def next_sentence(*, vocab: int, body: Mapping[str, Any]) -> types.Model:
  """Tells whether the second sentence follows the first: classes 1 and 0.

  Reference: Devlin et al. 2019, arXiv 1810.04805, section 3.1, task 2.
  """
  return classify(vocab=vocab, body=body, classes=2, hidden=True)


def tag(
  *,
  vocab: int,
  body: Mapping[str, Any],
  classes: int,
  bidirectional: bool = False,
) -> types.Model:
  """Tags every token: logits [B, L, C] for targets [B, L]."""
  settings.check_counts(classes=classes)
  return _make(vocab, body, Head(classes), bidirectional)


def span(
  *, vocab: int, body: Mapping[str, Any], bidirectional: bool = False
) -> types.Model:
  """Finds where an answer starts and ends: logits [B, 2, L].

  Targets [B, 2] are the positions of its first and of its last token. Padding
  is out of reach.

  Reference: Devlin et al. 2019, arXiv 1810.04805, section 4.2.
  """

  def score(x_BL2, batch):
    x_B2L = jnp.einsum('BLC->BCL', x_BL2)
    return jnp.where((batch.segments > 0)[:, None], x_B2L, masks.MASKED)

  return _make(vocab, body, Head(2), bidirectional, score=score)


def embed(
  *,
  vocab: int,
  body: Mapping[str, Any],
  pool: str = 'mean',
  temperature: float = 0.05,
  bidirectional: bool = False,
) -> types.Model:
  """Embeds sentences: `Output.hidden` [B, 1, D], of length 1.

  Logits [B, 1, B] compare each row with all others: trained with targets that
  name the row that says the same. It has no parameters of its own.

  Args:
    vocab, body, pool, bidirectional: as of `classify`.
    temperature: divides the cosines.

  Reference: Reimers and Gurevych 2019, arXiv 1908.10084; Gao et al. 2021, arXiv
  2104.08821, section 2.
  """
  settings.check_choices(pool=(pool, POOLS))
  if temperature <= 0:
    raise ValueError(f'temperature={temperature} must be above 0')

  def read(out, batch):
    x_B1D = pooled(out.hidden, batch.segments, pool).astype(jnp.float32)
    # The largest float32 that a length may be divided by without harm.
    length_B11 = jnp.linalg.norm(x_B1D, axis=-1, keepdims=True)
    return x_B1D / jnp.maximum(length_B11, 1e-12)

  def score(x_B1D, batch):
    cosines_BB = x_B1D[:, 0] @ x_B1D[:, 0].T
    itself_BB = jnp.eye(len(cosines_BB), dtype=bool)
    return jnp.where(itself_BB, masks.MASKED, cosines_BB / temperature)[:, None]

  return _make(vocab, body, None, bidirectional, read, score)


def pooled(
  x_BLD: jax.Array, segments_BL: jax.Array, pool: str, texts: int = 1
) -> jax.Array:
  """Makes one vector of each text: [B, K, D].

  Args:
    x_BLD: tokens' vectors.
    segments_BL: the text of each token, from 1; 0 is padding.
    pool: one of `POOLS`.
    texts: K; of a row of fewer the mean is 0, and other vectors mean nothing.
  """
  own_BKL = segments_BL[:, None] == jnp.arange(1, texts + 1)[None, :, None]
  count_BK1 = jnp.sum(own_BKL, axis=2, keepdims=True)
  if pool == 'mean':
    total_BKD = jnp.einsum(
      'BKL,BLD->BKD', own_BKL.astype(x_BLD.dtype), x_BLD, precision='highest'
    )
    return total_BKD / jnp.maximum(count_BK1, 1).astype(x_BLD.dtype)
  at_BK1 = jnp.argmax(own_BKL, axis=2, keepdims=True)
  if pool == 'last':
    at_BK1 += jnp.maximum(count_BK1 - 1, 0)
  return jnp.take_along_axis(x_BLD, at_BK1, axis=1)


class Head(nn.Module):
  """A layer of scores, after one of tanh if `hidden`."""

  classes: int
  hidden: bool = False
  bias: bool = True

  @nn.compact
  def __call__(self, x_BLD):
    init = nn.initializers.normal(0.02)

    def dense(outputs, name, bias=True):
      kind = 'float32'
      return linear.Dense(outputs, init, kind, kind, bias, name=name)

    if self.hidden:
      x_BLD = jnp.tanh(dense(x_BLD.shape[-1], 'pooler')(x_BLD))
    return dense(self.classes, 'scores', self.bias)(x_BLD)


def _make(
  vocab: int,
  body: Mapping[str, Any],
  head: Head | None,
  bidirectional: bool,
  read: Callable[[types.Output, types.Batch], Any] = lambda out, _: out.hidden,
  score: Callable[[jax.Array, types.Batch], jax.Array] = lambda x, _: x,
) -> types.Model:
  model = config.build(body, vocab=vocab)

  def run(params, batch, rng=None):
    if bidirectional:
      batch = batch._replace(prefix=batch.segments > 0)
    return model.apply(params, batch, rng=rng)

  def init(rng, batch):
    body_rng, head_rng = jax.random.split(rng)
    params = {'body': model.init(body_rng, batch)}
    if head is not None:
      row = jax.tree.map(lambda x: jnp.asarray(x[:1]), batch)
      shape = jax.eval_shape(lambda p: read(run(p, row), row), params['body'])
      x_BLD = jnp.zeros(shape.shape, shape.dtype)
      params['task'] = head.init(head_rng, x_BLD)['params']
    return params

  def apply(params, batch, *, cache=None, rng=None):
    assert cache is None, 'a head has no cache'
    x_BLD = read(run(params['body'], batch, rng), batch)
    scores = x_BLD
    if head is not None:
      scores = cast(jax.Array, head.apply({'params': params['task']}, x_BLD))
    return types.Output(score(scores, batch), None, {}, x_BLD)

  def start(params, batch, room):
    raise ValueError('a head scores a text and generates none')

  axes = ((r'(^|/)task/', ()), *model.axes)
  fixed = tuple(f'body/{regex}' for regex in model.fixed)
  return types.Model(init, apply, start, axes, fixed=fixed)
