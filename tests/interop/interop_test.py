import base64
import copy
import json
from pathlib import Path
import struct
import subprocess
import tracemalloc

import gguf as gguf_lib
import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from configs import base
from lm import config, tree
from lm.data import objectives
from lm.data.tokenizers import huggingface
from lm.interop import gguf, tensors, transfer
from tests import interop_peer
from tests.laws import laws_test

STORED = json.loads(
  (Path(__file__).parents[1] / 'golden/interop.json').read_text()
)
# transformers writes and reads these in another way than we do.
POOLER = {'pooler.dense.weight', 'pooler.dense.bias'}


def numbers(name):
  """All tensors of a model."""
  return {
    key: interop_peer.tensor(key, tuple(shape))
    for key, shape in STORED[name]['shapes'].items()
  }


def put(folder, found, theirs, **changes):
  """Writes a folder as transformers would."""
  folder.mkdir(parents=True, exist_ok=True)
  safetensors.numpy.save_file(found, folder / 'model.safetensors')
  (folder / 'config.json').write_text(json.dumps({**theirs, **changes}))
  return folder


def folder_of(name, where, **changes):
  return put(where, numbers(name), STORED[name]['config'], **changes)


def load(folder):
  return transfer.load(tensors.open_folder(folder))


def answer(name, found):
  """Returns our outputs for the peer's inputs."""
  asked = {k: v.tolist() for k, v in interop_peer.inputs(name).items()}
  batch = objectives.padded(
    asked.get('decoder_input_ids', asked['input_ids']), 0
  )
  if 'decoder_input_ids' in asked:
    source = objectives.padded(asked['input_ids'], 0)
    batch = batch._replace(
      source=source.tokens, source_segments=source.segments
    )
  if 'token_type_ids' in asked:
    batch = batch._replace(
      token_types=np.array(asked['token_type_ids'], np.int32)
    )
  batch = batch._replace(targets=batch.targets[:, :1])  # one text a row
  model = config.build(found.model, vocab=found.vocab)
  out = jax.jit(model.apply)(found.params, batch)
  return np.asarray(out.hidden if name == 'bert bare' else out.logits)


def expected(name, theirs=None):
  """Returns the outputs of the peer that ours has too."""
  if theirs is None:
    stored = STORED[name]['answer']
    theirs = np.frombuffer(base64.b64decode(stored['float32']), '<f4')
    theirs = theirs.reshape(stored['shape'])
  if name.endswith('classes'):
    return theirs[:, None]
  if name == 'bert bare':  # ours gives the mean of the vectors, of length 1
    theirs = theirs.mean(1, keepdims=True)
    return theirs / np.linalg.norm(theirs, axis=-1, keepdims=True)
  return theirs


def compare(name, ours, theirs):
  if name == 'bert pretraining':  # position 0 says if a sentence follows
    ours, theirs = ours[:, 1:], theirs[:, 1:]
  np.testing.assert_allclose(ours, theirs, atol=1e-4)
  assert np.abs(theirs).max() > 0.1


@pytest.mark.parametrize('name', STORED)
def test_logits_are_those_of_transformers_and_export_gives_the_same_bytes(
  name, tmp_path
):
  folder = folder_of(name, tmp_path / 'in')
  found = load(folder)
  compare(name, answer(name, found), expected(name))
  theirs, back = transfer.save(found.model, found.vocab, found.params)
  assert theirs['architectures'] == STORED[name]['config']['architectures']
  before = numbers(name)
  assert back.keys() | set(found.left_out) == before.keys()
  for key, x in back.items():
    np.testing.assert_array_equal(x, before[key], err_msg=key, strict=True)
  # What was written is read as the same model.
  again = load(put(tmp_path / 'out', back, theirs))
  assert again.model == found.model
  assert not tree.diff(again.params, found.params)


def test_classes_keep_their_names(tmp_path):
  found = load(folder_of('bert tags', tmp_path / 'named'))
  assert found.labels == ('no', 'yes', 'maybe') and found.model['classes'] == 3
  assert load(folder_of('bert answers', tmp_path / 'none')).labels == ()
  several = {'problem_type': 'multi_label_classification'}
  gap = {'id2label': {'0': 'a', '2': 'b'}}
  for n, (changes, message) in enumerate(
    [(several, 'problem_type='), (gap, 'must name classes 0, 1, ...')]
  ):
    with pytest.raises(ValueError, match=message):
      load(folder_of('bert classes', tmp_path / str(n), **changes))


def test_bare_bert_leaves_out_its_pooler_and_says_so(tmp_path):
  assert set(load(folder_of('bert bare', tmp_path)).left_out) == POOLER


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_narrow_tensors_go_out_as_they_came_in(dtype, tmp_path):
  kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
  before = {k: x.astype(kind) for k, x in numbers('llama').items()}
  folder = put(tmp_path / 'in', before, STORED['llama']['config'])
  source = tensors.open_folder(folder)
  assert source.dtype == dtype
  found = transfer.load(source)
  assert {x.dtype for _, x in tree.paths(found.params)} == {np.dtype('f4')}
  _, back = transfer.save(found.model, found.vocab, found.params)
  tensors.save(back, tmp_path, source.dtype)
  after = safetensors.numpy.load_file(tmp_path / 'model.safetensors')
  assert after.keys() == before.keys()
  for key, x in after.items():
    assert x.dtype == kind and x.tobytes() == before[key].tobytes()


def test_a_model_in_several_files_is_the_same(tmp_path):
  whole = load(folder_of('qwen3', tmp_path / 'whole'))
  found = numbers('qwen3')
  names = {key: f'part-{n % 3}.safetensors' for n, key in enumerate(found)}
  folder = tmp_path / 'parts'
  folder.mkdir()
  for file in set(names.values()):
    part = {k: x for k, x in found.items() if names[k] == file}
    safetensors.numpy.save_file(part, folder / file)
  (folder / tensors.INDEX).write_text(json.dumps({'weight_map': names}))
  (folder / 'config.json').write_text(json.dumps(STORED['qwen3']['config']))
  parts = load(folder)
  jax.tree.map(np.testing.assert_array_equal, whole.params, parts.params)


@pytest.mark.parametrize('name', ['gemma3', 't5'])
def test_stacked_blocks_are_exported_like_others(name, tmp_path):
  found = load(folder_of(name, tmp_path))
  stacked = laws_test.stacked_as(found.model, found.params)
  scan = {**found.model, 'scan': True}
  ours = found._replace(model=scan, params=stacked)
  if name == 'gemma3':
    compare(name, answer(name, ours), expected(name))
  _, plain = transfer.save(found.model, found.vocab, found.params)
  _, back = transfer.save(scan, found.vocab, stacked)
  jax.tree.map(np.testing.assert_array_equal, plain, back)


def test_files_of_older_versions_are_read(tmp_path):
  new = load(folder_of('bert', tmp_path / 'new'))
  old = {}
  for key, x in numbers('bert').items():
    key = key.replace('LayerNorm.weight', 'LayerNorm.gamma')
    old[key.replace('LayerNorm.bias', 'LayerNorm.beta')] = x
  table = old['bert.embeddings.word_embeddings.weight']
  old |= {
    'bert.embeddings.position_ids': np.arange(32, dtype=np.float32),
    'cls.predictions.decoder.weight': table.copy(),
    'cls.seq_relationship.weight': np.zeros((2, 32), np.float32),
  }
  found = load(put(tmp_path / 'old', old, STORED['bert']['config']))
  jax.tree.map(np.testing.assert_array_equal, new.params, found.params)
  assert len(found.left_out) == 2
  # GPT-2 as first published: no prefix, and the mask as a tensor.
  new = load(folder_of('gpt2', tmp_path / 'gpt2'))
  old = {
    key.removeprefix('transformer.'): x for key, x in numbers('gpt2').items()
  }
  old['h.0.attn.bias'] = np.ones((1, 1, 32, 32), np.float32)
  found = load(put(tmp_path / 'gpt2 old', old, STORED['gpt2']['config']))
  jax.tree.map(np.testing.assert_array_equal, new.params, found.params)
  # Rotary frequencies where version 4 had them.
  theirs = dict(STORED['gemma3']['config'])
  del theirs['rope_parameters'], theirs['layer_types']
  theirs |= {
    'rope_theta': 3e5,
    'rope_local_base_freq': 2e3,
    'sliding_window_pattern': 2,
  }
  found = load(put(tmp_path / 'gemma3', numbers('gemma3'), theirs))
  blocks = found.model['blocks']
  places = {k: block['mixer']['positions'] for k, block in blocks.items()}
  assert places['main']['base'] == 3e5 and places['main']['scaling'] is None
  assert places['local']['base'] == 2e3
  assert found.model['pattern'] == ('local', 'main')


@pytest.mark.slow
@pytest.mark.process
def test_transformers_opens_what_is_exported(peer, tmp_path):
  ours, folders = {}, []
  for name in STORED:
    found = load(folder_of(name, tmp_path / 'in' / name))
    ours[name] = answer(name, found)
    theirs, back = transfer.save(found.model, found.vocab, found.params)
    folder = tmp_path / 'out' / name.replace(' ', '_')
    put(folder, back, theirs, pad_token_id=0)  # as tools.export tells it
    tensors.save(back, folder, 'float32')
    folders.append(folder)
  call(peer, 'open', *folders)
  for name, folder in zip(STORED, folders, strict=True):
    compare(name, ours[name], expected(name, np.load(folder / 'peer.npy')))


@pytest.mark.process
def test_references_are_what_transformers_says_today(peer, tmp_path):
  call(peer, 'write', tmp_path / 'now.json')
  now = json.loads((tmp_path / 'now.json').read_text())
  assert now.keys() == STORED.keys()
  for name, known in STORED.items():
    assert now[name]['shapes'] == known['shapes']
    there = now[name]['answer']['float32']
    x = np.frombuffer(base64.b64decode(there), '<f4').reshape(
      known['answer']['shape']
    )
    compare(name, expected(name, x), expected(name))


def call(peer, *arguments):
  done = subprocess.run(
    [peer, interop_peer.__file__, *map(str, arguments)],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_a_model_that_no_class_computes_is_one_line(tmp_path):
  found = load(folder_of('llama', tmp_path))
  changed = copy.deepcopy(found.model)
  changed['blocks']['main']['mlp']['activation'] = 'relu2'
  changed['embed']['scale'] = 2.0
  with pytest.raises(ValueError) as caught:
    transfer.save(changed, found.vocab, found.params)
  assert str(caught.value) == (
    'lm.models.decoder:make: no class of transformers computes this model: '
    'LlamaForCausalLM would have embed_scale=1.0 instead of 2.0, '
    "activation='swiglu' instead of 'relu2'"
  )

  changed = copy.deepcopy(found.model)
  rotary = changed['blocks']['main']['mixer']['positions']
  rotary['scaling'] = {'factor': 2.0, 'kind': 'ntk'}
  with pytest.raises(ValueError, match='would have rope_scaling=None instead'):
    transfer.save(changed, found.vocab, found.params)

  rotary |= {'scaling': None, 'fraction': 0.5}
  with pytest.raises(
    ValueError, match=r'positions\.fraction=0\.5 has no counterpart in'
  ):
    transfer.save(changed, found.vocab, found.params)

  spec = base.encoder(2, 'pre', length=4, width=8, depth=1)
  params = config.build(spec, vocab=8).init(0, objectives.padded([[1]], 0))
  with pytest.raises(ValueError) as caught:
    transfer.save(spec, 8, params)
  assert str(caught.value).endswith(
    ': BertForMaskedLM: transformers has no tensor for final_norm/bias'
  )


def broken(changes, name='llama'):
  """Writes a model whose tensors were changed; None takes one away."""

  def write(folder):
    found = {
      k: v for k, v in {**numbers(name), **changes}.items() if v is not None
    }
    put(folder, found, STORED[name]['config'])

  return write


def told(**changes):
  return lambda folder: folder_of('llama', folder, **changes)


def header(text, size=None, data=b'\0' * 64):
  """Writes a safetensors file with a header of our own."""

  def write(folder):
    folder_of('llama', folder)
    body = text.encode()
    length = len(body) if size is None else size
    (folder / 'model.safetensors').write_bytes(
      struct.pack('<Q', length) + body + data
    )

  return write


def rows(*offsets):
  return json.dumps(
    {
      f't{n}': {'dtype': 'F32', 'shape': [4], 'data_offsets': list(pair)}
      for n, pair in enumerate(offsets)
    }
  )


ZEROS = np.zeros((3, 3), np.float32)
HOSTILE = {
  'wrong shape': (
    broken({'model.norm.weight': ZEROS}),
    'tensor model.norm.weight is [3, 3], where the config says [32]',
  ),
  'missing': (
    broken({'model.norm.weight': None, 'lm_head.weight': None}),
    'tensor model.norm.weight is missing (and 1 more)',
  ),
  'extra': (
    broken({'model.layers.7.mlp.up_proj.weight': ZEROS}),
    'tensor model.layers.7.mlp.up_proj.weight is not expected',
  ),
  'not tied': (
    broken({'lm_head.weight': np.ones((64, 32), np.float32)}, 'llama tied'),
    'tensor lm_head.weight differs from model.embed_tokens.weight',
  ),
  'unknown class': (
    told(architectures=['MambaForCausalLM']),
    "architecture 'MambaForCausalLM' is unknown; known are GPT2LMHeadModel",
  ),
  'no class': (told(architectures=None, model_type=7), 'is unknown; known are'),
  'wide': (
    told(hidden_size=10**12),
    'width is 1,000,000,000,000, and all tensors together have 22,688 numbers',
  ),
  'deep': (told(num_hidden_layers=10**9), '1,000,000,000 layers, and there'),
  'words': (told(vocab_size=10**11), 'vocab_size is 100,000,000,000, and all'),
  'text': (told(hidden_size='32'), "hidden_size='32': must be a whole number"),
  'nan': (
    told(rms_norm_eps=float('nan')),
    'rms_norm_eps=nan: must be a number above',
  ),
  'heads': (told(num_key_value_heads=3), 'is not a multiple of kv_heads=3'),
  'scaling': (
    told(rope_parameters={'rope_type': 'longrope', 'rope_theta': 1.0}),
    "rope of type 'longrope' is not supported; only default, linear, llama3, "
    'yarn are',
  ),
  'bias': (told(attention_bias=True), 'attention_bias=True is not supported'),
  'overlap': (header(rows((0, 16), (8, 24))), 'not a sound safetensors file'),
  'hole': (header(rows((0, 16), (32, 48))), 'not a sound safetensors file'),
  'beyond': (header(rows((0, 1 << 40))), 'not a sound safetensors file'),
  'long header': (header('{}', 1 << 62), 'not a sound safetensors file'),
  'nested': (header('[' * 10**6), 'not a sound safetensors file'),
  'twice': (
    broken(
      {'bert.embeddings.LayerNorm.gamma': np.ones(32, np.float32)}, 'bert'
    ),
    'tensors are there twice, by an old and by a new name',
  ),
  'integers': (
    broken({'model.norm.weight': np.ones(32, np.int32)}),
    'tensor model.norm.weight is I32; only F32, F16, BF16 are read',
  ),
}


@pytest.mark.parametrize('case', HOSTILE)
def test_a_file_that_is_not_as_it_should_be_is_one_line(case, tmp_path):
  write, words = HOSTILE[case]
  write(tmp_path / 'in')
  tracemalloc.start()
  try:
    with pytest.raises(ValueError) as caught:
      load(tmp_path / 'in')
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  line = str(caught.value)
  assert words in line and '\n' not in line
  assert line.startswith(str(tmp_path / 'in'))
  assert peak < 8 << 20  # what jax needs to find shapes, whatever they are


def test_a_folder_that_is_no_model_is_one_line(tmp_path):
  def line():
    with pytest.raises(ValueError) as caught:
      load(tmp_path)
    return str(caught.value).replace(str(tmp_path), 'X')

  assert line() == 'X/config.json: cannot be read (No such file or directory)'
  (tmp_path / 'config.json').write_text('[' * 10**5)
  assert line().startswith('X/config.json: not a JSON object (')
  (tmp_path / 'config.json').write_text('{}')
  (tmp_path / 'pytorch_model.bin').write_bytes(b'')
  assert line() == (
    'X: holds no model.safetensors; files of pickled tensors (*.bin) are not '
    'read: save the model with safetensors first'
  )
  for names in (['a'], {'a': '../x.safetensors'}, {'a': '/x'}, {'a': 3}):
    (tmp_path / tensors.INDEX).write_text(json.dumps({'weight_map': names}))
    assert line() == (
      f'X/{tensors.INDEX}: weight_map must name files of this folder'
    )


@pytest.mark.slow
def test_changed_bytes_of_a_header_never_end_in_another_error(tmp_path):
  folder = folder_of('llama', tmp_path)
  file = folder / 'model.safetensors'
  whole = file.read_bytes()
  size = 8 + struct.unpack('<Q', whole[:8])[0]
  generator = np.random.default_rng(0)
  refused = 0
  for _ in range(300):
    changed = bytearray(whole)
    for place in generator.integers(0, size, generator.integers(1, 4)):
      changed[place] = generator.integers(256)
    file.write_bytes(changed)
    try:
      load(folder)
    except ValueError as error:
      refused += 1
      assert str(error).startswith(str(folder)) and '\n' not in str(error)
  assert refused > 250


def write_gguf(path, kind=gguf_lib.GGMLQuantizationType.F32, **changes):
  """Writes the model 'llama' as llama.cpp has it."""
  theirs = STORED['llama']['config']
  writer = gguf_lib.GGUFWriter(path, changes.pop('architecture', 'llama'))
  writer.add_block_count(theirs['num_hidden_layers'])
  writer.add_context_length(theirs['max_position_embeddings'])
  writer.add_embedding_length(theirs['hidden_size'])
  writer.add_feed_forward_length(theirs['intermediate_size'])
  writer.add_head_count(theirs['num_attention_heads'])
  writer.add_head_count_kv(theirs['num_key_value_heads'])
  writer.add_rope_freq_base(theirs['rope_parameters']['rope_theta'])
  writer.add_layer_norm_rms_eps(theirs['rms_norm_eps'])
  writer.add_token_list([f't{n}' for n in range(64)])
  names = {v: k for k, v in gguf._REST.items()}
  for key, x in numbers('llama').items():
    name = names.get(key)
    if name is None:
      _, _, block, rest = key.split('.', 3)
      part = {v: k for k, v in gguf._BLOCK.items()}[
        rest.removesuffix('.weight')
      ]
      name = f'blk.{block}.{part}.weight'
      if part in ('attn_q', 'attn_k'):  # the order of llama.cpp's rotation
        heads = 4 if part == 'attn_q' else 2
        x = x.reshape(heads, 2, -1, 32).swapaxes(1, 2).reshape(x.shape)
    if x.ndim > 1 and kind != gguf_lib.GGMLQuantizationType.F32:
      writer.add_tensor(name, gguf_lib.quantize(x, kind), raw_dtype=kind)
    else:
      writer.add_tensor(name, x)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


def test_gguf_is_the_same_model(tmp_path):
  whole = load(folder_of('llama', tmp_path / 'folder'))
  write_gguf(tmp_path / 'x.gguf')
  found = transfer.load(gguf.model(gguf.open_file(tmp_path / 'x.gguf')))
  assert found.vocab == 64
  jax.tree.map(np.testing.assert_array_equal, whole.params, found.params)
  assert found.model['norm']['epsilon'] == pytest.approx(1e-6)
  same = copy.deepcopy(found.model)
  for part in (same, same['blocks']['main']):
    part['norm']['epsilon'] = whole.model['norm']['epsilon']
  assert same == whole.model


def test_quantized_gguf_is_near(tmp_path):
  whole = load(folder_of('llama', tmp_path / 'folder'))
  path = tmp_path / 'x.gguf'
  write_gguf(path, gguf_lib.GGMLQuantizationType.Q8_0)
  found = transfer.load(gguf.model(gguf.open_file(path)))
  for (name, x), (_, y) in zip(
    tree.paths(whole.params), tree.paths(found.params), strict=True
  ):
    np.testing.assert_allclose(x, y, atol=0.3 / 127, err_msg=name)


def test_a_broken_gguf_is_one_line(tmp_path):
  path = tmp_path / 'x.gguf'

  def line():
    with pytest.raises(ValueError) as caught:
      transfer.load(gguf.model(gguf.open_file(path)))
    assert '\n' not in str(caught.value)
    return str(caught.value).replace(str(tmp_path), 'X')

  assert line() == 'X/x.gguf: cannot be read (No such file or directory)'
  write_gguf(path, architecture='mamba')
  assert line().startswith("X/x.gguf: architecture 'mamba' is not read from")
  write_gguf(path)
  whole = path.read_bytes()
  for size in (0, 3, 30, 1000, len(whole) // 2):
    path.write_bytes(whole[:size])
    assert line().startswith('X/x.gguf: not a sound GGUF file (')
  generator = np.random.default_rng(0)
  for _ in range(100):
    changed = bytearray(whole)
    changed[generator.integers(4, 2000)] = generator.integers(256)
    path.write_bytes(changed)
    try:
      transfer.load(gguf.model(gguf.open_file(path)))
    except ValueError as error:
      assert '\n' not in str(error)


def write_words(path, kind, tokens, types, **lists):
  writer = gguf_lib.GGUFWriter(path, 'llama')
  writer.add_tokenizer_model(kind)
  writer.add_token_list(tokens)
  writer.add_token_types(types)
  if 'merges' in lists:
    writer.add_token_merges(lists['merges'])
  if 'scores' in lists:
    writer.add_token_scores(lists['scores'])
  if 'prefix' in lists:
    writer.add_add_space_prefix(lists['prefix'])
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.close()


def test_tokenizers_of_gguf(tmp_path):
  path, file = tmp_path / 'x.gguf', tmp_path / 'tokenizer.json'

  def words(eos):
    file.write_text(
      json.dumps(gguf.tokenizer(gguf.open_file(path))), encoding='utf-8'
    )
    return huggingface.make(str(file), eos=eos)

  marks = [
    n
    for n in range(256)
    if n > 32 and n not in (127, 173) and (n < 127 or n > 160)
  ]
  letters = [chr(n) for n in marks]
  letters += [chr(256 + n) for n in range(256 - len(marks))]
  tokens = ['<|endoftext|>', *letters, 'ab', '<|user|>']
  kinds = [3, *[1] * 257, 4]
  write_words(path, 'gpt2', tokens, kinds, merges=['a b'])
  found = words(eos=0)
  at = {token: i for i, token in enumerate(tokens)}
  text = 'cab<|user|><|endoftext|>\u4f60'
  ids = found.encode(text)
  assert ids[:3] == [at['c'], at['ab'], at['<|user|>']]
  assert found.decode(ids) == text and 0 not in ids

  bytes_ = [f'<0x{n:02X}>' for n in range(256)]
  tokens = ['<unk>', '<s>', '</s>', *bytes_, 'a', 'b', '\u2581', '\u2581a']
  kinds = [2, 3, 3, *[6] * 256, *[1] * 4]
  scores = [0.0] * 262 + [-1.0]
  for prefix, first in ((True, 262), (False, 259)):
    write_words(path, 'llama', tokens, kinds, scores=scores, prefix=prefix)
    found = words(eos=2)
    assert found.encode('ab\n') == [first, 260, 3 + 10]
    assert found.decode(found.encode('ab a\n')) == 'ab a\n'

  def line(*settings, **lists):
    write_words(path, *settings, **lists)
    with pytest.raises(ValueError) as caught:
      gguf.tokenizer(gguf.open_file(path))
    return str(caught.value).replace(str(tmp_path), 'X')

  assert line('bert', tokens, kinds) == (
    "X/x.gguf: a tokenizer of kind 'bert' is not read; gpt2 and llama are"
  )
  assert line('llama', tokens, kinds) == (
    'X/x.gguf: tokenizer.ggml.scores is missing or not a list'
  )
  assert line('llama', tokens, kinds, scores=[1.0]).endswith(
    '263 tokens, 1 scores and 263 types: must be equally many; take them from '
    'the same file'
  )
