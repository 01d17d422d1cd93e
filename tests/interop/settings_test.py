"""Settings of published models: each is obeyed, or refused by its key."""

import json
import os
from pathlib import Path
import struct
import tracemalloc
from typing import Any

import gguf as gguf_lib
import jax
import numpy as np
import pytest

from lm import config
from lm.data import objectives
from lm.interop import gguf, tensors, transfer
from tests.interop import interop_test
from tools import hf_import

ROOT = Path(__file__).resolve().parents[2]
CASES = (ROOT / os.environ.get('LM_DATA', '../shared/data')).parent / 'cases'


def case(name):
  path = CASES / 'interop' / name
  if not path.exists():
    pytest.skip(f'{path} is not here')
  return path


def logits(found, ids):
  model = config.build(found.model, vocab=found.vocab)
  batch = objectives.padded(ids, 0)
  batch = batch._replace(targets=batch.targets[:, :1])
  return np.asarray(jax.jit(model.apply)(found.params, batch).logits)


def from_gguf(path):
  return transfer.load(gguf.model(gguf.open_file(path)))


@pytest.mark.parametrize(
  ('name', 'words'),
  [
    (
      'llama_type_mistral',
      "model_type='mistral' and architectures='LlamaForCausalLM' disagree",
    ),
    ('bert_cross1', 'a model of one label is a regression'),
  ],
)
def test_a_model_of_another_kind_is_refused(name, words, tmp_path):
  flags = [f'--source={case(name)}', f'--workdir={tmp_path / "run"}']
  with pytest.raises(config.ConfigError, match=words):
    hf_import.main(flags)
  assert not (tmp_path / 'run').exists()


def test_an_adapter_beside_a_model_is_refused(tmp_path):
  folder = interop_test.folder_of('llama', tmp_path)
  (folder / 'adapter_config.json').write_text('{}')
  with pytest.raises(ValueError, match='an adapter beside a model is not read'):
    interop_test.load(folder)


def test_classes_without_names_are_counted(tmp_path):
  source = case('bert_num_labels_only')
  hf_import.main([f'--source={source}', f'--workdir={tmp_path / "run"}'])
  found = transfer.load(tensors.open_folder(source))
  assert found.labels == tuple(f'LABEL_{n}' for n in range(5))
  theirs = np.load(source / 'expect.npy')
  ids = 3 + (7 * np.arange(40) + np.array([[0], [30]])) % 250
  ours = logits(found, ids.tolist())[:, 0]
  np.testing.assert_allclose(ours, theirs, atol=1e-4)
  with pytest.raises(ValueError, match='num_labels=4, and id2label names 3'):
    interop_test.load(
      interop_test.folder_of('bert classes', tmp_path / 'a', num_labels=4)
    )


@pytest.mark.parametrize(
  ('name', 'changes', 'words'),
  [
    ('bert classes', {'num_labels': 10**6}, 'and id2label names 3'),
    (
      'bert classes',
      {'num_labels': 2**21, 'id2label': None},
      'more than 1,048,576 classes must have names',
    ),
    ('qwen3', {'num_hidden_layers': 10**7}, 'layer_types=.* not those of 1000'),
    (
      'qwen3',
      {'num_hidden_layers': 10**7, 'layer_types': ['full_attention']},
      'layer_types=.* not those of 10000000 layers',
    ),
    (
      'gemma3',
      {'hidden_size': 10**400},
      'a whole number from 1 to 9223372036854775807',
    ),
    (
      't5',
      {'d_model': 2**63},
      'must be a whole number from 1 to 9223372036854775807',
    ),
    ('llama', {'rms_norm_eps': 10**400}, 'must be a number above 0'),
  ],
)
def test_a_false_number_takes_no_memory(name, changes, words, tmp_path):
  folder = interop_test.folder_of(name, tmp_path, **changes)
  tracemalloc.start()
  with pytest.raises(ValueError, match=words):
    interop_test.load(folder)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 8 << 20


def test_a_pattern_longer_than_the_model_has_windows_everywhere(tmp_path):
  kinds = ['sliding_attention'] * 4
  changes = (
    {'layer_types': None, 'sliding_window_pattern': 10**7},
    {'layer_types': kinds},
  )
  found = [
    interop_test.load(
      interop_test.folder_of('gemma3', tmp_path / str(n), **change)
    )
    for n, change in enumerate(changes)
  ]
  assert found[0].model == found[1].model
  assert tuple(found[0].model['pattern']) == ('local',)


def test_a_cut_gguf_file_takes_no_memory(tmp_path):
  # One field, a list of 10 million bytes that are not there.
  data = b'GGUF' + struct.pack('<IQQ', 3, 0, 1)
  data += struct.pack('<Q1sIIQ', 1, b'x', 9, 0, 10**7)
  (tmp_path / 'x.gguf').write_bytes(data)
  tracemalloc.start()
  with pytest.raises(ValueError, match=r'not a sound .* it ends early'):
    gguf.open_file(tmp_path / 'x.gguf')
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 8 << 20


def plain(found):
  """The same model, without scaling of its rotary positions."""
  spec = json.loads(json.dumps(found.model))
  spec['blocks']['main']['mixer']['positions']['scaling'] = None
  spec['pattern'] = tuple(spec['pattern'])
  return found._replace(model=spec)


def computed(path, ids, divisors):
  """Computes the logits as llama.cpp does, with numpy alone."""
  w = {
    t.name.removesuffix('.weight'): np.asarray(t.data, np.float64)
    for t in gguf_lib.GGUFReader(path).tensors
  }

  def norm(x, scale):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * w[scale]

  def heads(x, name):
    x = (x @ w[f'blk.0.{name}'].T).reshape(len(ids), -1, 8)
    return x.repeat(4 // x.shape[1], axis=1)

  def rotate(x):
    # Neighbours are a pair.
    angles = (
      np.arange(len(ids))[:, None] * 1e4 ** (-np.arange(4) / 4) / divisors
    )
    z = (x[..., ::2] + 1j * x[..., 1::2]) * np.exp(1j * angles)[:, None]
    return np.stack([z.real, z.imag], -1).reshape(x.shape)

  x = w['token_embd'][ids]
  y = norm(x, 'blk.0.attn_norm')
  q, k = rotate(heads(y, 'attn_q')), rotate(heads(y, 'attn_k'))
  v = heads(y, 'attn_v')
  scores = np.einsum('lnh,snh->nls', q, k) / 8**0.5
  scores = np.exp(np.where(np.tri(len(ids)) > 0, scores, -np.inf))
  scores /= scores.sum(-1, keepdims=True)
  seen = np.einsum('nls,snh->lnh', scores, v).reshape(len(ids), -1)
  x = x + seen @ w['blk.0.attn_output'].T
  y = norm(x, 'blk.0.ffn_norm')
  gate = y @ w['blk.0.ffn_gate'].T
  gate = gate / (1 + np.exp(-gate)) * (y @ w['blk.0.ffn_up'].T)
  x = x + gate @ w['blk.0.ffn_down'].T
  return norm(x, 'output_norm') @ w['output'].T


@pytest.mark.parametrize('name', ['rope_freqs', 'linear', 'oldlin'])
def test_gguf_has_its_frequencies_scaled(name, tmp_path):
  path = case(f'{name}.gguf')
  found = from_gguf(path)
  divisors = np.full(4, 4.0)
  if name == 'rope_freqs':
    tensors_ = {t.name: t for t in gguf.open_file(path).reader.tensors}
    divisors = np.asarray(tensors_['rope_freqs.weight'].data, np.float64)
  ids = [*range(3, 43)]
  ours = logits(found, [ids])
  theirs = computed(path, ids, divisors)
  np.testing.assert_allclose(ours[0], theirs, rtol=1e-4, atol=1e-4)
  # Without it, all would be different.
  assert np.abs(ours - logits(plain(found), [ids])).max() > 1e-2
  hf_import.main([f'--source={path}', f'--workdir={tmp_path / "run"}'])
  # An export keeps them, and is read as the same model.
  theirs, back = transfer.save(found.model, found.vocab, found.params)
  again = interop_test.load(interop_test.put(tmp_path / 'out', back, theirs))
  assert again.model == found.model


def gguf_of(path, **metadata):
  """Writes the model 'llama' with more metadata."""
  add = gguf_lib.GGUFWriter.write_header_to_file

  def with_metadata(self, *args, **kw):
    for key, value in metadata.items():
      write = {
        bool: self.add_bool,
        int: self.add_uint32,
        float: self.add_float32,
        str: self.add_string,
      }[type(value)]
      write(key, value)
    return add(self, *args, **kw)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(gguf_lib.GGUFWriter, 'write_header_to_file', with_metadata)
    interop_test.write_gguf(path)
  return path


YARN = {
  'llama.rope.scaling.type': 'yarn',
  'llama.rope.scaling.factor': 2.0,
  'llama.rope.scaling.original_context_length': 32,
  'llama.rope.scaling.yarn_beta_fast': 4.0,
}


def test_yarn_of_gguf_is_that_of_transformers(tmp_path):
  found = from_gguf(gguf_of(tmp_path / 'x.gguf', **YARN))
  whole = interop_test.load(
    interop_test.folder_of(
      'llama',
      tmp_path / 'in',
      rope_parameters={
        **interop_test.STORED['llama']['config']['rope_parameters'],
        'rope_type': 'yarn',
        'factor': 2.0,
        'beta_fast': 4.0,
        'original_max_position_embeddings': 32,
      },
    )
  )

  def places(found):
    return found.model['blocks']['main']['mixer']['positions']

  assert places(found) == places(whole)


@pytest.mark.parametrize(
  ('metadata', 'words'),
  [
    ({'llama.expert_count': 8}, 'llama.expert_count=8 is not supported'),
    ({'llama.attention.scale': 0.5}, 'llama.attention.scale=0.5 is not'),
    ({'llama.rope.dimension_count': 4}, 'rope.dimension_count=4 is not'),
    ({'llama.attention.causal': False}, 'attention.causal=False is not'),
    (
      {'llama.rope.scaling.type': 'longrope'},
      "rope scaling of type 'longrope' is not supported; only none, linear",
    ),
    ({**YARN, 'llama.rope.scaling.attn_factor': 1.5}, 'attn_factor=1.5 is not'),
    ({'llama.rope.scaling.factor': 'x'}, 'factor is missing or not a number'),
  ],
)
def test_metadata_of_gguf_is_refused_by_its_key(metadata, words, tmp_path):
  path = gguf_of(tmp_path / 'x.gguf', **metadata)
  with pytest.raises(ValueError) as caught:
    from_gguf(path)
  assert words in str(caught.value)


def test_where_gguf_ends_texts_and_its_template_are_read(tmp_path):
  ids = {'bos': 1, 'eos': 2, 'eot': 5, 'eom': 2, 'padding': 0}
  metadata: dict[str, Any] = {
    f'tokenizer.ggml.{k}_token_id': i for k, i in ids.items()
  }
  metadata['tokenizer.chat_template'] = '{{ x }}'
  file = gguf.open_file(gguf_of(tmp_path / 'x.gguf', **metadata))
  assert gguf.model(file).config['eos_token_id'] == [2, 5, 2]
  assert gguf.chat_template(file) == '{{ x }}'
  file = gguf.open_file(
    gguf_of(
      tmp_path / 'y.gguf',
      **{'tokenizer.ggml.model': 'gpt2', 'tokenizer.ggml.escape': True},
    )
  )
  with pytest.raises(ValueError, match=r'tokenizer\.ggml\.escape is not'):
    gguf.tokenizer(file)


def scaled(tmp_path, name='llama', **changes):
  """Reads the base and the scaling of a config with other rotary fields."""
  theirs = dict(interop_test.STORED[name]['config'])
  del theirs['rope_parameters']
  folder = interop_test.put(
    tmp_path, interop_test.numbers(name), {**theirs, **changes}
  )
  places = interop_test.load(folder).model['blocks']['main']['mixer'][
    'positions'
  ]
  kind = (places['scaling'] or {}).get('kind')
  return places['base'], kind, (places['scaling'] or {}).get('length')


LINEAR = {'rope_type': 'linear', 'factor': 4.0}
YARN_THERE = {'rope_type': 'yarn', 'factor': 2.0}


@pytest.mark.parametrize(
  ('changes', 'wanted'),
  [
    ({}, (1e4, None, None)),
    ({'rope_theta': 7.0, 'rope_scaling': LINEAR}, (7.0, 'linear', None)),
    ({'rope_scaling': {**LINEAR, 'rope_theta': 7.0}}, (7.0, 'linear', None)),
    ({'rope_parameters': {**LINEAR, 'rope_theta': 7}}, (7.0, 'linear', None)),
    ({'rope_theta': 7.0, 'rope_parameters': LINEAR}, (7.0, 'linear', None)),
    (
      {'rope_scaling': {'type': 'linear', 'factor': 4}, 'rope_theta': 7},
      (7.0, 'linear', None),
    ),
    ({'rope_scaling': YARN_THERE}, (1e4, 'yarn', 64.0)),
    (
      {'rope_scaling': YARN_THERE, 'original_max_position_embeddings': 16},
      (1e4, 'yarn', 16.0),
    ),
  ],
)
def test_rotary_fields_are_read_wherever_they_stand(changes, wanted, tmp_path):
  assert scaled(tmp_path, **changes) == wanted


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    (
      {'rope_theta': 7.0, 'rope_parameters': {'rope_theta': 8.0}},
      'rope_theta=7.0, and 8.0 in its rotary settings: make them equal',
    ),
    (
      {'rope_scaling': LINEAR, 'rope_parameters': YARN_THERE},
      'rope_scaling and rope_parameters differ: leave one out',
    ),
    ({'rope_parameters': {'full_attention': LINEAR}}, 'full_attention={'),
    ({'rope_scaling': {**LINEAR, 'rope_ratio': 2}}, 'rope_ratio=2 is not'),
    ({'rotary_pct': 0.5}, 'rotary_pct=0.5 is not supported'),
    ({'rope_local_base_freq': 1e4}, 'rope_local_base_freq=10000.0 is not'),
    ({'partial_rotary_factor': 0.5}, 'partial_rotary_factor=0.5 is not'),
    ({'rope_scaling': {**YARN_THERE, 'mscale': 1.0}}, 'mscale=1.0 is not'),
    (
      {'rope_scaling': {**YARN_THERE, 'attention_factor': 2.0}},
      'attention_factor=2.0 is not supported; only 1.06931 is',
    ),
    ({'rope_scaling': {'rope_type': 'dynamic', 'factor': 2}}, "'dynamic' is"),
    (
      {'rope_scaling': {**LINEAR, 'type': 'dynamic'}},
      "rope_type='linear' and type='dynamic' disagree",
    ),
  ],
)
def test_other_rotary_fields_are_refused_by_their_key(changes, words, tmp_path):
  with pytest.raises(ValueError) as caught:
    scaled(tmp_path, **changes)
  assert words in str(caught.value)


def test_other_models_refuse_rotary_fields(tmp_path):
  for name in ('gpt2', 'bert', 't5'):
    folder = interop_test.folder_of(name, tmp_path / name, rope_theta=1e4)
    with pytest.raises(ValueError, match=r'rope_theta=10000\.0 is not'):
      interop_test.load(folder)
  # Windows that Qwen3 names layer by layer, and flat fields of Gemma 3.
  kinds = ['sliding_attention', 'full_attention']
  folder = interop_test.folder_of('qwen3', tmp_path / 'q', layer_types=kinds)
  with pytest.raises(ValueError, match=r'layer_types=.* is not supported'):
    interop_test.load(folder)
  folder = interop_test.folder_of(
    'gemma3', tmp_path / 'g', rope_parameters={'rope_theta': 1e4}
  )
  with pytest.raises(ValueError, match=r'rope_theta=10000\.0 is not supported'):
    interop_test.load(folder)
