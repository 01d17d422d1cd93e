"""The gated delta rule in chunks is the recurrence, gradients included."""

import functools
from typing import Any

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.layers import delta_rule

CHUNKS = 1, 16, 64
CASES = 'plain', 'packed', 'strong', 'alike', 'mixed'
NAMES = 'q', 'k', 'v', 'decay', 'beta', 'state'
B, L, N, H, P = 2, 75, 2, 8, 12


def text(length, seed) -> Any:
  """Documents of 1 to 30 tokens, with padding between and inside of them."""
  rng = np.random.default_rng(seed)
  segments = np.zeros((B, length), np.int32)
  for row in segments:
    # Numbers need not rise, and the first place may be padding.
    place, used = int(rng.integers(0, 3)), rng.permutation(length) + 1
    while place < length:
      stop = place + int(rng.integers(1, 31))
      row[place:stop] = used[place]
      place = stop + int(rng.integers(0, 4))
  segments[rng.random(segments.shape) < 0.05] = 0
  return segments


def draw(case, seed=0, length=L) -> Any:
  """Arguments of the rule, float32, and the cotangents of its results."""
  rng = np.random.default_rng(seed)
  q, k, v, do = (rng.standard_normal((B, length, N, x)) for x in (H, H, P, P))
  if case in ('alike', 'mixed'):
    k = 1 + 0.01 * k
  q, k = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
  decay = -np.exp(2 * rng.standard_normal((B, length, N)) - 3)
  if case in ('strong', 'mixed'):
    # Weak ones and such that leave nothing, side by side.
    decay *= 1 + 2000 * (rng.random(decay.shape) < 0.3)
  beta = 1 / (1 + np.exp(-2 * rng.standard_normal((B, length, N))))
  s, ds = rng.standard_normal((2, B, N, H, P))
  segments = np.ones((B, length), np.int32)
  if case in ('packed', 'mixed'):
    segments = text(length, seed)
  floats = [x.astype(np.float32) for x in (q, k, v, decay, beta, s, do, ds)]
  return *floats[:5], segments, *floats[5:]


def kept(segments):
  """Tells by a loop whether each token goes on with the memory."""
  on, last = np.ones(segments.shape, bool), np.zeros(len(segments), int)
  for t, now in enumerate(segments.T):
    on[:, t] = (now == 0) | (last == 0) | (now == last)
    last = np.where(now > 0, now, last)
  return on


def exact(*given):
  """The recurrence and its gradient in float64, one token after another."""
  q, k, v, decay, beta, segments, s, do, ds = (
    np.asarray(x, np.float64) for x in given
  )
  live = (segments > 0)[..., None]
  keep = np.where(live, np.exp(decay), 1) * kept(segments)[..., None]
  write = np.where(live, beta, 0)
  out, past = np.zeros(v.shape), []
  for t in range(q.shape[1]):
    faded = s * keep[:, t, :, None, None]
    missed = v[:, t] - np.einsum('bnh,bnhp->bnp', k[:, t], faded)
    u = write[:, t, :, None] * missed
    s = faded + k[:, t, :, :, None] * u[:, :, None]
    out[:, t] = np.einsum('bnh,bnhp->bnp', q[:, t], s)
    past.append((faded, missed, u, s))
  dq, dk, dv, ddecay, dbeta = map(np.zeros_like, (q, k, v, decay, beta))
  for t in reversed(range(q.shape[1])):
    faded, missed, u, after = past[t]
    dq[:, t] = np.einsum('bnhp,bnp->bnh', after, do[:, t])
    ds = ds + q[:, t, :, :, None] * do[:, t, :, None]
    du = np.einsum('bnhp,bnh->bnp', ds, k[:, t])
    dbeta[:, t] = np.sum(du * missed, -1) * live[:, t]
    dv[:, t] = write[:, t, :, None] * du
    dk[:, t] = np.einsum('bnhp,bnp->bnh', ds, u)
    dk[:, t] -= np.einsum('bnhp,bnp->bnh', faded, dv[:, t])
    ds = ds - k[:, t, :, :, None] * dv[:, t, :, None]
    ddecay[:, t] = np.sum(ds * faded, (-1, -2)) * live[:, t]
    ds = ds * keep[:, t, :, None, None]
  return (out, s), (dq, dk, dv, ddecay, dbeta, ds)


@functools.cache
def pulled(chunk):
  """Compiles the rule and its gradient; no chunk is the recurrence."""
  rule = delta_rule.recurrent
  if chunk is not None:
    rule = functools.partial(delta_rule.chunked, chunk=chunk)

  @jax.jit
  def run(q, k, v, decay, beta, segments, s, do, ds):
    def floats(q, k, v, decay, beta, s):
      return rule(q, k, v, decay, beta, segments, s)

    out, pull = jax.vjp(floats, q, k, v, decay, beta, s)
    return out, pull((do, ds))

  return run


def relative(want, got):
  """The largest error, of the largest entry."""
  want, got = np.asarray(want, np.float64), np.asarray(got, np.float64)
  assert want.shape == got.shape and np.isfinite(got).all()
  return np.abs(want - got).max() / np.abs(want).max()


def errors(chunk, given):
  names = 'o', 'final', *NAMES
  want, got = exact(*given), pulled(chunk)(*given)
  flat = zip(names, want[0] + want[1], got[0] + got[1], strict=True)
  return {name: relative(a, b) for name, a, b in flat}


def test_the_reference_is_right():
  given = draw('packed', length=20)
  rng = np.random.default_rng(9)
  floats = [np.asarray(x, np.float64) for x in (*given[:5], given[6])]
  ways = [rng.standard_normal(x.shape) for x in floats]

  def total(size):
    moved = [x + size * way for x, way in zip(floats, ways, strict=True)]
    (out, s), _ = exact(*moved[:5], given[5], moved[5], *given[7:])
    return np.sum(out * given[7]) + np.sum(s * given[8])

  slope = (total(1e-5) - total(-1e-5)) / 2e-5
  gradients = exact(*given)[1]
  want = sum(np.sum(a * b) for a, b in zip(gradients, ways, strict=True))
  assert abs(slope - want) < 1e-7 * abs(want)


@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('chunk', [None, *CHUNKS])
def test_results_and_gradients_are_those_in_float64(chunk, case):
  found = errors(chunk, draw(case))
  print(chunk, case, {k: f'{v:.1e}' for k, v in found.items()})
  # Differences of running sums would give 8e-4, the series of the inverse 1e-2.
  assert max(found.values()) < 3e-6, found


@hypothesis.settings(max_examples=20)
@hypothesis.given(
  seed=st.integers(0, 10**6),
  case=st.sampled_from(CASES),
  chunk=st.sampled_from((16, 64)),
)
def test_any_packing_is_that_in_float64(seed, case, chunk):
  found = errors(chunk, draw(case, seed))
  # Differences of running sums would give 8e-4, the series of the inverse 1e-2.
  assert max(found.values()) < 3e-6, found


@pytest.mark.parametrize('parts', [(1,) * 20, (7, 1, 12), (16, 4), (3, 17)])
def test_from_the_state_is_in_one_pass(parts):
  q, k, v, decay, beta, segments, s, *_ = draw('plain', length=20)
  segments = np.where(np.arange(20)[None] < 18, segments, 0)
  run = jax.jit(functools.partial(delta_rule.chunked, chunk=16))
  want = run(q, k, v, decay, beta, segments, s)
  found, first = [], 0
  for length in parts:
    part = slice(first, first + length)
    now = (x[:, part] for x in (q, k, v, decay, beta, segments))
    out, s = run(*now, s)
    found.append(out)
    first += length
  assert relative(want[0], np.concatenate(found, 1)) < 2e-6
  assert relative(want[1], s) < 2e-6


@pytest.mark.slow
@pytest.mark.parametrize('chunk', CHUNKS)
def test_packed_is_alone(chunk):
  *floats, segments, s, do, ds = draw('packed')
  # Padding reads the memory, so that gradients of what it reads would count.
  do *= (segments > 0)[..., None, None]
  (out, _), pulls = pulled(chunk)(*floats, segments, 0 * s, do, 0 * ds)
  for row in range(B):
    for document in set(segments[row]) - {0}:
      here = np.flatnonzero(segments[row] == document)
      alone = [np.zeros_like(x) for x in (*floats, do)]
      for to, x in zip(alone, (*floats, do), strict=True):
        to[0, : len(here)] = x[row, here]
      only = np.zeros_like(segments)
      only[0, : len(here)] = 1
      want = pulled(chunk)(*alone[:-1], only, 0 * s, alone[-1], 0 * ds)
      flat = zip((want[0][0], *want[1][:5]), (out, *pulls[:5]), strict=True)
      for a, b in flat:
        a, b = a[0, : len(here)], np.asarray(b[row, here])
        assert np.abs(a - b).max() < 2e-6 * max(np.abs(b).max(), 1)


def test_what_stands_in_padding_changes_nothing():
  given = draw('packed')
  segments, noise = given[5], np.random.default_rng(5)
  live = segments > 0
  other = []
  for x in given[:5]:
    mask = live.reshape(live.shape + (1,) * (x.ndim - 2))
    drawn = -np.abs(noise.standard_normal(x.shape)).astype(np.float32)
    other.append(np.where(mask, x, 100 * drawn))
  rest = given[6], given[7] * live[..., None, None], given[8]
  a = pulled(16)(*given[:5], segments, *rest)
  b = pulled(16)(*other, segments, *rest)
  assert relative(a[0][1], b[0][1]) == 0
  assert relative(a[0][0][live], b[0][0][live]) == 0
  for x, y in zip(a[1], b[1], strict=True):
    x, y = (z if z.shape[1] != L else z[live] for z in (x, y))
    assert relative(x, y) == 0
  for gradient in b[1][1:5]:
    assert not np.any(np.asarray(gradient)[~live])


@pytest.mark.slow
def test_padding_and_a_new_document():
  q, k, v, decay, beta, segments, s, *_ = draw('plain', length=5)
  run = functools.partial(delta_rule.chunked, q, k, v, decay, beta)
  _, same = run(0 * segments, s)
  assert np.array_equal(same, s)
  # Zeros given are a new document; a second one is new by itself.
  text: Any = np.broadcast_to(
    np.array([0, 3, 0, 3, 7], np.int32), segments.shape
  )
  want = np.broadcast_to(np.array([0, 0, 0, 0, 1], bool), segments.shape)
  assert np.array_equal(delta_rule.starts(text), want)
  alone: Any = np.where(text == 7, text, 0)
  a, b = run(text, s)[1], run(alone, 0 * s)[1]
  assert relative(a, b) < 1e-6


@pytest.mark.slow
def test_the_inverse_of_a_triangle_of_ones():
  for C in (1, 2, 4, 64):
    a = np.tril(np.ones((1, 1, 1, C, C), np.float32), -1)
    found = delta_rule._inverse(jnp.asarray(a))
    assert np.array_equal(found @ (np.eye(C) + a), np.eye(C)[None, None, None])


def test_low_precision_arguments_have_gradients_of_their_kind():
  *floats, segments, s, do, ds = draw('packed')
  low = [jnp.asarray(x, 'bfloat16') for x in floats[:3]]
  out, gradients = pulled(16)(*low, *floats[3:], segments, s, do, ds)
  assert all(x.dtype == jnp.float32 for x in out)
  assert [x.dtype.name for x in gradients] == ['bfloat16'] * 3 + ['float32'] * 3
  wide = [np.asarray(x, np.float32) for x in low]
  (want, _), wants = exact(*wide, *floats[3:], segments, s, do, ds)
  assert relative(want, out[0]) < 1e-5
  for a, b in zip(wants, gradients, strict=True):
    assert relative(a, b) < 2**-8


@pytest.mark.parametrize('chunk', [0, 3, 48, -4])
def test_a_chunk_that_cannot_be_halved(chunk):
  with pytest.raises(ValueError, match='must be a power of two'):
    delta_rule.chunked(*draw('plain', length=5)[:7], chunk=chunk)


def shapes(length, heads=3, width=16, values=32):
  def make(*shape, dtype='float32'):
    return jax.ShapeDtypeStruct(shape, dtype)

  return (
    make(B, length, heads, width),
    make(B, length, heads, width),
    make(B, length, heads, values),
    make(B, length, heads),
    make(B, length, heads),
    make(B, heads, width, values),
  ), make(B, length, dtype='int32')


def residuals(rule, length, **more):
  """Numbers that the gradient keeps."""
  given, segments = shapes(length, **more)

  def pull(given, segments):
    q, k, v, decay, beta, s = given
    return jax.vjp(
      lambda *x: rule(*x[:5], segments, x[5]), q, k, v, decay, beta, s
    )[1]

  leaves = jax.tree.leaves(jax.eval_shape(pull, given, segments))
  return sum(x.size for x in leaves)


@pytest.mark.parametrize('chunk', CHUNKS)
@pytest.mark.parametrize('length', [128, 1024])
def test_the_gradient_keeps_its_arguments_an_inverse_and_states(chunk, length):
  rule = functools.partial(delta_rule.chunked, chunk=chunk)
  arguments = B * length * (3 * (16 + 16 + 32 + 1 + 1) + 1)
  inverse = B * length * 3 * chunk
  states = B * length // chunk * 3 * 16 * 32
  assert residuals(rule, length) == arguments + inverse + states


def test_a_state_a_chunk_and_not_a_token():
  rule = delta_rule.chunked
  one, two, four = (residuals(rule, 64 * n) for n in (1, 2, 4))
  assert four - two == 2 * (two - one)
  # At the width of a model: inputs of 194 floats a token and head.
  a_token = residuals(rule, 1024, heads=4, width=64, values=64) / (B * 1024 * 4)
  assert a_token < 194 + 64 + 64 + 1
  recurrent = residuals(
    delta_rule.recurrent, 1024, heads=4, width=64, values=64
  ) / (B * 1024 * 4)
  assert recurrent > 64 * 64


@pytest.mark.slow
def test_memory_of_a_compiled_gradient():
  def temporaries(rule, length):
    given, segments = shapes(length)

    def total(given, segments):
      q, k, v, decay, beta, s = given
      out, last = rule(q, k, v, decay, beta, segments, s)
      return jnp.sum(out * out) + jnp.sum(last * last)

    made: Any = jax.jit(jax.grad(total)).lower(given, segments).compile()
    return made.memory_analysis().temp_size_in_bytes / length

  short, long = (temporaries(delta_rule.chunked, x) for x in (512, 2048))
  assert long < 1.2 * short
  assert long < temporaries(delta_rule.recurrent, 2048) / 2
