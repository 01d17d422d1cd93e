"""Rotary positions in a config.json of Hugging Face transformers.

transformers 4 has `rope_theta` beside `rope_scaling`, and 5 has all of it in
`rope_parameters`, which has a part for each kind of layer in Gemma 3. Each is
read wherever it stands, and what stands in two places must be the same.
"""

from collections.abc import Mapping
import math
from typing import Any

from lm.interop import fields

FULL, SLIDING = 'full_attention', 'sliding_attention'
# The keys of a config.json that are read here; the last one is Gemma 3's.
KEYS = (
  'rope_theta',
  'rope_scaling',
  'rope_parameters',
  'partial_rotary_factor',
  'rope_local_base_freq',
)
# The settings of scaling, by its kind, with their names in config.json.
_SCALINGS = {
  'linear': {},
  'llama3': {
    'length': 'original_max_position_embeddings',
    'low': 'low_freq_factor',
    'high': 'high_freq_factor',
  },
  'yarn': {
    'length': 'original_max_position_embeddings',
    'low': 'beta_slow',
    'high': 'beta_fast',
  },
}
_COMMON = ('rope_type', 'type', 'rope_theta', 'partial_rotary_factor', 'factor')
_LENGTH = 'original_max_position_embeddings'
_FIXED = ('short_factor', 'long_factor', 'attention_factor', _LENGTH)
# Settings of kinds that have no other ones of these names.
_USUAL = {'yarn': {'low': 1.0, 'high': 32.0}}


def read(
  config: fields.Config, kind: str | None = None
) -> tuple[float, dict[str, Any] | None]:
  """Reads base and scaling of the frequencies.

  Args:
    config: the content of config.json.
    kind: of the layers, `FULL` or `SLIDING`, in a model that has both.

  Raises:
    ValueError: a setting is unknown, is not supported or stands in two places
      that differ; one line.
  """
  tree = _tree(config, kind)
  local = kind == SLIDING
  old = 'rope_local_base_freq' if local else 'rope_theta'
  usual = 1e4 if local or kind is None else 1e6
  for key, place in (('rope_theta', old), (_LENGTH, _LENGTH)):
    if config.get(place) is not None and not (key == _LENGTH and local):
      if tree.get(key, config[place]) != config[place]:
        raise ValueError(
          f'config.json: {place}={config[place]!r:.40}, and {tree[key]!r:.40} '
          'in its rotary settings: make them equal'
        )
      tree[key] = config[place]
  for part in (config, tree):
    if part.get('partial_rotary_factor') is not None:
      fields.require(part, partial_rotary_factor=1.0)
  base = fields.number(tree, 'rope_theta', usual)
  name = tree.get('rope_type', tree.get('type'))
  if tree.get('type', name) != name:
    raise ValueError(
      f'config.json: rope_type={name!r:.40} and type={tree["type"]!r:.40} '
      'disagree'
    )
  return base, _scaling(config, tree, 'default' if name is None else name)


def written(spec: Mapping[str, Any]) -> dict[str, Any]:
  """Writes base and scaling as transformers 4, which version 5 reads too."""
  ours = spec['rope_scaling']
  content = {'rope_theta': spec['rope_base']}
  if ours is None:
    return content
  theirs = {'rope_type': ours['kind'], 'factor': ours['factor']}
  if ours['kind'] == 'factors':
    # The frequencies are the same for short and long texts.
    factors = [ours['factor'] * x for x in ours['factors']]
    theirs = {
      'rope_type': 'longrope',
      'factor': 1.0,
      'short_factor': factors,
      'long_factor': factors,
      'attention_factor': 1.0,
      _LENGTH: spec['length'],
    }
  elif ours['kind'] not in _SCALINGS:
    # It has no name there, and is left out. `transfer.save` finds that out when
    # it reads the config again.
    return content
  for key, there in _SCALINGS.get(ours['kind'], {}).items():
    # transformers wants a whole number of positions.
    theirs[there] = round(ours[key]) if key == 'length' else ours[key]
  return {**content, 'rope_scaling': theirs}


def _tree(config: fields.Config, kind: str | None) -> dict[str, Any]:
  """Finds the settings of one kind of layers, without null ones.

  Raises:
    ValueError: they are no object, or there are two that differ.
  """
  scaling, both = config.get('rope_scaling'), config.get('rope_parameters')
  for key, tree in (('rope_scaling', scaling), ('rope_parameters', both)):
    if not isinstance(tree, dict | None):
      raise ValueError(f'config.json: {key} must be an object')
  scaling, both = scaling or {}, both or {}
  if kind is not None and both:
    fields.refuse_unknown(both, ('',), (FULL, SLIDING))
    both = both.get(kind) or {}
    if not isinstance(both, dict):
      raise ValueError(f'config.json: rope_parameters.{kind} must be an object')
  # A scaling beside it is of the layers that see whole texts.
  scaling = {} if kind == SLIDING else scaling
  if scaling and any(both.get(k, v) != v for k, v in scaling.items()):
    raise ValueError(
      'config.json: rope_scaling and rope_parameters differ: leave one out'
    )
  return {k: v for k, v in {**both, **scaling}.items() if v is not None}


def _scaling(
  config: fields.Config, tree: dict[str, Any], name: Any
) -> dict[str, Any] | None:
  """Reads the scaling of a kind.

  Raises:
    ValueError: the kind or a setting is not supported.
  """
  known = {*_COMMON, _LENGTH, *_SCALINGS.get(str(name), {}).values()}
  if name == 'yarn':
    known |= {'attention_factor', 'truncate'}
  short = tree.get('short_factor')
  if name == 'longrope' and short and short == tree.get('long_factor'):
    fields.refuse_unknown(tree, ('',), {*_COMMON, *_FIXED})
    return _fixed(tree)
  if name != 'default' and name not in tuple(_SCALINGS):
    raise ValueError(
      f'config.json: rope of type {name!r:.40} is not supported; only default, '
      f'{", ".join(_SCALINGS)} are'
    )
  fields.refuse_unknown(tree, ('',), known)
  if name == 'default':
    fields.require(tree, factor=1.0)
    return None
  usual = _USUAL.get(name, {})
  usual = {**usual, 'length': config.get('max_position_embeddings')}
  ours = {'factor': fields.number(tree, 'factor'), 'kind': name}
  for key, there in _SCALINGS[name].items():
    ours[key] = fields.number(tree, there, usual.get(key))
  if name == 'yarn':
    fields.require(tree, truncate=True)
    gain = 1 + 0.1 * math.log(max(ours['factor'], 1))
    stated = fields.number(tree, 'attention_factor', gain)
    if not math.isclose(stated, gain, rel_tol=1e-6):
      raise ValueError(
        f'config.json: attention_factor={stated} is not supported; only '
        f'{gain:.6g} is, of this factor'
      )
  return ours


def _fixed(tree: dict[str, Any]) -> dict[str, Any]:
  """Reads factors that are the same for texts of every length.

  Raises:
    ValueError: they are no numbers, or attention is scaled too.
  """
  factors = tree.get('short_factor')
  if not isinstance(factors, list) or not all(
    type(x) in (int, float) and 0 < x < math.inf for x in factors
  ):
    raise ValueError(
      'config.json: short_factor and long_factor must be lists of numbers '
      'above 0'
    )
  if tree.get('attention_factor') != 1:
    raise ValueError(
      'config.json: longrope without attention_factor=1 is not supported'
    )
  return {
    'factor': 1.0,
    'kind': 'factors',
    'factors': tuple(float(x) for x in factors),
  }
