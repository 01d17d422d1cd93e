"""Heads that turn any model into a classifier, a tagger or a reader.

A head reads the hidden vectors of another model, its body. The parameters of
the body are under `body`, those of the head under `task`. Its targets are those
of a batch, so `loss.token_loss` and the training step serve heads too. What the
body measures of itself, such as the losses of experts, stays.

With `bidirectional` a decoder reads a text as the prefix of a prefix LM, so
that each token also sees the tokens after it (BehnamGhader et al. 2024, arXiv
2404.05961, section 2.1, without their further pretraining). It changes nothing
for other bodies.

Letters that differ from `types`: K texts that share a row.
"""

from collections.abc import Callable, Mapping
from typing import Any, cast

from flax import linen as nn
import jax
import jax.numpy as jnp

from lm import config, sharding, tree, types
from lm.layers import checks, initializers, linear, masks
from lm.optim import transfer

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
  """Makes a model that classifies the first K texts of a row: [B, K, C].

  K comes from the targets [B, K]; it is 1 where rows are not packed.

  Args:
    vocab: V of the body.
    body: the spec of a model.
    classes: C.
    pool: which vector stands for a text: that of its 'first' token (BERT), that
      of its 'last' token (GPT), or the 'mean' of all.
    hidden: whether a tanh layer comes before the scores, like BERT's pooler.
    bias: whether the scores have a bias. In transformers, classifiers made of
      decoders have none.
    bidirectional: see the top of this file.

  Raises:
    ValueError: a setting is out of range.
  """
  checks.check_choices(pool=(pool, POOLS))
  checks.check_counts(classes=classes)

  def read(out, batch):
    texts = batch.targets.shape[1]
    return pooled(out.hidden, batch.segments, pool, texts)

  return _make(vocab, body, Head(classes, hidden, bias), bidirectional, read)


def next_sentence(*, vocab: int, body: Mapping[str, Any]) -> types.Model:
  """Makes a model of next sentence prediction: class 1 if the second follows.

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
  """Makes a model that tags tokens: logits [B, L, C] for targets [B, L]."""
  checks.check_counts(classes=classes)
  return _make(vocab, body, Head(classes), bidirectional)


def span(
  *, vocab: int, body: Mapping[str, Any], bidirectional: bool = False
) -> types.Model:
  """Makes a model that finds where an answer starts and ends: [B, 2, L].

  Targets [B, 2] are the positions of the answer's first and last token. Padding
  has logits so low that it is never chosen.

  Reference: Devlin et al. 2019, arXiv 1810.04805, section 4.2.
  """

  def score(x_BLC, batch):
    # The classes here are positions: start and end each choose one of L.
    x_BCL = jnp.einsum('BLC->BCL', x_BLC)
    return jnp.where((batch.segments > 0)[:, None], x_BCL, masks.MASKED)

  return _make(vocab, body, Head(2), bidirectional, score=score)


def embed(
  *,
  vocab: int,
  body: Mapping[str, Any],
  pool: str = 'mean',
  temperature: float = 0.05,
  bidirectional: bool = False,
  texts: int = 1,
) -> types.Model:
  """Makes a model that embeds texts: `Output.hidden` [B, K, D], of norm 1.

  The head has no parameters of its own. With one text a row, logits [B, 1, B]
  compare each row with all others, and the target of a row is the number of the
  row that means the same. With more, which `retrieval_forms.match` makes, the
  first text of a row asks, the second answers, and others answer in vain.
  Logits [B, 1, 1 + (K - 1) B] compare each first text with its answer, which is
  class 0, and with all answers of the batch, without those that are the same
  text as its own.

  Args:
    vocab, body, pool, bidirectional: the same as in `classify`.
    temperature: divides the cosines that are the logits.
    texts: K.

  Raises:
    ValueError: a setting is out of range.

  Reference: Reimers and Gurevych 2019, arXiv 1908.10084; Gao et al. 2021, arXiv
  2104.08821, sections 2 and 4; Karpukhin et al. 2020, arXiv 2004.04906, section
  3.2.
  """
  checks.check_choices(pool=(pool, POOLS))
  checks.check_counts(texts=texts)
  if temperature <= 0:
    raise ValueError(f'temperature={temperature} must be above 0')

  def read(out, batch):
    x_BKD = pooled(out.hidden, batch.segments, pool, texts)
    x_BKD = x_BKD.astype(jnp.float32)
    # Float32, because cosines are divided by a small temperature; and at least
    # 1e-12 below, because the mean of a row of padding is a vector of zeros.
    length_BK1 = jnp.linalg.norm(x_BKD, axis=-1, keepdims=True)
    return x_BKD / jnp.maximum(length_BK1, 1e-12)

  def score(x_BKD, batch):
    if texts > 1:
      return _answers(x_BKD, batch) / temperature
    # A row is most like itself, which would hide the others: it is masked.
    cosines_BB = x_BKD[:, 0] @ x_BKD[:, 0].T
    itself_BB = jnp.eye(len(cosines_BB), dtype=bool)
    return jnp.where(itself_BB, masks.MASKED, cosines_BB / temperature)[:, None]

  model = _make(vocab, body, None, bidirectional, read, score)
  return model._replace(compares_rows=True)


def _answers(x_BKD: jax.Array, batch: types.Batch) -> jax.Array:
  """Compares first texts with their own answers and with all: [B, 1, 1 + C]."""
  _, K, D = x_BKD.shape
  cosines_BC = x_BKD[:, 0] @ x_BKD[:, 1:].reshape(-1, D).T
  own_BKL = _of_text(batch.segments, K)
  # Equal texts have equal sums; others have them once in four billion pairs.
  # Odd factors, so that no token is multiplied by 0.
  mixed_BL = (batch.tokens.astype(jnp.uint32) + 1) * jnp.uint32(2654435761)
  mixed_BL ^= mixed_BL >> 15
  place_BL = batch.positions.astype(jnp.uint32) * jnp.uint32(2246822518) + 1
  sums_BK = jnp.sum(
    jnp.where(own_BKL, (mixed_BL * place_BL)[:, None], 0), axis=2
  )
  sums_C = sums_BK[:, 1:].reshape(-1)
  is_missing_C = ~jnp.any(own_BKL[:, 1:], axis=2).reshape(-1)
  is_own_BC = sums_BK[:, 1:2] == sums_C[None]
  others_BC = jnp.where(
    is_own_BC | is_missing_C[None], masks.MASKED, cosines_BC
  )
  own_B1 = jnp.sum(x_BKD[:, 0] * x_BKD[:, 1], axis=-1, keepdims=True)
  return jnp.concatenate([own_B1, others_BC], axis=1)[:, None]


def _of_text(segments_BL: jax.Array, texts: int) -> jax.Array:
  """Says which tokens are of which text of a row: bool [B, K, L]."""
  return segments_BL[:, None] == jnp.arange(1, texts + 1)[None, :, None]


def pooled(
  x_BLD: jax.Array, segments_BL: jax.Array, pool: str, texts: int = 1
) -> jax.Array:
  """Makes one vector for each text: [B, K, D].

  Args:
    x_BLD: vectors of tokens.
    segments_BL: the number of each token's text, from 1; 0 is padding.
    pool: one of `POOLS`.
    texts: K. Where a row has fewer texts, the means of the missing ones are 0,
      and their 'first' and 'last' vectors are those of some other token.
  """
  own_BKL = _of_text(segments_BL, texts)
  count_BK1 = jnp.sum(own_BKL, axis=2, keepdims=True)
  if pool == 'mean':
    # Sums the vectors of each text's own tokens. 'highest' because a TPU would
    # round the vectors to bfloat16 first.
    total_BKD = jnp.einsum(
      'BKL,BLD->BKD', own_BKL.astype(x_BLD.dtype), x_BLD, precision='highest'
    )
    return total_BKD / jnp.maximum(count_BK1, 1).astype(x_BLD.dtype)
  # argmax of bools finds the first True.
  at_BK1 = jnp.argmax(own_BKL, axis=2, keepdims=True)
  if pool == 'last':
    at_BK1 += jnp.maximum(count_BK1 - 1, 0)
  return jnp.take_along_axis(x_BLD, at_BK1, axis=1)


class Head(nn.Module):
  """A linear layer of scores, after a tanh layer if `hidden`.

  Attributes:
    classes: C.
    hidden: whether there is a tanh layer, of the width of its input.
    bias: whether the scores have a bias.
  """

  classes: int
  hidden: bool = False
  bias: bool = True

  @nn.compact
  def __call__(self, x_BLD):
    init = initializers.normal(0.02)

    def dense(outputs, name, bias=True):
      # The layers are small, and their scores decide: always float32.
      dtype = 'float32'
      return linear.Dense(outputs, init, dtype, dtype, bias, name=name)

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
  """Puts a head around a body.

  Args:
    vocab: V of the body.
    body: the spec of the body.
    head: maps vectors to scores; None uses the vectors themselves.
    bidirectional: see the top of this file.
    read: `(output of the body, batch) -> vectors`.
    score: `(scores, batch) -> logits`.
  """
  model = config.build(body, vocab=vocab)

  def run(params, batch, rng=None):
    if bidirectional:
      batch = batch._replace(prefix=batch.segments > 0)
    return model.apply(params, batch, rng=rng)

  def parameters(batch):
    params = {'body': model.parameters(batch)}
    if head is not None:
      # The head's parameters depend only on the shape of its input, of which
      # one row is enough: the body itself computes nothing here.
      row = jax.tree.map(lambda x: jnp.asarray(x[:1]), batch)
      body = tree.shapes(params['body'])
      x_BLD = jax.eval_shape(lambda p: read(run(p, row), row), body)
      task = initializers.parameters(head, x_BLD, scope='task/')
      params['task'] = transfer.drawn({'task': task}, whole)['task']
    return params

  def apply(params, batch, *, cache=None, rng=None):
    assert cache is None, 'a head has no cache'
    out = run(params['body'], batch, rng)
    x_BLD = read(out, batch)
    scores = x_BLD
    if head is not None:
      scores = cast(jax.Array, head.apply({'params': params['task']}, x_BLD))
    return types.Output(score(scores, batch), None, out.aux, x_BLD)

  def start(params, batch, room):
    raise ValueError('a head scores a text and generates none')

  # A head is small, so every device holds all of it. Its row comes first, since
  # a regex of the body might match its paths, too.
  kernels = ('pooler', sharding.WHOLE), ('scores', None)
  task = [
    (rf'(^|/)task/{name}/kernel$', (sharding.WHOLE, out))
    for name, out in kernels
  ]
  axes = (*task, (r'(^|/)task/', ()), *model.axes)
  fixed = tuple(f'body/{regex}' for regex in model.fixed)
  own = (types.Matrix(path, 1, 1, hidden=False) for path, _ in task)
  whole = types.Model(
    parameters,
    apply,
    start,
    axes,
    fixed=fixed,
    matrices=(*own, *model.matrices),
    growth=model.growth,
  )
  return whole
