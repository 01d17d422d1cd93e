"""Word embeddings: skip-gram with negative sampling (word2vec).

Reference: Mikolov et al. 2013, arXiv 1310.4546, section 2.2.
"""

from flax import linen as nn
import jax.numpy as jnp

from lm import types
from lm.layers import vocabulary
from lm.models import linen, settings

AXES = ((r'(embed|context)/table$', ('vocab', 'embed')),)


def make(*, vocab: int, width: int) -> types.Model:
  """Makes a table of words whose products tell which of them stand together.

  It reads pairs of `data.objectives.skip_gram`, a center in `tokens` and a word
  in `source`, and gives logits [B, L, 2]: class 1 if the word was found near
  the center, 0 if it was drawn at random. The cross-entropy of two classes, one
  of which has logit 0, is the paper's logistic loss. The vectors are
  `embed/table`.

  Args:
    vocab: V.
    width: D.

  Raises:
    ValueError: for a setting below 1.
  """
  settings.check_counts(vocab=vocab, width=width)

  def start(params, batch, room):
    raise ValueError('word embeddings generate no text')

  return linen.bridge(SkipGram(vocab, width), AXES, start)


class SkipGram(nn.Module):
  """Two tables of vectors. Attributes as in `make`."""

  vocab: int
  width: int

  @nn.compact
  def __call__(self, batch: types.Batch, cache) -> types.Output:
    assert cache is None, 'word embeddings have no cache'
    # word2vec's: uniform within 1 / 2 D, and zeros for the words around.
    std = (12**0.5 * self.width) ** -1
    center_BLD, _ = vocabulary.Embed(
      self.vocab, self.width, std=std, name='embed'
    )(batch.tokens)
    near_BLD, _ = vocabulary.Embed(
      self.vocab, self.width, std=0.0, name='context'
    )(batch.source)
    score_BL = jnp.sum(center_BLD * near_BLD, axis=-1)
    logits_BL2 = jnp.stack([jnp.zeros_like(score_BL), score_BL], axis=-1)
    return types.Output(logits_BL2, None, {}, center_BLD)
