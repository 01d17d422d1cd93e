"""N-gram models, as counts in a trie: modified Kneser-Ney, and add-k.

The parameters are a trie of the n-grams that were seen. Shorter n-grams come
first; those of one length are sorted by their context (all words but the last)
and then by their last word. So all words that follow a context lie side by
side. The probability of a word w after a context h is

  p(w | h) = mass(h w) + gamma(h) p(w | h without its first word),

where a context that was never seen has gamma 1 and no masses: it backs off to
the shorter one. Both methods of `fit` have this form. They differ in how they
count and in what they take from seen n-grams for unseen ones.

Letters that `types` does not have: P = B L places in a batch, T tokens that are
counted, W n-grams, X contexts, I n-grams of one chunk.

Reference: Chen and Goodman 1998, TR-10-98, section 3.
"""

from collections.abc import Iterable
from functools import partial
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from lm import initial, types
from lm.layers import checks
from lm.models import ngram_counts

AXES = ((r'.', ()),)  # replicated: any token may need any n-gram

# How many masses are added at once: few, so that a step of decoding wastes
# little, and enough to make the cost of the loop itself small.
_CHUNK = 2**13


def make(*, vocab: int, order: int) -> types.Model:
  """Makes an n-gram model; `init` makes a uniform one, `fit` a trained one.

  Logits are log probabilities, in nats. A history begins at the start of a
  document, or of the window that cuts it: at position p it has at most p + 1
  tokens. The cache holds the contexts that end at the last token of each row,
  so its size does not depend on the length.

  Args:
    vocab: V.
    order: the length of the longest n-gram, in tokens; 1 has no history.

  Raises:
    ValueError: a setting is below 1; or, from `apply`, a batch may have more
      n-grams than an int32 can count.
  """
  checks.check_counts(vocab=vocab, order=order)

  def parameters(batch) -> dict[str, initial.Given]:
    del batch  # no shape depends on it
    words, none = np.arange(vocab), np.zeros(0, np.int64)
    levels = [
      ngram_counts.Level(np.zeros_like(words), np.zeros_like(words), words)
    ]
    levels += [ngram_counts.Level(none, none, none)] * (order - 1)
    uniform = _params(levels, partial(ngram_counts.add_k, weight=1.0), vocab)
    return {name: initial.Given(np.asarray(x)) for name, x in uniform.items()}

  def start(params, batch, length) -> types.Cache:
    del length  # histories do not grow
    unseen_B = jnp.full(len(batch.tokens), _unseen(params), jnp.int32)
    return (unseen_B,) * (order - 1)

  def apply(params, batch, *, cache=None, rng=None) -> types.Output:
    del rng
    # The loops below index them by numbers that are not known yet.
    params = jax.tree.map(jnp.asarray, params)
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
      # Longest context first. The gamma of a context is the probability that it
      # leaves to the shorter ones; so the product of the gammas of all longer
      # contexts is the weight with which a context adds its masses.
      context_XP = jnp.stack(contexts[::-1]).reshape(order - 1, B * L)
      left_XP = jnp.cumprod(params['gamma'][context_XP], axis=0)
      weight_XP = jnp.concatenate([weight_P[None], left_XP[:-1]])
      p_PV = _add_masses(p_PV, params, context_XP, weight_XP)
      weight_P = left_XP[-1]
    p_PV += weight_P[:, None] * params['mass'][:vocab][None]
    logits_BLV = jnp.log(p_PV).reshape(B, L, vocab)
    return types.Output(logits_BLV, None if cache is None else after, {})

  return types.Model(parameters, apply, start, AXES)


def fit(
  documents: Iterable[np.ndarray],
  *,
  vocab: int,
  order: int,
  bos: int,
  method: str = 'kneser_ney',
  k: float = 1.0,
) -> types.Params:
  """Counts documents, and estimates the parameters of `make` from the counts.

  Kneser-Ney: below the highest order, the count of an n-gram is the number of
  different words to its left instead of its occurrences. N-grams that begin
  with bos have no word there and keep their occurrences, as in KenLM. Each
  order has three discounts, estimated from how many n-grams occur once to four
  times, n1 to n4 (equation 26). Where one of these numbers is 0 or a discount
  is not above 0, as in small corpora, the discounts are 0.5, 1 and 1.5. Single
  words are interpolated with 1 / V, so that every id has a probability, bos and
  padding too.

  Add-k: p(w | h) = (c(h w) + k) / (c(h) + k V) for histories h of `order - 1`
  tokens, or shorter ones from bos on; uniform after any other history. With
  order 1 and k near 0 this is the maximum likelihood estimate of single words.

  Everything is held in memory: up to 300 bytes a token while order 5 is
  counted.

  Args:
    documents: int [length] each, ids that end in eos, without bos.
    vocab: V.
    order: the length of the longest n-gram, in tokens.
    bos: the id that a history begins with at the start of a document, as in
      `lm.data.windows.pack`. It is not counted as a word to predict.
    method: 'kneser_ney' or 'add_k'.
    k: the number that 'add_k' adds to each count.

  Raises:
    ValueError: a setting is out of range, an id is outside the vocabulary, or
      there is no document with a token.
  """
  checks.check_counts(vocab=vocab, order=order)
  estimates = {
    'kneser_ney': ngram_counts.kneser_ney,
    'add_k': partial(ngram_counts.add_k, weight=k * vocab),
  }
  checks.check_choices(method=(method, estimates))
  if not 0 < k < float('inf'):
    raise ValueError(f'k={k} must be above 0')
  if not 0 <= bos < vocab:
    raise ValueError(f'bos={bos} is outside the vocabulary of {vocab} ids')
  tokens_T, places_T = ngram_counts.stream(documents, vocab, bos)
  levels = ngram_counts.count(
    tokens_T, places_T, vocab, order, bos, continuations=method == 'kneser_ney'
  )
  return _params(levels, estimates[method], vocab)


def nats(
  params: types.Params, documents: Iterable[np.ndarray], *, bos: int
) -> np.ndarray:
  """Scores documents on the host, without the logits of all words.

  Args:
    params: parameters from `fit`.
    documents, bos: the same as in `fit`.

  Returns:
    float64 [documents]: the sum of -log p over the tokens of each document, in
    nats, the same as the loss of the model that `make` makes.
  """
  word, mass, first, gamma = (
    np.asarray(params[key]) for key in ('word', 'mass', 'first', 'gamma')
  )
  vocab, none = int(first[0]), len(gamma) - 1  # the context never seen
  tokens_T, places_T = ngram_counts.stream(documents, vocab, bos)
  # All n-grams above single words are sorted by context and then by word: so
  # one integer each, and one binary search finds an n-gram of any order. The
  # largest integer at the end stands for the n-gram that was never seen.
  keys = np.repeat(np.arange(none), np.diff(first[:-1])) * vocab
  keys = np.append(keys + word[vocab:-1], np.iinfo(np.int64).max)
  p_T, node_T = mass[tokens_T].astype(np.float64), np.minimum(tokens_T, none)
  for n in itertools.count(1):
    # The context of n tokens before each token. In the next line, the n-gram
    # that the context makes with the token itself.
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


def _params(
  levels: list[ngram_counts.Level], estimate, vocab: int
) -> types.Params:
  """Lays the trie out in arrays.

  Args:
    levels: the n-grams of each order, from `ngram_counts.count`.
    estimate: `(level, contexts) -> (mass_W, gamma_X)`.
    vocab: V.

  Returns:
    Four arrays. `word` int32 [W + 1] and `mass` float32 [W + 1] are of the
    n-grams of all orders; the V single words come first, with p(w) as their
    mass. `first` int32 [X + 2] and `gamma` float32 [X + 1] are of the contexts,
    which are the n-grams below the highest order. The n-grams that continue
    context x are `first[x] : first[x + 1]`. The last entry of each array is for
    n-grams or contexts that were never seen.
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
  """Returns the index that stands for all contexts that were never seen."""
  return len(params['gamma']) - 1


def _walk(params, batch, cache) -> tuple[list[jax.Array], types.Cache]:
  """Finds the contexts that end at each place.

  A context of n tokens continues the context of n - 1 tokens that ends one
  token earlier, so each takes a single search.

  Returns:
    contexts: int32 [B, L] for each length 1, 2 and so on; the index of unseen
      contexts where a document has fewer tokens before this place.
    cache: int32 [B] for each length, the contexts at the last token of a row.
  """
  L = batch.tokens.shape[1]
  # Slot 0 is the cache, slot l + 1 is place l. The running maximum skips
  # padding: the token before may stand far to the left, and a row of padding
  # leaves its cache as it is.
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
  """Finds the contexts that are one token longer, by binary search: [B, L].

  Args:
    params: the trie.
    context_BL: contexts.
    tokens_BL: the token that follows each.
  """
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
  # Every row takes as many halvings as the whole trie would need, so bounds
  # that have met at the end may have moved on, into another context.
  found_BL = (low_BL < end_BL) & (word[low_BL] == tokens_BL)
  return jnp.where(found_BL, low_BL, _unseen(params))


def _add_masses(p_PV, params, context_XP, weight_XP) -> jax.Array:
  """Adds the masses of all n-grams that continue each place's contexts.

  A context has between none and thousands of continuations. Laid end to end,
  all of them are cut into chunks of one size; the number of chunks depends on
  the data. Arrays for the largest context at every place would not fit.

  Args:
    p_PV: probabilities.
    params: the trie.
    context_XP: contexts of each place.
    weight_XP: the weight of each context.
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
    # Number I of all continuations belongs to context x, and is n-gram `gram`.
    place_I = done + jnp.arange(_CHUNK, dtype=jnp.int32)
    x_I = jnp.searchsorted(end_X, place_I, side='right')
    gram_I = place_I + shift_X[x_I]
    # Numbers beyond the last one get row P, which does not exist: 'drop' then
    # adds nothing.
    row_I = jnp.where(place_I < end_X[-1], x_I % P, P)
    mass_I = weight_X[x_I] * params['mass'][gram_I]
    p_PV = p_PV.at[row_I, params['word'][gram_I]].add(mass_I, mode='drop')
    return done + _CHUNK, p_PV

  return jax.lax.while_loop(more, add, (jnp.int32(0), p_PV))[1]
