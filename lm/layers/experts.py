"""A mixture of experts: mlps, of which each token reads a few.

Letters here, beside those of `types`: T tokens, K experts that a token chooses,
N places of a buffer that experts read, C places that an expert has for a row,
W = B L.
"""

from collections.abc import Callable
from functools import partial
import math

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lm import sharding, types
from lm.layers import attention, blocks, grouped, linear

SCORINGS: dict[str, Callable[[jax.Array], jax.Array]] = {
  'softmax': jax.nn.softmax,
  'sigmoid': jax.nn.sigmoid,
}
DISPATCHES = ('dropless', 'capacity')

# Sharding rows; those of `blocks` fit no path of an expert.
AXES = (
  (r'mlp/router$', ('embed', None)),
  (r'experts/(up|gate)$', ('expert', 'embed', 'mlp')),
  (r'experts/down$', ('expert', 'mlp', 'embed')),
  (r'shared/(up|gate)$', ('embed', 'mlp')),
  (r'shared/down$', ('mlp', 'embed')),
)

# Of the gradient that moves a router's bias: only its sign is used, and a norm
# of gradients must not notice it.
_NUDGE = 1e-6


def make(
  *,
  experts: int,
  top_k: int = 2,
  width: int | None = None,
  shared: int = 0,
  scoring: str = 'softmax',
  normalize: bool = True,
  dispatch: str = 'dropless',
  capacity: float = 1.25,
  balance_weight: float = 0.01,
  balance_bias: bool = False,
  z_weight: float = 0.0,
) -> Callable[..., nn.Module]:
  """Makes a mixture of experts; the result builds a `Mixture`.

  Args:
    experts: E.
    top_k: K, experts that a token chooses.
    width: F of an expert; None is that of the model's mlp.
    shared: experts that all tokens read beside those they choose, one mlp
      `shared` times as wide. Reference: DeepSeekMoE, arXiv 2401.06066, section
      3.2.
    scoring: of the router's logits: 'softmax' over all experts, or 'sigmoid' of
      each (DeepSeek-V3, arXiv 2412.19437, section 2.1.2).
    normalize: the weights of a token's experts are their scores divided by the
      sum of these; with 'softmax' that is a softmax over the chosen ones
      (Mixtral, arXiv 2401.04088, section 2.1). Otherwise the scores (Switch,
      arXiv 2101.03961, section 2.1).
    dispatch: 'dropless': every token reads all experts it chose. 'capacity': an
      expert takes the first `capacity * K L / E` tokens of a row that chose it,
      and others lose it. Earlier positions come first, whatever their rank of
      choice, so that none depends on a later one; in GShard (arXiv 2006.16668,
      algorithm 1) all first choices come before all second ones. A row's
      documents share its places, and each call with a cache counts anew: such a
      model does not compute the same when packed or cut otherwise.
    capacity: see there; E / K drops nothing.
    balance_weight: of the loss that balances loads, see `balance_loss`; 0 has
      none.
    balance_bias: balances loads by a bias on the scores that experts are chosen
      by; it learns by `optim.balance_rate`. Reference: Wang et al. 2024, arXiv
      2408.15664, algorithm 1.
    z_weight: of the mean squared log normalizer of the router's logits.
      Reference: ST-MoE, arXiv 2202.08906, equation 5.

  Raises:
    ValueError: for settings that do not fit together.
  """
  for key, value in (('experts', experts), ('top_k', top_k)):
    if value < 1:
      raise ValueError(f'{key}={value} must be at least 1')
  if top_k > experts:
    raise ValueError(f'top_k={top_k} is more than experts={experts}')
  if width is not None and width < 1:
    raise ValueError(f'width={width} must be at least 1')
  for key, value, known in (
    ('scoring', scoring, SCORINGS),
    ('dispatch', dispatch, DISPATCHES),
  ):
    if value not in known:
      raise ValueError(f'{key}={value!r} is not one of {", ".join(known)}')
  if normalize and top_k == 1 < experts:
    raise ValueError(
      'top_k=1 with normalize gives each choice weight 1, from which a router '
      'learns nothing: set normalize=False'
    )
  for key, value in (
    ('shared', shared),
    ('balance_weight', balance_weight),
    ('z_weight', z_weight),
  ):
    if not value >= 0:
      raise ValueError(f'{key}={value} must be at least 0')
  if not capacity > 0:
    raise ValueError(f'capacity={capacity} must be above 0')
  return partial(
    Mixture,
    experts=experts,
    top_k=top_k,
    width=width,
    shared=shared,
    scoring=scoring,
    normalize=normalize,
    capacity=capacity if dispatch == 'capacity' else None,
    balance_weight=balance_weight,
    balance_bias=balance_bias,
    z_weight=z_weight,
  )


class Mixture(nn.Module):
  """Routes tokens to experts and adds up what these say.

  Experts are `blocks.Mlp`s without biases. The router computes in float32:
  choices made in bfloat16 are unstable (Switch, section 2.4).

  Attributes:
    experts to z_weight: as in `make`; `capacity` None drops nothing.
    mlp: the model's F.
    activation, kernel_init, dtype, compute_dtype: as in `blocks.Mlp`.
    output_init: makes the initializer of output kernels from the number of
      their inputs.
  """

  experts: int
  top_k: int
  width: int | None
  shared: int
  scoring: str
  normalize: bool
  capacity: float | None
  balance_weight: float
  balance_bias: bool
  z_weight: float
  mlp: int
  activation: str
  kernel_init: nn.initializers.Initializer
  output_init: Callable[[int], nn.initializers.Initializer]
  dtype: str
  compute_dtype: str

  @nn.compact
  def __call__(
    self, x_BLD: jax.Array, view: attention.View
  ) -> tuple[jax.Array, dict[str, types.Metric]]:
    """Returns [B, L, D] and what `measure` does.

    Padding reads no routed expert and counts nowhere.
    """
    E, D, F = self.experts, x_BLD.shape[-1], self.width or self.mlp
    router_DE = self.param('router', self.kernel_init, (D, E))
    logits_BLE = linear.contract(
      'BLD,DE->BLE', x_BLD, router_DE, 'float32', 'float32'
    )
    scores_BLE = SCORINGS[self.scoring](logits_BLE)
    bias_E = None
    if self.balance_bias:
      bias_E = self.param('router_bias', nn.initializers.zeros, (E,))
    choices_BLK, weights_BLK = choose(
      logits_BLE, scores_BLE, bias_E, self.top_k, self.normalize
    )
    assert view.segments_BL is not None, 'experts read no padding'
    live_BL = view.segments_BL > 0
    # Past the last expert: chosen by nobody.
    choices_BLK = jnp.where(live_BL[..., None], choices_BLK, E)
    kernels = Experts(
      experts=E,
      width=F,
      gated=self.activation in blocks.GATED,
      kernel_init=self.kernel_init,
      output_init=self.output_init(F),
      name='experts',
    )(D)
    y_BLD = apply(
      x_BLD,
      choices_BLK,
      weights_BLK,
      kernels,
      activation=self.activation,
      capacity=self.capacity,
      dtype=self.dtype,
      compute_dtype=self.compute_dtype,
    )
    if self.shared:
      common = blocks.Mlp(
        width=self.shared * F,
        activation=self.activation,
        bias=False,
        kernel_init=self.kernel_init,
        output_init=self.output_init(self.shared * F),
        dtype=self.dtype,
        compute_dtype=self.compute_dtype,
        name='shared',
      )
      y_BLD += common(x_BLD)[0]
    aux = measure(
      logits_BLE,
      scores_BLE,
      choices_BLK,
      live_BL,
      bias_E,
      self.balance_weight,
      self.z_weight,
    )
    return y_BLD, aux


class Experts(nn.Module):
  """Holds experts' kernels: `up`, `gate` [E, D, F] and `down` [E, F, D]."""

  experts: int
  width: int
  gated: bool
  kernel_init: nn.initializers.Initializer
  output_init: nn.initializers.Initializer

  @nn.compact
  def __call__(self, inputs: int) -> dict[str, jax.Array]:
    into = self.experts, inputs, self.width
    kernels = {'up': self.param('up', self.kernel_init, into)}
    if self.gated:
      kernels['gate'] = self.param('gate', self.kernel_init, into)
    shape = self.experts, self.width, inputs
    return {**kernels, 'down': self.param('down', self.output_init, shape)}


def choose(
  logits_BLE: jax.Array,
  scores_BLE: jax.Array,
  bias_E: jax.Array | None,
  top_k: int,
  normalize: bool,
) -> tuple[jax.Array, jax.Array]:
  """Chooses experts: int32 and float32 [B, L, K], which and how much of each.

  The bias takes part in the choice alone, not in the weights.
  """
  # Logits have the order of scores, and bits that scores have rounded off: of
  # small logits more, so that a choice seldom turns on rounding.
  preferred_BLE = logits_BLE
  if bias_E is not None:
    preferred_BLE = scores_BLE + bias_E[None, None]
  _, choices_BLK = jax.lax.top_k(jax.lax.stop_gradient(preferred_BLE), top_k)
  weights_BLK = jnp.take_along_axis(scores_BLE, choices_BLK, axis=-1)
  if normalize:
    # Sigmoids of logits below -88 are all 0.
    weights_BLK /= jnp.sum(weights_BLK, axis=-1, keepdims=True) + 1e-20
  return choices_BLK, weights_BLK


def measure(
  logits_BLE: jax.Array,
  scores_BLE: jax.Array,
  choices_BLK: jax.Array,
  live_BL: jax.Array,
  bias_E: jax.Array | None,
  balance_weight: float,
  z_weight: float,
) -> dict[str, types.Metric]:
  """Measures a router over the tokens that are not padding.

  `imbalance`: the load of the fullest expert over the mean load, minus 1. It is
  of the tokens of one call: of a microbatch, where there are several.

  `balance_loss`, with a weight or a bias: for each row T * sum(f_e P_e), where
  T tokens send a share f_e / E of their choices to expert e, and P_e is the
  mean of its scores, which are first made to sum to 1 for each token; it is 1
  when loads are even. Reference: DeepSeek-V3, arXiv 2412.19437, equations 17
  to 20, where a row is a text and f counts what would be chosen without the
  bias. Here f counts what was chosen and a row may hold several documents. In
  Switch (arXiv 2101.03961, equations 4 to 6) both are means over a batch, so
  that rows balance each other: which value it has depends on how a batch is
  cut up.

  With a bias there is a term whose value is 0 and whose gradient is the error
  of each expert's load, times a number that is the same for all: descent by its
  sign is algorithm 1 of arXiv 2408.15664. Errors add up over microbatches.

  `router_z_loss`, with a weight: the square of the logits' log normalizer.
  """
  E, K = logits_BLE.shape[-1], choices_BLK.shape[-1]
  ids_111E = jnp.arange(E)[None, None, None]
  load_BE = jnp.sum(choices_BLK[..., None] == ids_111E, axis=(1, 2))
  load_BE = load_BE.astype(jnp.float32)
  tokens_B = jnp.sum(live_BL, axis=1).astype(jnp.float32)
  tokens = jnp.sum(tokens_B)
  load_E = jnp.sum(load_BE, axis=0)
  mean = jnp.mean(load_E)
  uneven = jnp.max(load_E) / jnp.maximum(mean, 1e-9) - 1
  aux = {
    'imbalance': types.Metric(
      jax.lax.stop_gradient(jnp.where(tokens > 0, uneven, 0) * tokens), tokens
    )
  }
  balance = jnp.zeros(())
  if balance_weight:
    share_BLE = scores_BLE / (jnp.sum(scores_BLE, -1, keepdims=True) + 1e-20)
    share_BLE = jnp.where(live_BL[..., None], share_BLE, 0)
    # T cancels in T * f * P but for one that divides; a row may be all padding.
    each_B = jnp.sum(load_BE * jnp.sum(share_BLE, axis=1), axis=1)
    balance += (
      balance_weight * E / K * jnp.sum(each_B / jnp.maximum(tokens_B, 1))
    )
  if bias_E is not None:
    error_E = jax.lax.stop_gradient(load_E - mean)
    still_E = jax.lax.stop_gradient(bias_E)
    balance += _NUDGE * jnp.sum((bias_E - still_E) * error_E)
  if balance_weight or bias_E is not None:
    aux['balance_loss'] = types.Metric(balance, tokens)
  if z_weight:
    log_z_BL = jax.nn.logsumexp(logits_BLE, axis=-1)
    square_BL = jnp.where(live_BL, jnp.square(log_z_BL), 0)
    aux['router_z_loss'] = types.Metric(z_weight * jnp.sum(square_BL), tokens)
  return aux


def apply(
  x_BLD: jax.Array,
  choices_BLK: jax.Array,
  weights_BLK: jax.Array,
  kernels: dict[str, jax.Array],
  *,
  activation: str,
  capacity: float | None,
  dtype: str,
  compute_dtype: str,
) -> jax.Array:
  """Runs chosen experts: [B, L, D].

  On a mesh each device runs its own experts, for the rows that the axis
  `expert` deals to it and its peers. Dropless: peers give each other all their
  rows and add up what they made of them, since how many tokens an expert gets
  is not known when memory is planned. With a capacity it is, and only what an
  expert reads travels.

  Args:
    x_BLD: what experts read.
    choices_BLK: experts; E is none.
    weights_BLK: of what they say.
    kernels: of `Experts`.
    activation, dtype, compute_dtype: as in `blocks.Mlp`.
    capacity: as in `make`; None drops nothing.
  """
  run = partial(
    _dropless if capacity is None else partial(_limited, capacity),
    activation=activation,
    dtype=dtype,
    compute_dtype=linear.floating(compute_dtype),
  )
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return run(x_BLD, choices_BLK, weights_BLK, kernels)

  # Each part of a kernel gives a part of the answer. Tokens are spread over
  # parts, and answers added up, out here: so each way takes one sum.
  parts = sharding.parts('tensor')
  x_TBLD, weights_TBLK = (
    jnp.broadcast_to(x[None], (parts, *x.shape)) for x in (x_BLD, weights_BLK)
  )

  # Kernels are gathered in there, so that the sum of their gradients is cut as
  # it is made: XLA would add them up whole.
  fsdp = None if x_BLD.shape[-1] % sharding.parts('fsdp') else 'fsdp'
  where = {
    name: PartitionSpec(
      'expert', *(('tensor', fsdp) if name == 'down' else (fsdp, 'tensor'))
    )
    for name in kernels
  }

  def local(x_1BLD, choices_BLK, weights_1BLK, kernels):
    if fsdp:
      kernels = {
        name: _whole(kernel, fsdp, where[name].index(fsdp))
        for name, kernel in kernels.items()
      }
    return run(x_1BLD[0], choices_BLK, weights_1BLK[0], kernels)[None]

  place = sharding.spec('batch', 'length', None)
  spread = PartitionSpec('tensor', *place)
  y_TBLD = jax.shard_map(
    local,
    in_specs=(spread, place, spread, where),
    out_specs=spread,
    # What varies over which axis is not tracked: jax 0.10 to 0.12 lose count of
    # it where a pipeline maps stages.
    check_vma=False,
  )(x_TBLD, choices_BLK, weights_TBLK, kernels)
  return jax.lax.reduce_sum(y_TBLD, (0,))


def _dropless(x_BLD, choices_BLK, weights_BLK, kernels, **settings):
  """Sorts tokens by expert and multiplies each group with its kernels."""
  E, K = len(kernels['up']), choices_BLK.shape[-1]
  x_BLD, choices_BLK, weights_BLK = (
    _collect(x, 'expert', 0) for x in (x_BLD, choices_BLK, weights_BLK)
  )
  W = math.prod(choices_BLK.shape[:2])
  N = W * K
  choices_N = choices_BLK.reshape(N) - _place('expert') * E
  mine_N = (choices_N >= 0) & (choices_N < E)
  # What peers' experts read comes last, in no group.
  there_N = jnp.argsort(jnp.where(mine_N, choices_N, E))
  sizes_E = jnp.bincount(jnp.where(mine_N, choices_N, E), length=E)
  places_N = jnp.arange(N)
  back_N = jnp.zeros_like(there_N).at[there_N].set(places_N)
  there_N = jnp.where(places_N < jnp.sum(sizes_E), there_N, N)
  back_N = jnp.where(mine_N, back_N, N)

  def product(x_1ND, kernel_EDF):
    y_NF = grouped.contract(
      x_1ND[0],
      kernel_EDF,
      sizes_E,
      settings['compute_dtype'],
      settings['dtype'],
    )
    return y_NF[None]

  # One group of all tokens.
  y_1WD = _through(
    x_BLD.reshape(1, W, -1),
    weights_BLK.reshape(1, W, K),
    there_N[None],
    back_N.reshape(1, W, K),
    lambda x_1ND: _mlp(x_1ND, kernels, product, settings['activation']),
  )
  y_BLD = y_1WD.reshape(x_BLD.shape).astype(settings['dtype'])
  return _share(y_BLD, 'expert', 0)


def _limited(capacity, x_BLD, choices_BLK, weights_BLK, kernels, **settings):
  """Gives each expert C places for each row, and sends those around.

  Devices that have parts of the same rows take parts of the places.
  """
  parts = _size('sequence')
  x_BLD, choices_BLK, weights_BLK = (
    _collect(x, 'sequence', 1) for x in (x_BLD, choices_BLK, weights_BLK)
  )
  B, L, K = choices_BLK.shape
  E = len(kernels['up']) * _size('expert')
  C = min(math.ceil(capacity * K * L / E), L)
  held = -(-C // parts)
  T, N = L * K, E * held
  choices_BT = choices_BLK.reshape(B, T)
  chosen_BTE = choices_BT[..., None] == jnp.arange(E)[None, None]
  # How many earlier tokens of the row chose what this one did.
  before_BTE = jnp.cumsum(chosen_BTE, axis=1) - 1
  place_BT = jnp.sum(jnp.where(chosen_BTE, before_BTE, 0), axis=-1)
  here_BT = place_BT - _place('sequence') * held
  used_BT = (choices_BT < E) & (place_BT < C)
  used_BT &= (here_BT >= 0) & (here_BT < held)
  back_BT = jnp.where(used_BT, choices_BT * held + here_BT, N)
  there_BN = jnp.full((B, N), T)
  there_BN = there_BN.at[jnp.arange(B)[:, None], back_BT].set(
    jnp.arange(T)[None], mode='drop'
  )

  def product(x_BECD, kernel_EDF):
    return linear.contract(
      'BECD,EDF->BECF',
      x_BECD,
      kernel_EDF,
      settings['compute_dtype'],
      settings['dtype'],
    )

  def run(x_BND):
    x_BECD = _exchange(x_BND.reshape(B, E, held, -1), 1, 0)
    y_BECD = _mlp(x_BECD, kernels, product, settings['activation'])
    return _exchange(y_BECD, 0, 1).reshape(B, N, -1)

  back_BLK = back_BT.reshape(B, L, K)
  y_BLD = _through(x_BLD, weights_BLK, there_BN, back_BLK, run)
  y_BLD = y_BLD.astype(settings['dtype'])
  return _share(y_BLD, 'sequence', 1)


def _mlp(x, kernels, product, activation):
  """Does what `blocks.Mlp` does, with kernels of several experts."""
  h = product(x, kernels['up'])
  activate = blocks.ACTIVATIONS[activation]
  if 'gate' in kernels:
    h *= activate(product(x, kernels['gate']))
  else:
    h = activate(h)
  return product(h, kernels['down'])


def _through(x_BLD, weights_BLK, there_BN, back_BLK, run):
  """Moves tokens to places, runs what stands there, and adds it up by token.

  Args:
    x_BLD: tokens in B groups.
    weights_BLK: of what each of K places says to a token.
    there_BN: which of the L K choices a place serves; L K is none.
    back_BLK: the place that serves a choice; N is none.
    run: [B, N, D] -> [B, N, D].

  Returns:
    float32 [B, L, D]: sums of experts' answers, as wide as their weights.
  """
  x_BND = _spread(x_BLD, there_BN, back_BLK)
  return _join(run(x_BND), weights_BLK, there_BN, back_BLK)


def _take(x, to):
  """Takes rows, or entries, by their numbers; 0 for one past the last."""
  if x.ndim > to.ndim:
    to = to[..., None]
  return jnp.take_along_axis(x, to, axis=1, mode='fill', fill_value=0)


# Gradients of both are written by hand: autodiff would scatter rows, which
# XLA:CPU does one by one. Loops over K, since it sums a dimension that was
# gathered 20 to 200 times slower.


@jax.custom_vjp
def _spread(x_BLD, there_BN, back_BLK):
  """Brings tokens to their places: [B, N, D]."""
  return _take(x_BLD, there_BN // back_BLK.shape[-1])


def _spread_forward(x_BLD, there_BN, back_BLK):
  return _spread(x_BLD, there_BN, back_BLK), back_BLK


def _spread_backward(back_BLK, cotangent_BND):
  B, L, K = back_BLK.shape
  dx_BLD = jnp.zeros((B, L, cotangent_BND.shape[-1]))
  for k in range(K):
    dx_BLD += _take(cotangent_BND, back_BLK[..., k])
  return dx_BLD.astype(cotangent_BND.dtype), None, None


_spread.defvjp(_spread_forward, _spread_backward)


@jax.custom_vjp
def _join(y_BND, weights_BLK, there_BN, back_BLK):
  """Adds up what places say, by token: float32 [B, L, D]."""
  del there_BN
  B, L, K = back_BLK.shape
  y_BLD = jnp.zeros((B, L, y_BND.shape[-1]))
  for k in range(K):
    y_BLD += weights_BLK[..., k, None] * _take(y_BND, back_BLK[..., k])
  return y_BLD


def _join_forward(y_BND, weights_BLK, there_BN, back_BLK):
  residuals = y_BND, weights_BLK, there_BN, back_BLK
  return _join(*residuals), residuals


def _join_backward(residuals, cotangent_BLD):
  y_BND, weights_BLK, there_BN, back_BLK = residuals
  B, L, K = back_BLK.shape
  weights_BN = _take(weights_BLK.reshape(B, L * K), there_BN)
  dy_BND = weights_BN[..., None] * _take(cotangent_BLD, there_BN // K)
  y_BLKD = _take(y_BND, back_BLK.reshape(B, L * K)).reshape(B, L, K, -1)
  dweights_BLK = jnp.einsum(
    'BLKD,BLD->BLK', y_BLKD.astype(jnp.float32), cotangent_BLD
  )
  return dy_BND.astype(y_BND.dtype), dweights_BLK, None, None


_join.defvjp(_join_forward, _join_backward)


def _mapped() -> bool:
  """Tells whether this is one device's part, inside `jax.shard_map`."""
  return bool(jax.sharding.get_abstract_mesh().manual_axes)


def _size(axis):
  return sharding.parts(axis) if _mapped() else 1


def _place(axis):
  return jax.lax.axis_index(axis) if _mapped() else 0


def _collect(x, axis, dimension):
  """Puts the parts of all peers one after another."""
  if not _mapped():
    return x
  return jax.lax.all_gather(x, axis, axis=dimension, tiled=True)


def _whole(x, axis, dimension):
  """Does what `_collect` does, by way of a dimension in front.

  Of the gradient's sum TPU compilers cut no other one that is not the last.
  """
  parts = jnp.moveaxis(jax.lax.all_gather(x, axis), 0, dimension)
  return parts.reshape(*x.shape[:dimension], -1, *x.shape[dimension + 1 :])


def _share(x, axis, dimension):
  """Adds up what all peers have, and leaves each its part."""
  if not _mapped():
    return x
  return jax.lax.psum_scatter(x, axis, scatter_dimension=dimension, tiled=True)


def _exchange(x, cut, joined):
  """Gives each peer its part of dimension `cut`."""
  if not _mapped():
    return x
  return jax.lax.all_to_all(x, 'expert', cut, joined, tiled=True)
