"""N-grams: interpolated modified Kneser-Ney, and add-k, as a Model of counts.

The parameters are a trie: the n-grams that were seen, the shorter ones first
and those of one length sorted by all but their last word (their context) and
then by that word, so the n-grams that go on from a context lie side by side. Of
a context h and a word w,

  p(w | h) = mass(h w) + gamma(h) p(w | h without its first word),

where a context that was never seen has gamma 1 and no mass: it backs off. Both
methods of `fit` have this form; they differ in counts and discounts.

Letters that `types` does not have: P = B L places of a batch, T tokens that are
counted, W n-grams, X contexts, I n-grams of one chunk.

Reference: Chen and Goodman 1998, TR-10-98, section 3.
"""

from collections.abc import Iterable
from functools import partial
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm import types
from lm.models import settings

AXES = ((r'.', ()),)  # every device looks up anything

# Masses that are added at once: few enough that a step of decoding wastes
# little, enough that the loop's own cost is lost among them.
_CHUNK = 2**13
# Of n-grams seen once, twice, more often, where counts are too few to tell;
# KenLM's `--discount_fallback`.
_DISCOUNTS = (0.5, 1.0, 1.5)


def make(*, vocab: int, order: int) -> types.Model:
  """Makes an n-gram model; `init` gives a uniform one, `fit` parameters.

  The logits are log probabilities, in nats. A history begins where a document
  does, or the window that cuts it: at position p it has at most p + 1 tokens.
  A cache is the contexts that end at a row's last token, whatever the length.

  Args:
    vocab: V.
    order: the longest n-gram, in tokens; 1 knows no history.

  Raises:
    ValueError: for a setting below 1; by `apply`, for a batch with more n-grams
      than int32 counts.
  """
  settings.check_counts(vocab=vocab, order=order)

  def init(rng, batch) -> types.Params:
    del rng, batch  # nothing is drawn, and no shape depends on a batch
    words, none = np.arange(vocab), np.zeros(0, np.int64)
    levels = [_Level(np.zeros_like(words), np.zeros_like(words), words)]
    levels += [_Level(none, none, none)] * (order - 1)
    return _params(levels, partial(_add_k, weight=1.0), vocab)

  def start(params, batch, length) -> types.Cache:
    del length  # histories do not grow
    unseen_B = jnp.full(len(batch.tokens), _unseen(params), jnp.int32)
    return (unseen_B,) * (order - 1)

  def apply(params, batch, *, cache=None, rng=None) -> types.Output:
    del rng
    B, L = batch.tokens.shape
    if B * L * vocab * order + _CHUNK >= 2**31:
      raise ValueError(
        f'{B} x {L} tokens with vocab={vocab} and order={order} may have more '
        'n-grams than int32 counts: make the batch smaller'
      )
    before = start(params, batch, L) if cache is None else cache
    contexts, after = _walk(params, batch, before)
    p_PV = jnp.zeros((B * L, vocab), jnp.float32)
    weight_P = jnp.ones(B * L, jnp.float32)
    if contexts:
      # Longest first: what it leaves is the weight of the next one.
      context_XP = jnp.stack(contexts[::-1]).reshape(order - 1, B * L)
      left_XP = jnp.cumprod(params['gamma'][context_XP], axis=0)
      weight_XP = jnp.concatenate([weight_P[None], left_XP[:-1]])
      p_PV = _add_masses(p_PV, params, context_XP, weight_XP)
      weight_P = left_XP[-1]
    p_PV += weight_P[:, None] * params['mass'][:vocab][None]
    logits_BLV = jnp.log(p_PV).reshape(B, L, vocab)
    return types.Output(logits_BLV, None if cache is None else after, {})

  return types.Model(init, apply, start, AXES)


def fit(
  documents: Iterable[np.ndarray],
  *,
  vocab: int,
  order: int,
  bos: int,
  method: str = 'kneser_ney',
  k: float = 1.0,
) -> types.Params:
  """Counts documents and estimates the parameters of `make`.

  Kneser-Ney: below the highest order an n-gram counts the different words to
  its left instead of its occurrences, except that n-grams which begin with bos
  have nothing there and keep their occurrences, as in KenLM. Each order has
  three discounts, from its counts of counts (equation 26); where one of n1..n4
  is 0 or a discount is not above 0, as in small corpora, they are 0.5, 1 and
  1.5. Single words are interpolated with 1 / V, so that every id, bos and
  padding too, has a probability.

  Add-k: (c(h w) + k) / (c(h) + k V) for histories h of `order - 1` tokens, or
  from bos on; uniform after any other. With order 1 and k near 0 that is the
  maximum likelihood of single words.

  Holds everything in memory: up to 300 bytes a token while it counts order 5.

  Args:
    documents: int [length] each, ids that end in eos, without bos.
    vocab: V.
    order: the longest n-gram.
    bos: the id that a history begins with at a document's start, as in
      `lm.data.windows.pack`. It is not counted as a word to predict.
    method: 'kneser_ney' or 'add_k'.
    k: what 'add_k' adds to each count.

  Raises:
    ValueError: for settings out of range, ids outside the vocabulary, or
      documents without a token.
  """
  settings.check_counts(vocab=vocab, order=order)
  estimates = {
    'kneser_ney': _kneser_ney,
    'add_k': partial(_add_k, weight=k * vocab),
  }
  settings.check_choices(method=(method, estimates))
  if not 0 < k < float('inf'):
    raise ValueError(f'k={k} must be above 0')
  if not 0 <= bos < vocab:
    raise ValueError(f'bos={bos} is outside the vocabulary of {vocab} ids')
  tokens_T, places_T = _stream(documents, vocab, bos)
  levels = _count(
    tokens_T, places_T, vocab, order, bos, continuations=method == 'kneser_ney'
  )
  return _params(levels, estimates[method], vocab)


def nats(
  params: types.Params, documents: Iterable[np.ndarray], *, bos: int
) -> np.ndarray:
  """Scores documents on the host, without logits of all words.

  Args:
    params: of `fit`.
    documents, bos: as of `fit`.

  Returns:
    float64 [documents]: -log p of each one's tokens, what `make` gives.
  """
  word, mass, first, gamma = (
    np.asarray(params[key]) for key in ('word', 'mass', 'first', 'gamma')
  )
  vocab, none = int(first[0]), len(gamma) - 1  # the context never seen
  tokens_T, places_T = _stream(documents, vocab, bos)
  # All n-grams above single words in one order: by context, then by word.
  keys = np.repeat(np.arange(none), np.diff(first[:-1])) * vocab
  keys = np.append(keys + word[vocab:-1], np.iinfo(np.int64).max)
  p_T, node_T = mass[tokens_T].astype(np.float64), np.minimum(tokens_T, none)
  for n in itertools.count(1):
    # What n tokens before a token are as a context, and with it.
    context_T = np.where(places_T >= n, np.roll(node_T, 1), none)
    if (context_T == none).all():
      break
    wanted_T = context_T * vocab + tokens_T
    at_T = np.searchsorted(keys, wanted_T)
    found_T = (context_T < none) & (keys[at_T] == wanted_T)
    at_T += vocab
    p_T = np.where(found_T, mass[at_T], 0) + gamma[context_T] * p_T
    node_T = np.where(found_T & (at_T < none), at_T, none)
  cost_T = np.where(places_T > 0, -np.log(p_T), 0)
  return np.add.reduceat(cost_T, np.flatnonzero(places_T == 0))


class _Level(NamedTuple):
  """The n-grams of one order, sorted by context and word.

  Attributes:
    counts: int64 [W].
    parents: int64 [W], each one's context: its place in the order below.
    words: int64 [W], the last word.
  """

  counts: np.ndarray
  parents: np.ndarray
  words: np.ndarray


def _stream(documents, vocab, bos) -> tuple[np.ndarray, np.ndarray]:
  """Joins documents, bos before each: tokens [T] and places in them [T]."""
  parts = [np.asarray(document) for document in documents]
  sizes = np.array([len(part) + 1 for part in parts], np.int64)
  starts = np.cumsum(sizes) - sizes
  if sizes.sum() == len(parts):
    raise ValueError('no documents: give at least one that has tokens')
  tokens_T = np.concatenate(
    [ids for part in parts for ids in ([bos], part)], dtype=np.int64
  )
  outside = np.flatnonzero((tokens_T < 0) | (tokens_T >= vocab))
  if outside.size:
    document = np.searchsorted(starts, outside[0], side='right') - 1
    raise ValueError(
      f'document {document} holds id {tokens_T[outside[0]]}, outside the '
      f'vocabulary of {vocab} ids: give the vocab that it was written with'
    )
  places_T = np.arange(len(tokens_T)) - np.repeat(starts, sizes)
  return tokens_T, places_T


def _count(
  tokens_T, places_T, vocab, order, bos, *, continuations
) -> list[_Level]:
  """Counts the n-grams of every order.

  An order starts from the one below: an n-gram is the place there of all but
  its last word, and that word, in one integer.

  Args:
    tokens_T: of `_stream`.
    places_T: of `_stream`.
    vocab: V.
    order: the longest n-gram.
    bos: what stands at place 0.
    continuations: below the highest order, n-grams that do not begin with bos
      count the different words to their left; otherwise nothing.
  """
  # The n-gram that ends at each token; of a word, the word.
  ends_T = tokens_T
  counts = np.bincount(tokens_T[places_T > 0], minlength=vocab)
  levels = [_Level(counts, np.zeros(vocab, np.int64), np.arange(vocab))]
  begins = np.zeros(vocab, bool)
  for n in range(2, order + 1):
    at = np.flatnonzero(places_T >= n - 1)
    keys, first, ends, counts = np.unique(
      ends_T[at - 1] * vocab + tokens_T[at],
      return_index=True,
      return_inverse=True,
      return_counts=True,
    )
    below = levels[-1]
    if continuations:
      # Each n-gram is one word to the left of its own last n - 1.
      left = np.bincount(ends_T[at[first]], minlength=len(below.counts))
    else:
      left = 0
    levels[-1] = below._replace(counts=np.where(begins, below.counts, left))
    parents, words = np.divmod(keys, vocab)
    levels.append(_Level(counts, parents, words))
    begins = parents == bos if n == 2 else begins[parents]
    ends_T = np.zeros_like(tokens_T)
    ends_T[at] = ends
  return levels


def _kneser_ney(level: _Level, contexts: int) -> tuple[np.ndarray, np.ndarray]:
  """Estimates mass [W] and gamma [contexts] by modified Kneser-Ney."""
  discounts = np.array([0, *_discounts(level.counts)])
  # No discount is above its count, so no mass is below 0.
  taken_W = discounts[np.minimum(level.counts, 3)]
  # A context that nothing follows leaves all to the shorter one.
  total_X = np.bincount(level.parents, level.counts, contexts)
  taken_X = np.bincount(level.parents, taken_W, contexts)
  mass_W = (level.counts - taken_W) / total_X[level.parents]
  gamma_X = np.where(total_X > 0, taken_X / np.maximum(total_X, 1), 1)
  return mass_W, gamma_X


def _discounts(counts: np.ndarray) -> tuple[float, ...]:
  """Gives D1, D2 and D3+ of one order's counts, or `_DISCOUNTS`."""
  n1, n2, n3, n4 = (float(np.sum(counts == c)) for c in range(1, 5))
  if not n1 * n2 * n3 * n4:
    return _DISCOUNTS
  y = n1 / (n1 + 2 * n2)
  found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
  # At 0 or below, what was not seen would get nothing or less.
  return found if min(found) > 0 else _DISCOUNTS


def _add_k(
  level: _Level, contexts: int, *, weight: float
) -> tuple[np.ndarray, np.ndarray]:
  """Estimates mass [W] and gamma [contexts] by add-k; `weight` is k V."""
  total_X = np.bincount(level.parents, level.counts, contexts) + weight
  return level.counts / total_X[level.parents], weight / total_X


def _params(levels: list[_Level], estimate, vocab: int) -> types.Params:
  """Lays the trie out.

  Returns:
    `word` int32 [W + 1] and `mass` float32 [W + 1] of the n-grams of all
    orders, the V single words first, whose mass is p(w) without a history; and
    `first` int32 [X + 2] and `gamma` float32 [X + 1] of the contexts, which are
    the n-grams below the highest order. Those that go on from context x are
    `first[x] : first[x + 1]`. The last entry of each is for what was not seen.
  """
  mass_V, gamma_1 = estimate(levels[0], 1)
  masses, gammas, parents = [mass_V + gamma_1 / vocab], [], []
  contexts = 0
  for below, level in itertools.pairwise(levels):
    mass_W, gamma_X = estimate(level, len(below.counts))
    masses.append(mass_W)
    gammas.append(gamma_X)
    parents.append(contexts + level.parents)
    contexts += len(below.counts)
  parent_W = np.concatenate([*parents, np.zeros(0, np.int64)])
  first_X = vocab + np.searchsorted(parent_W, np.arange(contexts + 2))
  words = [level.words for level in levels]
  return {
    'word': jnp.asarray(np.concatenate([*words, [vocab]]), jnp.int32),
    'mass': jnp.asarray(np.concatenate([*masses, [0]]), jnp.float32),
    'first': jnp.asarray(first_X, jnp.int32),
    'gamma': jnp.asarray(np.concatenate([*gammas, [1]]), jnp.float32),
  }


def _unseen(params: types.Params) -> int:
  """Gives the context that was never seen."""
  return len(params['gamma']) - 1


def _walk(params, batch, cache) -> tuple[list[jax.Array], types.Cache]:
  """Finds the contexts that end at each place.

  The one of n tokens goes on from the one of n - 1 tokens a token earlier, so
  each takes a single search.

  Returns:
    contexts: int32 [B, L] each, of 1, 2.. tokens; the one never seen where
      less of the document is known.
    cache: int32 [B] each, those that end at the row's last token.
  """
  L = batch.tokens.shape[1]
  # Slot 0 is the cache, slot l + 1 is place l. Padding is skipped: the token
  # before may stand far to the left, and a row of padding leaves its cache.
  slots_BL = jnp.where(
    batch.segments > 0, jnp.arange(1, L + 1, dtype=jnp.int32)[None], 0
  )
  last_BL = jax.lax.cummax(slots_BL, axis=1)
  before_BL = jnp.pad(last_BL[:, :-1], ((0, 0), (1, 0)))
  contexts, after, shorter_BS = [], [], None
  for n, cached_B in enumerate(cache, start=1):
    if shorter_BS is None:
      context_BL = batch.tokens
    else:
      shorter_BL = jnp.take_along_axis(shorter_BS, before_BL, axis=1)
      context_BL = jnp.where(
        batch.positions >= n - 1,
        _child(params, shorter_BL, batch.tokens),
        _unseen(params),
      )
    shorter_BS = jnp.concatenate([cached_B[:, None], context_BL], axis=1)
    contexts.append(context_BL)
    after.append(jnp.take_along_axis(shorter_BS, last_BL[:, -1:], axis=1)[:, 0])
  return contexts, tuple(after)


def _child(params, context_BL, tokens_BL) -> jax.Array:
  """Searches the contexts [B, L] that are one token longer."""
  word, first = params['word'], params['first']
  end_BL = first[context_BL + 1]

  def halve(_, bounds):
    low_BL, high_BL = bounds
    middle_BL = (low_BL + high_BL) // 2
    left_BL = word[middle_BL] < tokens_BL
    return (
      jnp.where(left_BL, middle_BL + 1, low_BL),
      jnp.where(left_BL, high_BL, middle_BL),
    )

  low_BL, _ = jax.lax.fori_loop(
    0, len(word).bit_length(), halve, (first[context_BL], end_BL)
  )
  # Bounds that met at the end may have gone on, into another context.
  found_BL = (low_BL < end_BL) & (word[low_BL] == tokens_BL)
  return jnp.where(found_BL, low_BL, _unseen(params))


def _add_masses(p_PV, params, context_XP, weight_XP) -> jax.Array:
  """Adds `weight` times the masses of contexts' n-grams to each place's row.

  From a context go on from none to thousands of n-grams. All of them, laid end
  to end, are cut in chunks of one size, as many as there are.
  """
  P = len(p_PV)
  context_X, weight_X = context_XP.reshape(-1), weight_XP.reshape(-1)
  start_X = params['first'][context_X]
  sizes_X = params['first'][context_X + 1] - start_X
  end_X = jnp.cumsum(sizes_X, dtype=jnp.int32)
  shift_X = start_X - (end_X - sizes_X)

  def more(carry):
    return carry[0] < end_X[-1]

  def add(carry):
    done, p_PV = carry
    place_I = done + jnp.arange(_CHUNK, dtype=jnp.int32)
    x_I = jnp.searchsorted(end_X, place_I, side='right')
    gram_I = place_I + shift_X[x_I]
    # Beyond the last n-gram the row is outside, so nothing is added.
    row_I = jnp.where(place_I < end_X[-1], x_I % P, P)
    mass_I = weight_X[x_I] * params['mass'][gram_I]
    p_PV = p_PV.at[row_I, params['word'][gram_I]].add(mass_I, mode='drop')
    return done + _CHUNK, p_PV

  return jax.lax.while_loop(more, add, (jnp.int32(0), p_PV))[1]
