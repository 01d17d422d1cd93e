"""A model as one portable function of StableHLO, its numbers beside it.

    model.stablehlo      `({name: array}, {name: ids}) -> logits`, of jax.export
    params.safetensors   the arrays
    manifest.json        what is read, ids, platforms, versions, sha256 of files
    model.py             `lm.interop.loader`, which reads the folder without lm

jax promises to read model.stablehlo for six months and for older versions; its
`mlir_module_serialized` is for other readers of StableHLO.
"""

from collections.abc import Mapping
import copy
import hashlib
import importlib.util
import json
from pathlib import Path
import shutil
from types import MappingProxyType
from typing import Any

import jax
from jax import export
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from lm import config, errors, tree, types
from lm.interop import loader
from lm.layers import kernels

PLATFORMS = ('cpu', 'cuda', 'tpu')
# Fields of a batch that a function reads; the others follow from them.
_INPUTS = ('tokens', 'source', 'prefix', 'token_types')
_SCALE = ':scale'


def save(
  folder: Path,
  spec: Mapping[str, Any],
  tokenizer: types.Tokenizer,
  params: types.Params,
  batch: types.Batch,
  about: Mapping[str, Any],
  scales: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> dict[str, Any]:
  """Writes a model into a folder; what lies there already is in the manifest.

  Rows and positions are free where the model's code lets them be; where not,
  the function is of one row as long as the batch's, and the manifest's `fixed`
  says why. Attention is that of whole masks, which every platform has.

  Args:
    folder: to write into.
    spec: of the model.
    tokenizer: of the model.
    params: its parameters; those with scales in int8.
    batch: an example of what it was trained on.
    about: more of the manifest.
    scales: by path, see `layers.compress.int8`.

  Returns:
    The manifest.

  Raises:
    ValueError: the batch's rows are not one text each, or are compared with
      each other, or flatbuffers is not installed.
  """
  if importlib.util.find_spec('flatbuffers') is None:
    raise ValueError(
      f'StableHLO needs flatbuffers: {errors.install("interop")}'
    )
  inputs = inputs_of(batch)
  _check_text(batch, _batch(inputs, tokenizer))
  spec = copy.deepcopy(dict(spec))
  kernels.use(spec, 'einsum')  # of no platform
  model = config.build(spec, vocab=tokenizer.size)
  arrays = {path: np.asarray(x) for path, x in tree.paths(params)}
  arrays |= {f'{path}{_SCALE}': np.asarray(x) for path, x in scales.items()}

  def run(arrays, inputs):
    whole = tree.map_paths(
      lambda path, _: (
        arrays[path] * arrays[f'{path}{_SCALE}']
        if path in scales
        else arrays[path]
      ),
      params,
    )
    return model.apply(whole, _batch(inputs, tokenizer)).logits

  few = [
    jax.eval_shape(run, arrays, {k: x[:n] for k, x in inputs.items()})
    for n in (1, 2)
  ]
  if few[0].shape[1:] != few[1].shape[1:]:
    raise ValueError(
      f'{spec["fn"]}: its logits compare the rows of a batch, and an exported '
      'function reads each alone: export int8 or huggingface instead'
    )
  body = config.innermost(spec)[1]
  made, longest, fixed = _lower(run, arrays, inputs, body.get('length'))
  shutil.copyfile(str(loader.__file__), folder / 'model.py')
  (folder / 'model.stablehlo').write_bytes(made.serialize())
  safetensors.numpy.save_file(arrays, folder / 'params.safetensors')
  # safetensors lets nobody else read it.
  shutil.copymode(folder / 'model.stablehlo', folder / 'params.safetensors')
  args, _ = jax.tree.unflatten(made.in_tree, made.in_avals)
  manifest = {
    **about,
    'inputs': {name: _told(x) for name, x in args[1].items()},
    'output': _told(made.out_avals[0]),
    'longest': longest,
    'fixed': fixed,
    'ids': {
      name: getattr(tokenizer, name) for name in ('bos', 'eos', 'pad', 'mask')
    },
    'platforms': made.platforms,
    'versions': {
      'jax': jax.__version__,
      'calling_convention': made.calling_convention_version,
    },
    'files': {file.name: _record(file) for file in sorted(folder.iterdir())},
  }
  text = json.dumps(manifest, indent=2)
  (folder / 'manifest.json').write_text(f'{text}\n')
  return manifest


def inputs_of(batch: types.Batch) -> dict[str, types.Array]:
  """Takes what an exported function reads out of a batch."""
  fields = batch._asdict()
  return {name: fields[name] for name in _INPUTS if fields[name] is not None}


def _batch(
  inputs: Mapping[str, types.Array], tokenizer: types.Tokenizer
) -> types.Batch:
  """Lays texts out, one a row; ids of padding are none, unless they are text.

  Where padding has the id of bos or eos, a target side is taken as it is: it
  sees nothing on its right.
  """
  tokens, source = inputs['tokens'], inputs.get('source')
  place = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
  live = jnp.ones_like(tokens)
  if tokenizer.pad not in (tokenizer.bos, tokenizer.eos):
    live = (tokens != tokenizer.pad).astype(jnp.int32)
  return types.Batch(
    **{'source': None, **inputs},
    targets=tokens[:, :1],  # which tell a classifier that a row is one text
    weights=live.astype(jnp.float32),
    positions=place,
    segments=live,
    source_segments=None
    if source is None
    else (source != tokenizer.pad).astype(jnp.int32),
  )


def _check_text(batch: types.Batch, made: types.Batch) -> None:
  """Checks that an example says no more than its inputs do.

  Raises:
    ValueError: it does.
  """
  live = batch.segments > 0
  same = [
    (made.positions[live], batch.positions[live]),
    (made.segments[live], batch.segments[live]),
  ]
  if made.source_segments is not None and batch.source_segments is not None:
    same.append((made.source_segments, batch.source_segments))
  if not all(np.array_equal(x, y) for x, y in same):
    raise ValueError(
      'data.objective: its rows are not one text each, read from the left, and '
      'an exported function reads no other: export int8 instead'
    )


def _lower(
  run, arrays, inputs, most
) -> tuple[export.Exported, int | None, str | None]:
  """Exports a function, its shapes free, free up to a length, or fixed.

  Returns:
    It, the longest length if there is one, and why it is fixed if it is.
  """

  def shaped(longest, fixed=None):
    limits = () if longest is None else (f'length <= {longest}',)
    scope = export.SymbolicScope(limits)
    like = {
      k: jax.ShapeDtypeStruct(x.shape, x.dtype) for k, x in arrays.items()
    }
    rest = {}
    for name, x in inputs.items():
      shape = (1, *x.shape[1:])
      if fixed is None:
        places = 'batch, source' if name == 'source' else 'batch, length'
        shape = export.symbolic_shape(places, scope=scope)
      rest[name] = jax.ShapeDtypeStruct(shape, x.dtype)
    made = export.export(jax.jit(run), platforms=PLATFORMS)(like, rest)
    return made, longest, fixed

  why = ''
  for longest in (None, most) if most else (None,):
    try:
      return shaped(longest)
    # What jax says where code asks for a number.
    except (TypeError, jax.errors.InconclusiveDimensionOperation) as error:
      why = f'{type(error).__name__}: {str(error).splitlines()[0]}'
  return shaped(inputs['tokens'].shape[1], why)


def _told(aval) -> dict[str, Any]:
  shape = [n if isinstance(n, int) else str(n) for n in aval.shape]
  return {'shape': shape, 'dtype': str(aval.dtype)}


def _record(file: Path) -> dict[str, Any]:
  with file.open('rb') as opened:
    digest = hashlib.file_digest(opened, 'sha256').hexdigest()
  return {'bytes': file.stat().st_size, 'sha256': digest}
