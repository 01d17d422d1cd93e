"""Reads Llama-type models from GGUF files, the format of llama.cpp.

The package `gguf` turns quantized tensors into float32.
"""

from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np

from lm.data.tokenizers import tokenizer_json
from lm.interop import tensors

_BLOCK = {
  'attn_norm': 'input_layernorm',
  'attn_q': 'self_attn.q_proj',
  'attn_k': 'self_attn.k_proj',
  'attn_v': 'self_attn.v_proj',
  'attn_output': 'self_attn.o_proj',
  'ffn_norm': 'post_attention_layernorm',
  'ffn_gate': 'mlp.gate_proj',
  'ffn_up': 'mlp.up_proj',
  'ffn_down': 'mlp.down_proj',
}
_REST = {
  'token_embd.weight': 'model.embed_tokens.weight',
  'output_norm.weight': 'model.norm.weight',
  'output.weight': 'lm_head.weight',
}
# Types of tokens: control tokens occur in no text, and tokens that a user has
# added are taken out of a text as they are.
_CONTROL, _USER = 3, 4


class File(NamedTuple):
  """An open file. Its fields have been read, which takes seconds."""

  path: Path
  reader: gguf.GGUFReader


def open_file(path: Path) -> File:
  """Opens a file.

  Raises:
    ValueError: the file is missing or broken; one line.
  """
  try:
    return File(path, gguf.GGUFReader(path))
  except OSError as error:
    raise ValueError(f'{path}: cannot be read ({error.strerror})') from error
  # A broken file may fail anywhere in that package.
  except Exception as error:
    raise ValueError(
      f'{path}: not a sound GGUF file ({type(error).__name__}: {error!s:.60});'
      ' fetch it again'
    ) from error


def model(file: File) -> tensors.Source:
  """Returns the model in the form of a folder of transformers.

  Raises:
    ValueError: the model has another architecture, or a field is broken; one
      line.
  """
  config = _config(file)
  names = {_name(t.name): t for t in file.reader.tensors}
  heads = {
    'q_proj.weight': config['num_attention_heads'],
    'k_proj.weight': config['num_key_value_heads'],
  }

  def read(name: str) -> np.ndarray:
    tensor = names[name]
    try:
      x = gguf.dequantize(tensor.data, tensor.tensor_type)
    except (NotImplementedError, ValueError) as error:
      raise ValueError(
        f'tensor {name}: {tensor.tensor_type.name} is not read ({error})'
      ) from error
    x = np.asarray(x, np.float32).reshape(_shape(tensor))
    for end, count in heads.items():
      if name.endswith(end):
        # llama.cpp rotates pairs of neighbouring dimensions, and lm rotates the
        # first half with the second: the same model in another order.
        x = x.reshape(count, -1, 2, x.shape[-1]).swapaxes(1, 2).reshape(x.shape)
    return x

  config['tie_word_embeddings'] = 'lm_head.weight' not in names
  return tensors.Source(
    where=str(file.path),
    config=config,
    shapes={name: _shape(t) for name, t in names.items()},
    read=read,
    dtype='float32',
  )


def tokenizer(file: File) -> dict[str, Any]:
  """Makes the content of a tokenizer.json from the tokenizer in the file.

  Raises:
    ValueError: the file has no tokenizer of a known kind; one line.
  """

  def listed(key, kind):
    values = _value(file, f'tokenizer.ggml.{key}', list)
    if not all(isinstance(x, kind) for x in values):
      raise ValueError(
        f'{file.path}: tokenizer.ggml.{key} must be a list of {kind.__name__}'
      )
    return values

  kind = _value(file, 'tokenizer.ggml.model', str)
  tokens, kinds = listed('tokens', str), listed('token_type', int)
  if kind == 'gpt2':
    control, user = (
      {i for i, kind in enumerate(kinds[: len(tokens)]) if kind == wanted}
      for wanted in (_CONTROL, _USER)
    )
    return tokenizer_json.byte_level(
      tokens,
      listed('merges', str),
      control,
      _value(file, 'tokenizer.ggml.pre', str, 'default'),
      added=user,
    )
  if kind == 'llama':
    return tokenizer_json.metaspace(
      tokens,
      listed('scores', float),
      kinds,
      prefix=_value(file, 'tokenizer.ggml.add_space_prefix', bool, True),
    )
  raise ValueError(
    f'{file.path}: a tokenizer of kind {kind!r:.40} is not read; gpt2 and llama'
    ' are'
  )


def _value(file, key, kind, default=None):
  field = file.reader.fields.get(key)
  try:
    value = default if field is None else field.contents()
  except Exception as error:
    raise ValueError(f'{file.path}: {key} is broken ({error!s:.60})') from error
  if not isinstance(value, kind):
    raise ValueError(f'{file.path}: {key} is missing or not a {kind.__name__}')
  return value


def _config(file):
  kind = _value(file, 'general.architecture', str)
  if kind != 'llama':
    raise ValueError(
      f'{file.path}: architecture {kind!r:.40} is not read from GGUF; llama is'
    )

  def count(key, default=None):
    return _value(file, f'llama.{key}', int, default)

  heads = count('attention.head_count')
  width = count('embedding_length')
  if _value(file, 'llama.rope.scaling.type', str, 'none') != 'none':
    raise ValueError(f'{file.path}: rope scaling is not supported')
  return {
    'architectures': ['LlamaForCausalLM'],
    'vocab_size': len(_value(file, 'tokenizer.ggml.tokens', list)),
    'max_position_embeddings': count('context_length'),
    'hidden_size': width,
    'num_hidden_layers': count('block_count'),
    'num_attention_heads': heads,
    'num_key_value_heads': count('attention.head_count_kv', heads),
    'head_dim': count('rope.dimension_count', width // heads if heads else 0),
    'intermediate_size': count('feed_forward_length'),
    'rms_norm_eps': _value(
      file, 'llama.attention.layer_norm_rms_epsilon', float
    ),
    'rope_theta': _value(file, 'llama.rope.freq_base', float, 1e4),
    **{
      f'{name}_token_id': _value(
        file, f'tokenizer.ggml.{key}_token_id', int, -1
      )
      for name, key in (('bos', 'bos'), ('eos', 'eos'), ('pad', 'padding'))
    },
  }


def _name(name: str) -> str:
  if name in _REST:
    return _REST[name]
  head, _, rest = name.partition('.')
  number, _, rest = rest.partition('.')
  part = rest.removesuffix('.weight')
  if head == 'blk' and part in _BLOCK and rest.endswith('.weight'):
    return f'model.layers.{number}.{_BLOCK[part]}.weight'
  return name  # unknown: `layout.check` reports it


def _shape(tensor: gguf.ReaderTensor) -> tuple[int, ...]:
  return tuple(int(n) for n in reversed(tensor.shape))
