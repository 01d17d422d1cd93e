"""Faults inside a training step, where FAULT asks for them (tests only)."""

from functools import partial
import threading

import jax
import jax.numpy as jnp

from lm.runtime import faults


def gradients(grads, step):
  """Spoils gradients at the steps that FAULT names."""
  for name, factor in (('nan_grad', jnp.nan), ('spike_grad', 1e8)):
    if bad := faults.at(name):
      hit = jnp.isin(step, jnp.asarray(bad))
      grads = jax.tree.map(partial(_scaled, hit, factor), grads)
  if faults.at('hang_step'):
    jax.debug.callback(_hang, step)
  return grads


def _hang(step):
  if step in faults.at('hang_step'):
    threading.Event().wait()


def _scaled(hit, factor, x):
  return jnp.where(hit, x * factor, x).astype(x.dtype)


def parameters(params, step):
  """Flips the lowest bit of one number at the steps that FAULT names."""
  bad = faults.at('flip_bit')
  if not bad:
    return params
  leaves, structure = jax.tree.flatten(params)
  first = leaves[0].at[(0,) * leaves[0].ndim]
  wrong = first.set(jnp.nextafter(first.get(), jnp.inf))
  leaves[0] = jnp.where(jnp.isin(step, jnp.asarray(bad)), wrong, leaves[0])
  return jax.tree.unflatten(structure, leaves)
