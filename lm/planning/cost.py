"""What a step needs and costs, read off the program that is compiled for it."""

from collections.abc import Mapping
import math
import re
import time
from typing import Any

import jax
import numpy as np

from lm import config, sharding, tree, types
from lm.checkpoint import host_arrays
from lm.data.tokenizers import builtin
from lm.planning import flops, hardware, hlo, topology
from lm.training import setup, step


def build(
  c: config.Config, machine: Target, vocab: int | None = None
) -> tuple[step.Program, types.Model, jax.sharding.Mesh, types.Batch]:
  """Puts a run together as `lm.train` does, without a stream's data.

  Records are read, as their rows are not known without.

  Args:
    c: filled.
    machine: see `target`.
    vocab: V; None reads the config's tokenizer.

  Raises:
    config.ConfigError: the config cannot be used.
  """
  if c.fit is not None:
    raise config.ConfigError(
      f'fit: {c.fit.fn} counts and has no step to plan: use lm.fit'
    )
  if vocab is None:
    try:
      words = config.build(c.tokenizer)
    except config.ConfigError as error:
      raise config.ConfigError(f'{error}; or give --vocab=N') from error
  else:
    words = builtin.bytes_(c.tokenizer.get('reserved', 0))
    words = words._replace(size=vocab)
  with config.refusals():
    mesh = sharding.make_mesh(**c.mesh, devices=machine.devices)
    model = config.build(c.model, vocab=words.size)
    optimizer = optim.holding(c.optim, model.fixed)
    tx, _ = config.build(optimizer, steps=c.steps)
    if 'objective' in c.data:
      objective = config.build(
        c.data.objective, tokenizer=words, length=c.data.length
      )
      example = objectives.example(objective, c.batch_size)
    else:
      example = config.build(
        c.data, tokenizer=words, seed=c.seed, batch_size=c.batch_size
      ).example
    run = step.program(
      model=model,
      tx=tx,
      example=example,
      mesh=mesh,
      rules=c.sharding,
      seed=c.seed,
      loss=config.build(c.loss),
      microbatches=c.microbatches,
      numerics=c.numerics,
      logical_shards=c.logical_shards,
      freeze=c.optim.get('freeze', ''),
    )
  return run, model, mesh, example


def plan(
  c: config.Config,
  machine: Target,
  *,
  vocab: int | None = None,
  tokens: float | None = None,
  prices: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  """Compiles a run's step for a machine and says what it needs.

  Args:
    c, machine, vocab: as of `build`.
    tokens: how many to train on; None is what the config trains on.
    prices: `dollars_per_device_hour` by chip, and
      `storage_bytes_per_second_per_host`.

  Returns:
    What `show` lays out; all of JSON, bytes and seconds by name. Without a
    table of its chip (a CPU) there are no seconds.

  Raises:
    config.ConfigError: the config cannot be used on this machine.
  """
  began = time.monotonic()
  c = config.fill(c, given={'data': ('position',)})
  run, _, mesh, example = build(c, machine, vocab)
  batch_tokens = int(np.prod(example.tokens.shape))
  report: dict[str, Any] = {
    'target': machine.name,
    'devices': len(machine.devices),
    'mesh': {k: n for k, n in mesh.shape.items() if n > 1},
    'microbatches': c.microbatches,
    'parameters': tree.count(run.like.params),
    'tokens_per_step': batch_tokens,
  }
  known = {
    'params': _held(run.like.params, run.where.params),
    'optimizer': _held(run.like, run.where)
    - _held(run.like.params, run.where.params),
    'batch': _held(run.batch, jax.tree.map(lambda x: x.sharding, run.batch)),
  }
  try:
    with _uncached(machine):
      compiled = step.lower(run).compile()
  except RuntimeError as error:
    if 'cuDNN' in str(error):  # jax looks for it when it lowers attention
      raise config.ConfigError(
        f'target {machine.name}: {error} {_CUDA}'
      ) from error
    # XLA says what a whole program used, or what its temporaries alone ask.
    used = re.search(r'(?:Used |temporaries \()([\d.]+)([KMGT]?)', str(error))
    if 'RESOURCE_EXHAUSTED' not in str(error) or used is None:
      raise
    total = float(used[1]) * 1024 ** ' KMGT'.index(used[2] or ' ')
    memory = {'limit': machine.memory_bytes, 'total': round(total), **known}
    return {**report, 'fits': False, 'memory_bytes': memory}
  text = compiled.as_text()
  report['memory_bytes'] = memory = _memory(
    compiled.memory_analysis(), known, machine, mesh, c, vocab
  )
  report['fits'] = memory['total'] <= memory['limit']
  report |= _work(c, machine, vocab, text, mesh)
  report['checkpoint_bytes'] = host_arrays.nbytes(run.like)
  report['compile_seconds'] = time.monotonic() - began
  if machine.chip is not None:
    report |= _times(report, machine.chip, mesh, c.mesh.slices)
    report |= _bill(report, machine.chip, c, tokens, prices or {})
  return report


def _attending(c: config.Config, kernel: str) -> config.Config:
  """Returns the config with another kernel, where its model has a choice."""
  c = c.copy_and_resolve_references()
  model = config.innermost(c.model)[1]
  if 'attention_kernel' in model:
    model.attention_kernel = kernel
  return c


def _held(like: Any, where: Any) -> int:
  """Counts the bytes that one device holds of a tree."""
  return sum(
    math.prod(place.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf, place in zip(
      jax.tree.leaves(like), jax.tree.leaves(where), strict=True
    )
  )


def _memory(found, known, machine, mesh, c, vocab) -> dict[str, int]:
  total = (
    found.argument_size_in_bytes
    + found.output_size_in_bytes
    - found.alias_size_in_bytes
    + found.temp_size_in_bytes
    + found.generated_code_size_in_bytes
  )
  # Arguments live on; what else there is comes and goes within a step.
  left = total - found.argument_size_in_bytes
  gradients = min(known['params'], left)
  # A TPU's kernel keeps as little as blocks do; a CPU traces what it runs.
  kept = c if machine.chip is None else _attending(c, 'blockwise')
  run, model, *_ = build(kept, machine, vocab)
  activations = min(residual_bytes(model, run, mesh, c), left - gradients)
  return {
    'limit': machine.memory_bytes,
    'total': total,
    'arguments': found.argument_size_in_bytes,
    **known,
    'gradients': gradients,
    'activations': activations,
    'temp': left - gradients - activations,
  }


def residual_bytes(
  model: types.Model, run: step.Program, mesh: jax.sharding.Mesh, c: Any
) -> int:
  """Estimates what a device keeps for the backward pass of a microbatch.

  The residuals of the forward pass that have rows of the batch, cut over the
  axes that cut rows and positions; those that `tensor` cuts too count whole.
  """
  rows = len(run.batch.tokens) // c.microbatches
  part = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), run.batch
  )

  def keep(params, part):
    return jax.vjp(
      lambda p: step.DEFAULT(model.apply(p, part), part, None).total, params
    )[1]

  kept = jax.eval_shape(keep, run.like.params, part)
  whole = sum(
    leaf.size * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(kept)
    if rows in leaf.shape
  )
  axes = (*sharding.BATCH, 'sequence', 'stage')
  return whole // math.prod(mesh.shape[a] for a in axes)


def _work(c, machine, vocab, text, mesh) -> dict[str, Any]:
  # Of a kernel, or a loop that skips what is masked, products are not counted.
  run, model, _, example = build(_attending(c, 'einsum'), machine, vocab)
  forward = flops.products(
    lambda params, batch: model.apply(params, batch).logits,
    run.like.params,
    example,
  )
  hardware = flops.products(run.update, run.like, example)
  return {
    # As is the custom: a backward pass is two forward ones, and what is
    # computed again does not count. What is frozen has less of one.
    'model_flops': min(3 * forward, hardware),
    'hardware_flops': hardware,
    'memory_traffic_bytes': hlo.traffic(text),
    'collectives': [
      item._asdict() for item in hlo.collectives(text, dict(mesh.shape))
    ],
  }


def _times(report, chip, mesh, slices) -> dict[str, Any]:
  count = report['devices']
  names = list(mesh.shape)
  links = 0.0
  for item in report['collectives']:
    block = math.prod(
      mesh.shape[a]
      for a in names[min(map(names.index, item['axes']), default=0) :]
    )
    is_gpu = chip.kind.startswith('NVIDIA')
    far = (slices > 1 and 'data' in item['axes']) or (
      is_gpu and block > chip.host
    )
    speed = chip.network_speed if far else chip.link_speed
    item['seconds'] = item['bytes'] / speed
    links += item['seconds']
  products = report['hardware_flops'] / count / chip.flops
  memory = report['memory_traffic_bytes'] / chip.memory_speed
  expected = max(products, memory) / chip.reached + links
  seconds = {
    'products': products,
    'memory': memory,
    'links': links,
    'roofline': max(products, memory, links),
    'expected': expected,
  }
  best = count * chip.flops
  return {
    'seconds': seconds,
    'mfu': report['model_flops'] / expected / best,
    'mfu_roofline': report['model_flops'] / seconds['roofline'] / best,
    'tokens_per_day': report['tokens_per_step'] / expected * 86_400,
  }


def _bill(report, chip, c, tokens, prices) -> dict[str, Any]:
  if tokens is None:
    tokens = c.steps * report['tokens_per_step']
  hours = tokens / report['tokens_per_day'] * 24
  bill: dict[str, Any] = {'tokens': tokens, 'hours': hours}
  rate = prices.get('dollars_per_device_hour', {}).get(chip.name)
  if rate is not None:
    bill['dollars'] = hours * report['devices'] * rate
  speed = prices.get('storage_bytes_per_second_per_host')
  if speed is not None:
    hosts = max(report['devices'] // chip.host, 1)
    bill['checkpoint_seconds'] = report['checkpoint_bytes'] / speed / hosts
  return bill


