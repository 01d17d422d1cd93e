"""What a run will need, and cost, found without the machine that it is for.

  python -m lm.plan --config=configs/gpt/llama_1b.py --target=v5p:8x8x4
  python -m lm.plan --config=... --target=v5e:16x16 --search --tokens=2e10

Compiles the run's own training step for the target on this CPU, and reads off
the compiled program what it keeps, moves and sends. Nothing is allocated and
no data is read. Targets:

  v4 v5e v5p v6e tpu7x, as in v5p:8x8x4   a topology in chips; needs libtpu
  h100:N h200:N                           N GPUs; needs jax's CUDA plugin
  cpu:N                                   N simulated devices: fits or not

`--config.mesh.slices=2` plans for two such slices.

Seconds are bounds from data sheets (lm/planning/hardware.py): `roofline` is the longest of
products, memory and links, all at their peak and at once; `expected` adds what
links take to the longer of the other two, at the share of its peak that was
measured on an H200, or at its peak. Memory is the compiler's; its parts
`gradients` and `activations` are estimates, and `temp` is what is left.

Exit codes: 0 it fits, 3 it does not, 2 for what cannot be planned.
"""

import argparse
from collections.abc import Mapping, Sequence
import contextlib
from functools import partial
import itertools
import json
import math
import os
from pathlib import Path
import re
import sys
import time
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache
import numpy as np

from lm import config, errors, optim, sharding, tree, types
from lm.checkpoint import host_arrays
from lm.data import objectives
from lm.data.tokenizers import utf8_bytes
from lm.planning import flops, hlo
from lm.planning import hardware as hardware_lib
from lm.training import step

_CUDA = "pip install 'jax[cuda13-local]' nvidia-cuda-nvcc nvidia-cudnn-cu13"
_FULL = 3  # exit code of a run that does not fit


class Target(NamedTuple):
  """The machine that is planned for; `chip` is None of a CPU."""

  name: str
  chip: hardware_lib.Chip | None
  devices: Sequence[Any]
  memory_bytes: int


def target(name: str, slices: int = 1) -> Target:
  """Describes a machine that need not be here.

  Args:
    name: such as 'v5p:8x8x4', see the file.
    slices: how many of it, with slow links between them.

  Raises:
    config.ConfigError: it is not known, or what compiles for it is missing.
  """
  kind, _, shape = name.partition(':')
  known = {chip.name: chip for chip in hardware_lib.CHIPS}
  if kind == 'cpu' and shape.isdigit() and int(shape):
    count = int(shape) * slices
    devices = jax.devices('cpu')
    if len(devices) < count:
      raise config.ConfigError(
        f'target {name}: jax has {len(devices)} CPU devices already: set '
        f'JAX_NUM_CPU_DEVICES={count}'
      )
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    return Target(name, None, devices[:count], memory // count)
  if kind not in known or not re.fullmatch(r'\d+(x\d+)*', shape):
    raise config.ConfigError(
      f'target {name!r}: not a chip and a shape, such as v5p:8x8x4, h100:8 or '
      f'cpu:8{config.did_you_mean(kind, known)}'
    )
  chip = known[kind]
  describe = _gpu if chip.kind.startswith('NVIDIA') else _tpu
  devices = describe(name, chip, shape, slices)
  return Target(name, chip, devices, chip.memory_bytes)


def _tpu(name, chip, shape, slices):
  del chip
  # There is no TPU here to ask what it is, and none to wait for.
  for key, value in (
    ('TPU_SKIP_MDS_QUERY', '1'),
    ('ALLOW_MULTIPLE_LIBTPU_LOAD', '1'),
    ('TPU_ACCELERATOR_TYPE', 'v5p-8'),
    ('TPU_WORKER_HOSTNAMES', 'localhost'),
    ('TPU_MIN_LOG_LEVEL', '3'),
    ('TPU_STDERR_LOG_LEVEL', '3'),
  ):
    os.environ.setdefault(key, value)
  more = {'num_slices': slices} if slices > 1 else {}
  return _topology(
    name,
    errors.install('tpu'),
    platform='tpu',
    topology_name=name,
    **more,
  )


def _gpu(name, chip, shape, slices):
  count = math.prod(int(n) for n in shape.split('x')) * slices
  # What XLA must know of a card that is not here; both have one chip.
  card = f"""
    gpu_device_info {{
      threads_per_block_limit: 1024 threads_per_warp: 32
      shared_memory_per_block: 49152 shared_memory_per_core: 233472
      threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
      block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
      block_dim_limit_z: 65535 memory_bandwidth: {int(chip.memory_speed)}
      l2_cache_size: 52428800 clock_rate_ghz: 1.98
      device_memory_size: {chip.memory_bytes}
      shared_memory_per_block_optin: 232448
      cuda_compute_capability {{ major: 9 }}
      registers_per_core_limit: 65536 registers_per_block_limit: 65536
    }}
    platform_name: "CUDA"
    dnn_version_info {{ major: 9 minor: 7 }}
    runtime_version {{ major: 12 minor: 8 }}
    device_description_str: "NVIDIA {chip.name.upper()}"
  """
  return _topology(
    name,
    _CUDA,
    platform='cuda',
    target_config=card,
    topology=f'1x{max(count // chip.host, 1)}x{min(count, chip.host)}',
  )


def _topology(name, install, **settings) -> Sequence[Any]:
  try:
    with _quiet():
      return topologies.get_topology_desc(**settings).devices
  except Exception as error:  # whatever a plug-in makes of what it is asked
    text = ' '.join(str(error).split())
    raise config.ConfigError(
      f'target {name}: cannot be compiled for here: {text[:90]}: {install}, or '
      'name another shape'
    ) from error


@contextlib.contextmanager
def _uncached(machine: Target):
  """Keeps what no device here can load out of the compilation cache."""
  settings: Any = jax.config  # whose attributes no type names
  before = settings.jax_enable_compilation_cache
  if machine.chip is None or not before:
    yield
    return

  def use(wanted):
    jax.config.update('jax_enable_compilation_cache', wanted)
    compilation_cache.reset_cache()  # or it goes on as it began

  use(False)
  try:
    yield
  finally:
    use(True)


@contextlib.contextmanager
def _quiet():
  """Keeps what a library's C code has to say off the terminal."""
  sys.stderr.flush()
  kept = os.dup(2)
  with open(os.devnull, 'wb') as nowhere:
    os.dup2(nowhere.fileno(), 2)
    try:
      yield
    finally:
      os.dup2(kept, 2)
      os.close(kept)


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
    words = utf8_bytes.make(c.tokenizer.get('reserved', 0))
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


def show(report: Mapping[str, Any]) -> str:
  """Lays a plan out for reading."""
  memory = report['memory_bytes']
  mesh = ' '.join(f'{k}={n}' for k, n in report['mesh'].items()) or 'one device'
  limit, total = memory['limit'], memory['total']
  lines = [
    f'{report["target"]}: {report["devices"]} devices, {mesh}; '
    f'{report["parameters"]:,} parameters, '
    f'{report["tokens_per_step"]:,} tokens a step',
    f'{"FITS" if report["fits"] else "DOES NOT FIT"}: {_size(total)} of '
    f'{_size(limit)} a device ({total / limit:.0%})',
  ]
  lines += [
    f'  {name:<12}{_size(memory[name]):>10}'
    for name in memory
    if name not in ('limit', 'total', 'arguments')
  ]
  if 'model_flops' in report:
    again = report['hardware_flops'] / max(report['model_flops'], 1) - 1
    lines.append(
      f'a step: {report["model_flops"]:.3e} FLOPs of the model, {again:+.0%} '
      'computed; '
      f'{_size(report["memory_traffic_bytes"])} through memory a device'
    )
    for item in report['collectives']:
      axes = ','.join(item['axes']) or '?'
      took = f'  {item["seconds"]:.4f} s' if 'seconds' in item else ''
      lines.append(
        f'  {item["kind"]} over {axes} ({item["parts"]}): {item["count"]}, '
        f'{_size(item["bytes"])} a device{took}'
      )
  if 'seconds' in report:
    parts = '  '.join(f'{k} {v:.4f}' for k, v in report['seconds'].items())
    lines += [
      f'seconds: {parts}',
      f'expected: MFU {report["mfu"]:.0%} (at most '
      f'{report["mfu_roofline"]:.0%}), {report["tokens_per_day"]:.3e} tokens a '
      'day',
      f'{report["tokens"]:.3e} tokens: {report["hours"]:,.1f} hours'
      + (f', ${report["dollars"]:,.0f}' if 'dollars' in report else ''),
    ]
  if 'checkpoint_bytes' in report:
    took = report.get('checkpoint_seconds')
    lines.append(
      f'checkpoint: {_size(report["checkpoint_bytes"])}'
      + (f', written in {took:.1f} s' if took is not None else '')
    )
  return '\n'.join(lines)


def _size(count: float) -> str:
  for unit in ('B', 'KiB', 'MiB', 'GiB', 'TiB'):
    if abs(count) < 1024 or unit == 'TiB':
      return f'{count:.4g} {unit}'
    count /= 1024
  raise AssertionError


def candidates(
  c: config.Config, machine: Target, vocab: int | None
) -> list[dict[str, Any]]:
  """Lists layouts that might fit, the quickest by a rough estimate first.

  Meshes over data, fsdp and tensor (and expert, where there are experts; what
  else the config sets stays), times remat, times microbatches. The estimate
  is the products' time, what is computed again included, and that of gathering
  parameters, adding gradients and exchanging activations.

  Returns:
    Overrides of the config, each with the keys that differ.
  """
  count = len(machine.devices)
  assert machine.chip is not None
  chip = machine.chip
  fixed = c.mesh.stage * c.mesh.sequence
  where, inner = config.innermost(c.model)
  remats = ('none', 'dots', 'full') if 'remat' in inner else (None,)
  experts = (inner.get('experts') or {}).get('experts', 1)
  powers = [1 << n for n in range(count.bit_length())]
  probe = c.copy_and_resolve_references().unlock()
  probe.mesh.update(
    data=1, stage=1, fsdp=1, expert=1, sequence=1, tensor=1, slices=1
  )
  found = []
  for remat in remats:
    if remat is not None:
      config.innermost(probe.model)[1].remat = remat
    probe.microbatches = 1
    alone = machine._replace(devices=machine.devices[:1])
    run, model, mesh, example = build(probe, alone, vocab)
    state, weights = host_arrays.nbytes(run.like), tree.count(run.like.params)
    counted = build(_attending(probe, 'einsum'), alone, vocab)[0]
    work = flops.products(counted.update, counted.like, example)
    kept = residual_bytes(model, run, mesh, probe)
    depth, width = inner.get('depth', 1), inner.get('width', 1)
    rows = c.batch_size
    for fsdp, tensor, expert in itertools.product(powers, powers, powers):
      data, rest = divmod(count, fixed * fsdp * tensor * expert)
      split = data * fsdp * expert
      heads = inner.get('heads', tensor)
      keys = inner.get('kv_heads') or heads
      if rest or data < 1 or rows % split or tensor > chip.host:
        continue
      if data % c.mesh.slices or experts % expert or keys % tensor:
        continue
      for micro in (m for m in powers if rows // split % m == 0):
        held = state / (fsdp * tensor * expert) + 4 * weights / (fsdp * tensor)
        if held + kept / split / tensor / micro > machine.memory_bytes:
          continue
        gathered = 2 * 3 * weights / tensor * (fsdp > 1) * micro
        added = 2 * 4 * weights / (fsdp * tensor) * (data > 1)
        tokens = example.targets.size / split
        exchanged = 8 * 2 * tokens * width * depth * (tensor > 1)
        seconds = (
          work / count / chip.flops
          + (gathered + added + exchanged) / chip.link_speed
        )
        change: dict[str, Any] = {
          'mesh.data': data,
          'mesh.fsdp': fsdp,
          'mesh.tensor': tensor,
          'mesh.expert': expert,
          'microbatches': micro,
        }
        if remat is not None:
          change[f'{where}.remat'] = remat
        found.append((seconds, micro, sorted(change.items())))
  return [dict(change) for *_, change in sorted(found)]


def search(
  c: config.Config,
  machine: Target,
  *,
  tries: int = 4,
  say: Any = print,
  **settings: Any,
) -> dict[str, Any]:
  """Compiles the most promising layouts and returns the quickest that fits.

  Args:
    c, machine: as of `plan`.
    tries: how many to compile.
    say: told of each.
    **settings: of `plan`.

  Returns:
    Its report, with `overrides`: flags that make the config so.

  Raises:
    config.ConfigError: none can be, or what `plan` raises.
  """
  if machine.chip is None:
    raise config.ConfigError(
      f'target {machine.name}: has no table of speeds to search by: name a TPU '
      'or GPU'
    )
  filled = config.fill(c, given={'data': ('position',)})
  best = None
  for change in candidates(filled, machine, settings['vocab'])[:tries]:
    other = c.copy_and_resolve_references().unlock()
    flat = config.flatten(other)
    with other.unlocked():
      for key, value in change.items():
        *parents, last = key.split('.')
        place = other
        for parent in parents:
          place = place[parent]
        place[last] = value
    flags = ' '.join(
      f'--config.{key}={value}'
      for key, value in change.items()
      if flat.get(key) != value
    )
    report = plan(other.lock(), machine, **settings)
    report['overrides'] = flags
    time_ = report.get('seconds', {}).get('expected')
    fits = f'{time_:.4f} s a step' if report['fits'] else 'does not fit'
    say(f'{flags or "as it is"}: {fits}')
    if best is None or _rank(report) < _rank(best):
      best = report
  if best is None:
    raise config.ConfigError(
      f'target {machine.name}: no layout of data, fsdp, tensor, expert and '
      'microbatches can hold the model: take more devices'
    )
  return best


def _rank(report: Mapping[str, Any]) -> tuple[bool, float]:
  return not report['fits'], report.get('seconds', {}).get('expected', 0.0)


def main(argv: list[str]) -> int:
  """Runs the program; `config.main` turns errors into exit codes."""
  parser = argparse.ArgumentParser(
    prog='python -m lm.plan',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  add = parser.add_argument
  add('--config', required=True)
  add('--target', help='such as v5p:8x8x4; default: plan.target of the config')
  add('--vocab', type=int, help='size, where the tokenizer is not at hand')
  add('--tokens', type=float, help='of the whole run; default: the config')
  add('--prices', default='configs/prices.json', help='a file to edit')
  add('--search', action='store_true', help='try meshes, remat, microbatches')
  add('--tries', type=int, default=4, help='layouts that a search compiles')
  add('--json', action='store_true')
  mine = [word for word in argv if not word.startswith('--config.')]
  args = parser.parse_args(mine)
  overrides = [
    (key.removeprefix('--config.'), value)
    for key, _, value in (
      word.partition('=') for word in argv if word.startswith('--config.')
    )
  ]
  c = config.load(args.config, overrides)
  name = args.target or c.plan.target
  if name.startswith('cpu:') and name[4:].isdigit():
    jax.config.update(
      'jax_num_cpu_devices', int(name[4:]) * c.mesh.get('slices', 1)
    )
  machine = target(name, c.mesh.get('slices', 1))
  settings = {
    'vocab': args.vocab or c.plan.vocab,
    'tokens': args.tokens,
    'prices': _prices(Path(args.prices)),
  }
  if args.search:
    say = partial(print, file=sys.stderr if args.json else sys.stdout)
    report = search(c, machine, tries=args.tries, say=say, **settings)
  else:
    report = plan(c, machine, **settings)
  print(json.dumps(report) if args.json else show(report))
  if report.get('overrides') and not args.json:
    print(f'use: {report["overrides"]}')
  return 0 if report['fits'] else _FULL


def _prices(path: Path) -> dict[str, Any]:
  try:
    return json.loads(path.read_text())
  except FileNotFoundError:
    return {}
  except (OSError, ValueError) as error:
    raise config.ConfigError(f'{path}: not a price file: {error}') from error


if __name__ == '__main__':
  # The devices that are planned for are not here: compiling needs no others.
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  jax.config.update('jax_platforms', 'cpu')
  config.main(main)
