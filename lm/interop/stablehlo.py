"""Exports a model as one portable function of StableHLO, with its parameters.

    model.stablehlo      `({name: array}, {name: ids}) -> logits`, of jax.export
    params.safetensors   the arrays
    manifest.json        inputs, ids, platforms, versions, and sha256 of files
    model.py             `lm.interop.loader`, which reads the folder without lm

jax promises that newer versions read model.stablehlo for six months. Its
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
# The fields of a batch that the function reads; the others follow from them.
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
  """Writes a model into a folder. Files that are there already are hashed too.

  The function takes any number of rows and positions if the code of the model
  allows it. Else it takes one row as long as those of the batch, and `fixed` in
  the manifest says why. Attention is computed from whole masks, which works on
  every platform.

  Args:
    folder: to write into.
    spec: of the model.
    tokenizer: of the model.
    params: its parameters; those with a scale are int8.
    batch: an example of what the model was trained on.
    about: more fields of the manifest.
    scales: by path, see `layers.compress.int8`.

  Returns:
    The manifest.

  Raises:
    ValueError: a row of the batch is not one text, the logits of a row depend
      on other rows, or flatbuffers is not installed.
  """
  if importlib.util.find_spec('flatbuffers') is None:
    raise ValueError(
      f'StableHLO needs flatbuffers: {errors.install("interop")}'
    )
  inputs = inputs_of(batch)
  _check_text(batch, _batch(inputs, tokenizer))
  spec = copy.deepcopy(dict(spec))
  kernels.use(spec, 'einsum')  # the one that needs no certain platform
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

  one, two = (
    jax.eval_shape(run, arrays, {k: x[:n] for k, x in inputs.items()})
    for n in (1, 2)
  )
  if one.shape[1:] != two.shape[1:]:
    raise ValueError(
      f'{spec["fn"]}: its logits compare the rows of a batch, and an exported '
      'function reads each alone: export int8 or huggingface instead'
    )
  body = config.innermost(spec)[1]
  exported, longest, fixed = _lower(run, arrays, inputs, body.get('length'))
  ids = {x: getattr(tokenizer, x) for x in ('bos', 'eos', 'pad', 'mask')}
  about = {**about, 'longest': longest, 'fixed': fixed, 'ids': ids}
  return _write(folder, exported, arrays, about)


def _write(
  folder: Path,
  exported: export.Exported,
  arrays: Mapping[str, np.ndarray],
  about: Mapping[str, Any],
) -> dict[str, Any]:
  """Writes the files of an export, and returns the manifest."""
  shutil.copyfile(str(loader.__file__), folder / 'model.py')
  (folder / 'model.stablehlo').write_bytes(exported.serialize())
  safetensors.numpy.save_file(dict(arrays), folder / 'params.safetensors')
  # safetensors makes a file that only its owner can read.
  shutil.copymode(folder / 'model.stablehlo', folder / 'params.safetensors')
  args, _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
  manifest = {
    **about,
    'inputs': {name: _described(x) for name, x in args[1].items()},
    'output': _described(exported.out_avals[0]),
    'platforms': exported.platforms,
    'versions': {
      'jax': jax.__version__,
      'calling_convention': exported.calling_convention_version,
    },
    'files': {file.name: _record(file) for file in sorted(folder.iterdir())},
  }
  text = json.dumps(manifest, indent=2)
  (folder / 'manifest.json').write_text(f'{text}\n')
  return manifest


def inputs_of(batch: types.Batch) -> dict[str, types.Array]:
  """Returns the fields of a batch that an exported function reads."""
  fields = batch._asdict()
  return {name: fields[name] for name in _INPUTS if fields[name] is not None}


def _batch(
  inputs: Mapping[str, types.Array], tokenizer: types.Tokenizer
) -> types.Batch:
  """Makes a batch of texts, one a row, from their ids alone.

  Positions with the id of padding are left out. If padding has the id of bos or
  eos, all positions of the tokens are kept: no text attends to what is on its
  right.
  """
  tokens, source = inputs['tokens'], inputs.get('source')
  place = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
  live = jnp.ones_like(tokens)
  if tokenizer.pad not in (tokenizer.bos, tokenizer.eos):
    live = (tokens != tokenizer.pad).astype(jnp.int32)
  return types.Batch(
    **{'source': None, **inputs},
    targets=tokens[:, :1],  # of one column: a classifier gets one text a row
    weights=live.astype(jnp.float32),
    positions=place,
    segments=live,
    source_segments=None
    if source is None
    else (source != tokenizer.pad).astype(jnp.int32),
  )


def _check_text(batch: types.Batch, rebuilt: types.Batch) -> None:
  """Checks that an example follows from the fields that the function reads.

  Raises:
    ValueError: it has other positions or segments.
  """
  live = batch.segments > 0
  same = [
    (rebuilt.positions[live], batch.positions[live]),
    (rebuilt.segments[live], batch.segments[live]),
  ]
  if rebuilt.source_segments is not None and batch.source_segments is not None:
    same.append((rebuilt.source_segments, batch.source_segments))
  if not all(np.array_equal(x, y) for x, y in same):
    raise ValueError(
      'data.objective: its rows are not one text each, read from the left, and '
      'an exported function reads no other: export int8 instead'
    )


def _lower(
  run, arrays, inputs, most
) -> tuple[export.Exported, int | None, str | None]:
  """Exports a function whose shapes are free, free up to a length, or fixed.

  Returns:
    The function, its longest length or None, and why its shapes are fixed or
    None.
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
    exported = export.export(jax.jit(run), platforms=PLATFORMS)(like, rest)
    return exported, longest, fixed

  why = ''
  for longest in (None, most) if most else (None,):
    try:
      return shaped(longest)
    # The errors of jax if code needs the number behind a free shape.
    except (TypeError, jax.errors.InconclusiveDimensionOperation) as error:
      why = f'{type(error).__name__}: {str(error).splitlines()[0]}'
  return shaped(inputs['tokens'].shape[1], why)


def _described(aval) -> dict[str, Any]:
  shape = [n if isinstance(n, int) else str(n) for n in aval.shape]
  return {'shape': shape, 'dtype': str(aval.dtype)}


def _record(file: Path) -> dict[str, Any]:
  with file.open('rb') as opened:
    digest = hashlib.file_digest(opened, 'sha256').hexdigest()
  return {'bytes': file.stat().st_size, 'sha256': digest}
