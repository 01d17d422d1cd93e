import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm import loss, metrics, types
from lm.models import linen


def example(V=11, B=2, L=5, seed=0):
  rng = np.random.default_rng(seed)
  logits = rng.normal(size=(B, L, V)).astype(np.float32) * 3
  batch = linen.example_batch(B, L)._replace(
    targets=rng.integers(0, V, (B, L)).astype(np.int32),
    weights=rng.integers(0, 2, (B, L)).astype(np.float32),
  )
  return logits, batch


@pytest.mark.parametrize('z_weight', [0.0, 0.1])
@pytest.mark.parametrize('smoothing', [0.0, 0.2])
def test_loss_and_gradient_equal_optax(z_weight, smoothing):
  logits, batch = example()

  def reference(x):
    labels = optax.smooth_labels(
      jax.nn.one_hot(batch.targets, x.shape[-1]), smoothing
    )
    nats = optax.softmax_cross_entropy(x, labels)
    nats += z_weight * jnp.square(jax.nn.logsumexp(x, axis=-1))
    return jnp.sum(nats * batch.weights)

  def ours(x):
    return loss.token_loss(
      x, batch, z_weight=z_weight, smoothing=smoothing
    ).total

  want, want_grad = jax.value_and_grad(reference)(logits)
  got, got_grad = jax.value_and_grad(ours)(logits)
  np.testing.assert_allclose(got, want, rtol=1e-5)
  np.testing.assert_allclose(got_grad, want_grad, atol=1e-5)


def test_z_loss_gradient_equals_a_finite_difference():
  logits, batch = example()

  def total(x):
    return float(loss.token_loss(x, batch, z_weight=0.5).total)

  grad = jax.grad(lambda x: loss.token_loss(x, batch, z_weight=0.5).total)(
    jnp.asarray(logits)
  )
  b, l = np.argwhere(batch.weights)[0]
  for v in range(3):
    step = np.zeros_like(logits)
    step[b, l, v] = 0.05
    slope = (total(logits + step) - total(logits - step)) / 0.1
    assert float(grad[b, l, v]) == pytest.approx(slope, abs=0.02)


def test_huge_logits_stay_finite():
  logits, batch = example()
  value, grad = jax.value_and_grad(lambda x: loss.token_loss(x, batch).total)(
    logits * 1e4
  )
  assert np.isfinite(value) and np.isfinite(grad).all()


def test_bfloat16_logits_get_bfloat16_gradients():
  logits, batch = example()
  grad = jax.grad(lambda x: loss.token_loss(x, batch).total)(
    jnp.asarray(logits, jnp.bfloat16)
  )
  assert grad.dtype == jnp.bfloat16


def test_smoothing_of_everything_is_refused():
  with pytest.raises(ValueError, match=r'smoothing=1\.0 must be below 1'):
    loss.make(smoothing=1.0)


def test_metrics_merge_exactly_and_nothing_weighs_nan():
  a, b = types.Metric(3.0, 2.0), types.Metric(5.0, 6.0)
  assert metrics.merge(a, b) == types.Metric(8.0, 8.0)
  assert metrics.values({'x': metrics.merge(a, b)}) == {'x': 1.0}
  assert np.isnan(metrics.value(types.Metric(0.0, 0.0)))


def test_a_uniform_byte_model_needs_eight_bits():
  assert metrics.bits_per_byte(100 * np.log(256), 100) == pytest.approx(8)
