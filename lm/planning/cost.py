"""The needs and costs of a step, read off the compiled program."""

from collections.abc import Mapping
import math
import re
import time
from typing import Any

import jax

from lm import config, sharding, tree, types
from lm.checkpoint import host_arrays
from lm.data.tokenizers import utf8_bytes
from lm.layers import kernels
from lm.planning import flops, hardware, hlo, topology
from lm.training import program as program_lib
from lm.training import setup, step


class TooLarge(RuntimeError):
  """The compiler found that a step needs more memory than a device has.

  Attributes:
    total: bytes that it needs.
  """

  def __init__(self, total: int):
    super().__init__(f'{total} bytes')
    self.total = total


def assemble(
  c: config.Config, machine: topology.Target, vocab: int | None = None
) -> setup.Run:
  """Assembles a run for a machine as training does, without reading a stream.

  Args:
    c: filled.
    machine: see `topology.target`.
    vocab: size of the vocabulary; None reads the config's tokenizer.

  Raises:
    config.ConfigError: the config cannot be used.
  """
  if c.fit is not None:
    raise config.ConfigError(
      f'fit: {c.fit.fn} counts and has no step to plan: use lm.fit'
    )
  if vocab is None:
    try:
      tokenizer = config.build(c.tokenizer)
    except config.ConfigError as error:
      raise config.ConfigError(f'{error}; or give --vocab=N') from error
  else:
    # Of the tokenizer only the size and some ids matter to shapes.
    tokenizer = utf8_bytes.make(c.tokenizer.get('reserved', 0))
    tokenizer = tokenizer._replace(size=vocab)
  return setup.assemble(
    c, devices=machine.devices, tokenizer=tokenizer, shapes_only=True
  )


def estimate(
  c: config.Config,
  machine: topology.Target,
  *,
  vocab: int | None = None,
  tokens: float | None = None,
  prices: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  """Compiles a run's step for a machine and estimates what it needs.

  Args:
    c: a config, filled or not.
    machine: see `topology.target`.
    vocab: size of the vocabulary; None reads the config's tokenizer.
    tokens: how many to train on; None is what the config trains on.
    prices: `dollars_per_device_hour` by chip, and
      `storage_bytes_per_second_per_host`.

  Returns:
    What `report.show` lays out: JSON, with bytes and seconds by name. Without
    a data sheet of the machine's chip (a CPU has none) there are no seconds.

  Raises:
    config.ConfigError: the config cannot be used on this machine.
  """
  began = time.monotonic()
  c = setup.fill(c)
  run = assemble(c, machine, vocab)
  program = run.program
  report: dict[str, Any] = {
    'target': machine.name,
    'devices': len(machine.devices),
    'mesh': {k: n for k, n in run.mesh.shape.items() if n > 1},
    'microbatches': c.microbatches,
    'parameters': tree.count(program.like.params),
    'tokens_per_step': run.data.example.tokens.size,
  }
  arguments = _arguments(program)
  try:
    compiled = _compile(program, machine)
  except TooLarge as error:
    memory = {'limit': machine.memory_bytes, 'total': error.total, **arguments}
    return {**report, 'fits': False, 'memory_bytes': memory}
  text = compiled.as_text()
  memory = _memory(compiled.memory_analysis(), arguments, run, machine)
  report['memory_bytes'] = memory
  report['fits'] = memory['total'] <= memory['limit']
  report |= _work(run, machine, text)
  report['checkpoint_bytes'] = host_arrays.nbytes(program.like)
  report['compile_seconds'] = time.monotonic() - began
  if machine.chip is not None:
    report |= times(report, machine.chip, run.mesh, c.mesh.slices)
    whole = float(c.steps * report['tokens_per_step'])
    tokens = whole if tokens is None else tokens
    report |= bill(report, machine.chip, tokens, prices or {})
  return report


def _compile(program: program_lib.Program, machine: topology.Target) -> Any:
  try:
    with topology.uncached(machine):
      return program_lib.lower(program).compile()
  except RuntimeError as error:
    if 'cuDNN' in str(error):  # jax looks for it when it lowers attention
      raise config.ConfigError(
        f'target {machine.name}: {error} {topology.CUDA}'
      ) from error
    # XLA says what a whole program used, or what its temporaries alone ask.
    used = re.search(r'(?:Used |temporaries \()([\d.]+)([KMGT]?)', str(error))
    if 'RESOURCE_EXHAUSTED' not in str(error) or used is None:
      raise
    total = float(used[1]) * 1024 ** ' KMGT'.index(used[2] or ' ')
    raise TooLarge(round(total)) from error


def _arguments(program: program_lib.Program) -> dict[str, int]:
  """Counts the bytes that a device holds of a step's arguments."""
  like, where, batch = program.like, program.where, program.batch
  params = _held(like.params, where.params)
  return {
    'params': params,
    'optimizer': _held(like, where) - params,
    'batch': _held(batch, jax.tree.map(lambda x: x.sharding, batch)),
  }


def _held(like: Any, where: Any) -> int:
  """Counts the bytes that one device holds of a tree."""
  return sum(
    math.prod(place.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf, place in zip(
      jax.tree.leaves(like), jax.tree.leaves(where), strict=True
    )
  )


def with_kernel(c: config.Config, kernel: str) -> config.Config:
  """Returns a config whose model attends by another kernel, if it attends."""
  c = c.copy_and_resolve_references()
  kernels.use(c.model, kernel)
  return c


def _memory(
  analysis: Any,
  arguments: Mapping[str, int],
  run: setup.Run,
  machine: topology.Target,
) -> dict[str, int]:
  """Splits what the compiler says of a device's memory into parts."""
  total = (
    analysis.argument_size_in_bytes
    + analysis.output_size_in_bytes
    - analysis.alias_size_in_bytes
    + analysis.temp_size_in_bytes
    + analysis.generated_code_size_in_bytes
  )
  # Arguments live on; what else there is comes and goes within a step.
  left = total - analysis.argument_size_in_bytes
  gradients = min(arguments['params'], left)
  # A TPU's kernel keeps as little as blocks do; a CPU traces what it runs.
  kept = run
  if machine.chip is not None:
    blockwise = with_kernel(run.config, 'blockwise')
    kept = assemble(blockwise, machine, run.tokenizer.size)
  activations = min(residual_bytes(kept), left - gradients)
  return {
    'limit': machine.memory_bytes,
    'total': total,
    'arguments': analysis.argument_size_in_bytes,
    **arguments,
    'gradients': gradients,
    'activations': activations,
    'temp': left - gradients - activations,
  }


def residual_bytes(run: setup.Run) -> int:
  """Estimates what a device keeps for the backward pass of a microbatch.

  These are the residuals of the forward pass that have rows of the batch, cut
  over the axes that cut rows and positions. Those that `tensor` cuts too count
  whole.
  """
  like, batch = run.program.like, run.program.batch
  rows = len(batch.tokens) // run.config.microbatches
  part = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), batch
  )

  def keep(params: types.Params, part: types.Batch) -> Any:
    return jax.vjp(
      lambda p: step.DEFAULT(run.model.apply(p, part), part, None).total, params
    )[1]

  kept = jax.eval_shape(keep, like.params, part)
  whole = sum(
    leaf.size * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(kept)
    if rows in leaf.shape
  )
  axes = (*sharding.BATCH, 'sequence', 'stage')
  return whole // math.prod(run.mesh.shape[a] for a in axes)


def _work(
  run: setup.Run, machine: topology.Target, text: str
) -> dict[str, Any]:
  """Counts the arithmetic of a step, and what it moves and sends."""
  # Products inside a kernel, or a loop that skips what is masked, cannot be
  # counted: those of the plain form are.
  einsum = with_kernel(run.config, 'einsum')
  plain = assemble(einsum, machine, run.tokenizer.size)
  like, example = plain.program.like, plain.data.example
  forward = flops.products(
    lambda params, batch: plain.model.apply(params, batch).logits,
    like.params,
    example,
  )
  hardware_flops = flops.products(plain.program.update, like, example)
  return {
    # By custom a backward pass counts as two forward passes, and what is
    # computed again does not count. With frozen parameters it is less.
    'model_flops': min(3 * forward, hardware_flops),
    'hardware_flops': hardware_flops,
    'memory_traffic_bytes': hlo.traffic(text),
    'collectives': [
      item._asdict() for item in hlo.collectives(text, dict(run.mesh.shape))
    ],
  }


def times(
  report: Mapping[str, Any],
  chip: hardware.Chip,
  mesh: Any,
  slices: int,
) -> dict[str, Any]:
  """Bounds the seconds of a step, and what share of the peak that is.

  Args:
    report: of `estimate`; each of its collectives gets its `seconds`.
    chip: the data sheet of a device.
    mesh: of the run.
    slices: with slow links between them.
  """
  count = report['devices']
  names = list(mesh.shape)
  links = 0.0
  for item in report['collectives']:
    # Devices of a group lie within one block of the mesh: the axes from the
    # outermost that the group spans to the innermost of all.
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


def bill(
  report: Mapping[str, Any],
  chip: hardware.Chip,
  tokens: float,
  prices: Mapping[str, Any],
) -> dict[str, Any]:
  """Computes hours, dollars and the time of a checkpoint.

  Args:
    report: of `estimate`, with its `times`.
    chip: the data sheet of a device.
    tokens: to train on.
    prices: see `estimate`; what has no price is left out.
  """
  hours = tokens / report['tokens_per_day'] * 24
  items: dict[str, Any] = {'tokens': tokens, 'hours': hours}
  rate = prices.get('dollars_per_device_hour', {}).get(chip.name)
  if rate is not None:
    items['dollars'] = hours * report['devices'] * rate
  speed = prices.get('storage_bytes_per_second_per_host')
  if speed is not None:
    hosts = max(report['devices'] // chip.host, 1)
    items['checkpoint_seconds'] = report['checkpoint_bytes'] / speed / hosts
  return items
