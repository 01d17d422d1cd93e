"""Turns models of Hugging Face transformers into models of lm, and back."""

from collections.abc import Mapping
import math
import re
from typing import Any, NamedTuple

import numpy as np

from lm import config, tree, types
from lm.data import objectives
from lm.interop import bert, fields, gpt2, layout, llama, t5, tensors, trees

ARCHITECTURES: Mapping[str, fields.Architecture] = (
  gpt2.ARCHITECTURES
  | llama.ARCHITECTURES
  | bert.ARCHITECTURES
  | t5.ARCHITECTURES
)
# By model_type, the class of a config.json that names none.
_USUAL = {
  'gpt2': 'GPT2LMHeadModel',
  'llama': 'LlamaForCausalLM',
  'qwen3': 'Qwen3ForCausalLM',
  'gemma3_text': 'Gemma3ForCausalLM',
  'bert': 'BertForMaskedLM',
  't5': 'T5ForConditionalGeneration',
}
_EMBED = 'lm.models.heads:embed'
# Buffers that older versions of transformers saved, though they are computed.
_BUFFERS = r'(^|\.)(position_ids|inv_freq)$'


class Imported(NamedTuple):
  """An imported model.

  Attributes:
    architecture: its class in transformers.
    model: its spec, with all settings.
    vocab: V, its number of ids.
    params: its parameters, float32.
    left_out: names of tensors that are no part of the model.
    labels: names of its classes, if it classifies.
  """

  architecture: str
  model: dict[str, Any]
  vocab: int
  params: types.Params
  left_out: list[str]
  labels: tuple[str, ...] = ()


def load(source: tensors.Source) -> Imported:
  """Imports a model of transformers.

  A `BertModel` has no output layer: it becomes a model of sentence vectors.
  Parameters become float32, which loses nothing.

  Raises:
    ValueError: the architecture or a setting is unknown, or a tensor is
      missing, unexpected or of a wrong shape; one line.
  """
  try:
    return _load(source)
  except ValueError as error:
    raise ValueError(f'{source.where}: {error}') from error


def save(
  spec: Mapping[str, Any], vocab: int, params: types.Params
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Exports a model to transformers.

  A class is right if its config.json, when it is read again, gives all settings
  of the model.

  Args:
    spec: of the model.
    vocab: V, its number of ids.
    params: its parameters; blocks may be stacked.

  Returns:
    The content of config.json, and the tensors by name, float32.

  Raises:
    ValueError: no class computes what the model computes. One line says how
      the nearest one differs.
  """
  kind = spec['fn'], spec.get('body', {}).get('fn', '')
  known = {
    name: architecture
    for name, architecture in ARCHITECTURES.items()
    if (architecture.fn, architecture.body) == kind
  }
  why = ''
  if known:
    params = layout.unstacked(params)
    try:
      spec = trees.flatten(spec)
    except ValueError as error:
      raise ValueError(f'{spec["fn"]}: {error}') from error
  least = math.inf
  for name, architecture in known.items():
    try:
      written = architecture.config(spec)
      rows = layout.rows(architecture.table(spec), params)
      names = {row.place.name for row in rows}
      again = trees.flatten(_spec(architecture, written, names))
    except ValueError as error:
      why = why or f': {name}: {error}'
      continue
    other = _differences(spec, again)
    if not other:
      theirs = {'architectures': [name], 'vocab_size': vocab, **written}
      base = architecture.prefix if architecture.fn == _EMBED else ''
      tensors_ = layout.to_tensors(rows, params)
      return theirs, {n.removeprefix(base): x for n, x in tensors_.items()}
    if len(other) < least:
      least, why = len(other), f': {name} would have {", ".join(other)}'
  raise ValueError(
    f'{spec["fn"]}: no class of transformers computes this model{why}'
  )


def _load(source: tensors.Source) -> Imported:
  name = _architecture(source.config)
  architecture = ARCHITECTURES[name]
  fields.refuse_unknown(source.config, ('rope', 'rotary'), architecture.rotary)
  theirs = {_modern(n, architecture, source.shapes): n for n in source.shapes}
  if len(theirs) < len(source.shapes):
    raise ValueError('tensors are there twice, by an old and by a new name')
  ignored = f'{_BUFFERS}|{architecture.ignored}'
  left_out = [n for n in theirs if re.search(ignored, n)]
  names = set(theirs) - set(left_out)
  vocab = fields.count(source.config, 'vocab_size')
  flat = {
    'fn': architecture.fn,
    **architecture.settings(source.config, names),
  }
  _check_sizes(flat, vocab, source)
  spec = trees.grow(flat)
  like = _shapes(spec, vocab)
  rows = layout.rows(architecture.table(trees.flatten(spec)), like)
  want = {row.place.name for row in rows}
  same = {
    n: of for n, of in architecture.duplicates.items() if n in names - want
  }
  shapes = {n: source.shapes[theirs[n]] for n in names - set(same)}
  layout.check(rows, shapes)
  for n, of in same.items():
    if source.shapes[theirs[n]] != shapes[of] or not np.array_equal(
      source.read(theirs[n]), source.read(theirs[of])
    ):
      raise ValueError(f'tensor {n} differs from {of}, which it should repeat')
  params = layout.read_params(rows, lambda n: source.read(theirs[n]))
  left_out = sorted(theirs[n] for n in left_out)
  labels = fields.labels(source.config) if 'classes' in spec else ()
  return Imported(name, spec, vocab, params, left_out, labels)


def _spec(
  architecture: fields.Architecture, theirs: Mapping[str, Any], names: set[str]
) -> dict[str, Any]:
  """Makes the spec of a model from its config.json."""
  settings = architecture.settings(theirs, names)
  return trees.grow({'fn': architecture.fn, **settings})


def _architecture(theirs: Mapping[str, Any]) -> str:
  kind = theirs.get('model_type')
  names = theirs.get('architectures') or [_USUAL.get(str(kind))]
  name = names[0] if isinstance(names, list) and names else None
  if not isinstance(name, str) or name not in ARCHITECTURES:
    raise ValueError(
      f'architecture {name or kind!r:.60} is unknown; '
      f'known are {", ".join(ARCHITECTURES)}'
    )
  # transformers goes by the model_type, and computes another model.
  own = next(k for k, usual in _USUAL.items() if _kin(usual) == _kin(name))
  if kind is not None and kind != own:
    raise ValueError(
      f'config.json: model_type={kind!r:.40} and architectures={name!r} '
      f'disagree: the class belongs to {own!r}'
    )
  return name


def _kin(architecture: str) -> str:
  """Returns the part of a class's name that all classes of a model share."""
  return re.split('For|Model|LMHead', architecture)[0]


def _modern(
  name: str, architecture: fields.Architecture, names: Mapping[str, Any]
) -> str:
  """Returns the name of a tensor in files of today's transformers."""
  name = re.sub(r'LayerNorm\.gamma$', 'LayerNorm.weight', name)
  name = re.sub(r'LayerNorm\.beta$', 'LayerNorm.bias', name)
  base = architecture.prefix
  if base and not any(n.startswith(base) for n in names):
    name = base + name
  return name


def _check_sizes(
  spec: Mapping[str, Any], vocab: int, source: tensors.Source
) -> None:
  """Checks sizes against the tensors: a false one could take all memory."""
  spec = spec.get('body', spec)
  numbers = sum(math.prod(shape) for shape in source.shapes.values())
  sizes = {'vocab_size': vocab} | {
    k: spec[k]
    for k in ('width', 'heads', 'kv_heads', 'head_width', 'mlp', 'token_types')
    if spec.get(k)
  }
  if spec.get('positions', 'learned') == 'learned' and 'length' in spec:
    sizes['length'] = spec['length']
  for key, size in sizes.items():
    if size > numbers:
      raise ValueError(
        f'config.json: {key} is {size:,}, and all tensors together have '
        f'{numbers:,} numbers'
      )
  for key in ('depth', 'decoder_depth'):
    if (spec.get(key) or 0) > len(source.shapes):
      raise ValueError(
        f'config.json: {spec[key]:,} layers, and there are '
        f'{len(source.shapes):,} tensors'
      )


def _shapes(spec: Mapping[str, Any], vocab: int) -> types.Params:
  model = config.build(spec, vocab=vocab)
  batch = objectives.padded([[0]], 0)
  batch = batch._replace(source=batch.tokens, source_segments=batch.segments)
  return tree.shapes(model.parameters(batch))


def _differences(
  ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> list[str]:
  inside = _differences(ours['body'], theirs['body']) if 'body' in ours else []
  # The class of a bare model does not say how its vectors are pooled.
  unsaid = {*trees.OURS, 'body', *(['pool'] if ours['fn'] == _EMBED else [])}
  return [
    f'{k}={theirs.get(k)!r} instead of {v!r}'
    for k, v in ours.items()
    if k not in unsaid and not _same(v, theirs.get(k))
  ] + inside


def _same(a: Any, b: Any) -> bool:
  if isinstance(a, float) and isinstance(b, (int, float)):
    return math.isclose(a, b, rel_tol=1e-6)
  return a == b
