"""Tokenizers of others: each setting beside their files, and what they keep."""

import json
import os
from pathlib import Path
import shutil

import pytest

from lm import checkpoint, config, sample
from lm.data.tokenizers import auto, huggingface
from lm.interop import importer, tokenizer_settings, vocabulary
from tests.interop import interop_test
from tools import export, hf_import

ROOT = Path(__file__).resolve().parents[2]
CASES = (ROOT / os.environ.get('LM_DATA', '../shared/data')).parent / 'cases'
PIECES = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'cat', 'sat', 'the']
PIECES += [f'##{c}' for c in 'abcdefghijklmnopqrstuvwxyz']
PIECES += list('abcdefghijklmnopqrstuvwxyz.')  # 61 of 64 ids
# Text that transformers reads as special tokens, and we as what it spells.
SPECIAL = ('<mask> [MASK]', '<s>hi</s>')


def case(name):
  folder = CASES / 'interop' / name
  if not folder.is_dir():
    pytest.skip(f'{folder} is not here')
  return folder


def imported(source, workdir):
  hf_import.main([f'--source={source}', f'--workdir={workdir}'])
  return checkpoint.restore_run(workdir).tokenizer


@pytest.mark.parametrize(
  'name',
  ['wp_keep_accents', 'wp_nochinese', 'wp_added', 'bl_added', 'bl_prefix'],
)
def test_settings_beside_the_files_are_obeyed(name, tmp_path):
  words = imported(case(name), tmp_path / 'run')
  peer = json.loads((case(name) / 'peer.json').read_text())
  for text, ids in zip(peer['texts'], peer['ids'], strict=True):
    if text not in SPECIAL:
      assert words.encode(text) == ids, text


def folder_of(where, pieces=PIECES, model='bert', **files):
  """Writes a tiny model with a vocab.txt and JSON files beside it."""
  interop_test.folder_of(model, where)
  (where / 'vocab.txt').write_text('\n'.join(pieces) + '\n')
  for name, content in files.items():
    (where / f'{name}.json').write_text(json.dumps(content))
  return where


def read(folder):
  """Reads the tokenizer of a folder, and builds it."""
  settings = json.loads((folder / 'config.json').read_text())
  tree = vocabulary.read(folder, settings)
  return huggingface.from_bytes(str(folder), json.dumps(tree).encode())


def test_unknown_words_and_ends_may_have_other_names(tmp_path):
  pieces = ['<pad>', '<u>', '<c>', '<e>', *PIECES[4:]]
  roles = {'unk_token': '<u>', 'cls_token': {'content': '<c>'}}
  folder = folder_of(
    tmp_path,
    pieces,
    special_tokens_map={**roles, 'sep_token': '<e>', 'pad_token': '<pad>'},
  )
  words = read(folder)
  assert (words.bos, words.eos) == (2, 3)
  assert words.encode('cat \u4f60') == [5, 1]


def test_added_tokens_keep_their_flags(tmp_path):
  decoder = {
    '61': {'content': '<A>', 'normalized': False, 'special': False},
    '62': {'content': '<b>', 'lstrip': True, 'special': False},
    '63': {'content': '<end>', 'special': True},
  }
  folder = folder_of(
    tmp_path,
    tokenizer_config={'added_tokens_decoder': decoder, 'eos_token': '<end>'},
  )
  words = read(folder)
  assert words.encode('cat<A>') == [5, 61] and 61 not in words.encode('<a>')
  assert words.encode('cat  <b>') == [5, 62]
  assert 63 not in words.encode('cat <end>') and words.eos == 63


WRONG = {
  'class': (
    {'tokenizer_class': 'BertJapaneseTokenizer'},
    "class='BertJapaneseTokenizer' is not read from these files",
  ),
  'own code': ({'auto_map': {'x': 'y'}}, "auto_map={'x': 'y'} is not read"),
  'unknown': ({'word_tokenizer': 1}, 'word_tokenizer=1 is not supported'),
  'basic': ({'do_basic_tokenize': False}, 'do_basic_tokenize=False is not'),
  'never': ({'never_split': ['x']}, "never_split=['x'] is not supported"),
  'type': ({'strip_accents': 'no'}, "strip_accents='no': must be true or"),
  'missing': ({'mask_token': '<m>'}, "special token '<m>' is not in the"),
  'no token': ({'pad_token': 3}, 'pad_token=3: is no token'),
  'taken': (
    {'added_tokens_decoder': {'5': {'content': 'dog'}}},
    "added token 'dog' has id 5, which is 'cat' in the vocabulary",
  ),
  'no id': ({'added_tokens_decoder': {'x': 'y'}}, "'x' is no id"),
  'no list': ({'additional_special_tokens': 'x'}, 'must be a list'),
}


@pytest.mark.parametrize('name', WRONG)
def test_other_settings_are_refused_by_their_key(name, tmp_path):
  settings, words = WRONG[name]
  folder = folder_of(tmp_path / 'in', tokenizer_config=settings)
  with pytest.raises(config.ConfigError) as caught:
    imported(folder, tmp_path / 'run')
  assert words in str(caught.value) and '\n' not in str(caught.value)
  assert not (tmp_path / 'run').exists()


def test_a_class_of_other_files_is_refused(tmp_path):
  with pytest.raises(ValueError, match='BertJapaneseTokenizer'):
    vocabulary.read(
      folder_of(tmp_path / 'model'),
      {'tokenizer_class': 'BertJapaneseTokenizer'},
    )
  with pytest.raises(config.ConfigError) as caught:
    imported(case('wp_unk_other'), tmp_path)
  assert "tokenizer_class='BertJapaneseTokenizer' is not" in str(caught.value)
  # The same files, of other classes.
  source = tmp_path / 'bpe'
  shutil.copytree(case('bl_prefix'), source)
  settings = source / tokenizer_settings.CONFIG
  for name, known in (('RobertaTokenizer', False), ('GPT2TokenizerFast', True)):
    settings.write_text(json.dumps({'tokenizer_class': name}))
    if known:
      assert read(source).encode('Hello') != read(source).encode(' Hello')
    else:
      with pytest.raises(ValueError, match=r'Roberta.* is not read from these'):
        read(source)
  settings.write_text(json.dumps({'tokenizer_class': 'Qwen2Tokenizer'}))
  tree = vocabulary.read(source, {})
  assert tree['normalizer'] == {'type': 'NFC'}
  settings.unlink()
  assert vocabulary.read(source, {'model_type': 'qwen3'}) == tree


def test_settings_beside_a_tokenizer_json_are_obeyed(tmp_path):
  folder = folder_of(tmp_path / 'a')
  tree = vocabulary.read(folder, {})
  for key in ('lm_ids',):
    tree.pop(key)
  (folder / 'tokenizer.json').write_text(json.dumps(tree))
  (folder / 'vocab.txt').unlink()
  settings = {'tokenizer_class': 'BertTokenizerFast', 'do_lower_case': False}
  (folder / 'tokenizer_config.json').write_text(json.dumps(settings))
  assert read(folder).encode('The') != read(folder).encode('the')
  decoder = {'61': {'content': '<x>', 'special': False}}
  settings |= {'added_tokens_decoder': decoder}
  (folder / 'tokenizer_config.json').write_text(json.dumps(settings))
  assert read(folder).encode('the<x>') == [7, 61]
  # Of byte-level ones, whether a space comes first.
  folder = tmp_path / 'b'
  shutil.copytree(case('bl_prefix'), folder)
  tree = vocabulary.read(case('bl_prefix'), {})
  (folder / 'tokenizer.json').write_text(json.dumps(tree))
  settings = {'tokenizer_class': 'GPT2Tokenizer', 'add_prefix_space': False}
  (folder / 'tokenizer_config.json').write_text(json.dumps(settings))
  assert read(folder).encode('Hello') != read(folder).encode(' Hello')
  # Others cannot be told, and may not say otherwise.
  folder = tmp_path / 'c'
  shutil.copytree(case('llama2'), folder)
  for prefix in (True, False):
    settings = {'add_prefix_space': prefix}
    (folder / 'tokenizer_config.json').write_text(json.dumps(settings))
    if prefix:
      assert read(folder).encode('Hello')
    else:
      with pytest.raises(ValueError, match='add_prefix_space=False, and'):
        read(folder)


def test_a_prefix_is_found_in_a_sequence(tmp_path):
  folder = tmp_path / 'a'
  shutil.copytree(case('llama2'), folder)
  file = folder / 'tokenizer.json'
  tree = json.loads(file.read_text()) | {'normalizer': None}
  metaspace = {'type': 'Metaspace', 'replacement': '\u2581'}
  for own, puts in (
    ({'prepend_scheme': 'always'}, True),
    ({'prepend_scheme': 'never'}, False),
    ({'add_prefix_space': True}, True),  # as older files write it
    ({'add_prefix_space': False}, False),
  ):
    cuts = [{'type': 'WhitespaceSplit'}, metaspace | own]
    tree['pre_tokenizer'] = {'type': 'Sequence', 'pretokenizers': cuts}
    file.write_text(json.dumps(tree))
    for prefix in (True, False):
      settings = {'add_prefix_space': prefix}
      (folder / 'tokenizer_config.json').write_text(json.dumps(settings))
      if prefix == puts:
        assert vocabulary.read(folder, {})['pre_tokenizer']
      else:
        with pytest.raises(ValueError, match=f'add_prefix_space={prefix}, and'):
          vocabulary.read(folder, {})


@pytest.mark.parametrize('key', ['normalizer', 'pre_tokenizer', 'decoder'])
@pytest.mark.parametrize('value', ['x', [1], 5])
def test_a_part_that_is_no_object_is_refused(key, value, tmp_path):
  folder = tmp_path / 'a'
  shutil.copytree(case('llama2'), folder)
  file = folder / 'tokenizer.json'
  tree = json.loads(file.read_text()) | {key: value}
  file.write_text(json.dumps(tree))
  settings = {'tokenizer_class': 'T5Tokenizer', 'add_prefix_space': True}
  (folder / 'tokenizer_config.json').write_text(json.dumps(settings))
  with pytest.raises(ValueError, match=r'not a tokenizer\.json, or cut short'):
    vocabulary.read(folder, {})


def test_a_sequence_may_hold_what_is_no_part(tmp_path):
  folder = tmp_path / 'a'
  shutil.copytree(case('bl_prefix'), folder)
  tree = vocabulary.read(folder, {})
  cuts = [1, tree['pre_tokenizer']]
  tree['pre_tokenizer'] = {'type': 'Sequence', 'pretokenizers': cuts}
  (folder / 'tokenizer.json').write_text(json.dumps(tree))
  with pytest.raises(config.ConfigError, match=r'tokenizer .*: '):
    imported(folder, tmp_path / 'run')


def test_vectors_are_pooled_as_their_modules_say(tmp_path):
  def pool(**mode):
    folder = folder_of(tmp_path / 'in', model='bert bare')
    modules = [
      {'path': '', 'type': 'sentence_transformers.models.Transformer'},
      {'path': '1_Pooling', 'type': 'sentence_transformers.models.Pooling'},
    ]
    (folder / '1_Pooling').mkdir(exist_ok=True)
    (folder / '1_Pooling/config.json').write_text(json.dumps(mode))
    (folder / 'modules.json').write_text(json.dumps(modules))
    run = tmp_path / str(len([*tmp_path.iterdir()]))
    return importer.import_model(folder, run).model['pool']

  no = {'pooling_mode_max_tokens': False}
  assert pool(pooling_mode_cls_token=True, **no) == 'first'
  assert pool(pooling_mode_mean_tokens=True) == 'mean'
  assert pool(pooling_mode='cls') == 'first'
  for mode in ({'pooling_mode_max_tokens': True}, no):
    with pytest.raises(ValueError, match=r'pooling .* is not supported'):
      pool(**mode)
  dense = [{'path': '', 'type': 'x.Transformer'}, {'type': 'x.Dense'}]
  (tmp_path / 'in/modules.json').write_text(json.dumps(dense))
  with pytest.raises(ValueError, match="module 'Dense' is not supported"):
    importer.import_model(tmp_path / 'in', tmp_path / 'run')


def test_a_continuation_keeps_its_space(tmp_path):
  for name, more in (
    ('llama2', ' world of models'),
    ('bl_prefix', ' world of models'),
    ('wp_added', ' world of models'),
  ):
    words = imported(case(name), tmp_path / name)
    new = words.encode('Hello world of models')[len(words.encode('Hello')) :]
    assert words.decode_next(new) == more, name
  words = auto.load(str(tmp_path / 'llama2' / 'tokenizer.json'))
  pieces = words.encode('Hello world')
  assert ''.join(words.decode_next([i]) for i in pieces) == ' Hello world'
  # And in a sample: what follows a prompt is glued on as it was drawn.
  text, begun = (
    sample.sample(tmp_path / 'llama2', prompt, length=9, temperature=0)[0]
    for prompt in ('Hello', '')
  )
  assert text.startswith('Hello') and not begun.startswith(' ')


@pytest.mark.parametrize('name', ['llama2', 'bl_prefix', 'wp_nochinese'])
def test_a_text_is_the_sum_of_its_parts_wherever_it_is_cut(name, tmp_path):
  words = imported(case(name), tmp_path / 'run')
  texts = json.loads((case(name) / 'peer.json').read_text())['texts']
  cuts = 0
  for text in texts:
    ids = words.encode(text)
    for n in range(1, len(ids)):
      begun, whole = words.decode(ids[:n]), words.decode(ids)
      # Half a character is no part, nor is an [UNK], which is skipped.
      if begun and not begun.endswith('\ufffd'):
        assert begun + words.decode_next(ids[n:]) == whole, (text, n)
        cuts += 1
  assert cuts > 100


def test_a_tokenizer_with_more_ids_than_the_model_names_both(tmp_path):
  source = case('llama2_vocab_less')
  with pytest.raises(config.ConfigError) as caught:
    imported(source, tmp_path / 'run')
  line = str(caught.value)
  assert 'llama2_vocab_less: its tokenizer has 900 ids, and its model' in line
  assert 'has 897 (vocab_size): take both from the same model' in line


def test_where_texts_end_is_read_from_both_files(tmp_path):
  def ids(eos, generation):
    return vocabulary.special_ids({'eos_token_id': eos}, generation)

  assert ids(1, {}) == {'eos': 1}
  assert ids([1, 3], {}) == {'eos': 1, 'ends': [1, 3]}
  # Generation's own file decides, and knows what the other does not.
  assert ids(1, {'eos_token_id': [1, 5]}) == {'eos': 1, 'ends': [1, 5]}
  assert ids(None, {'eos_token_id': 4, 'pad_token_id': 0}) == {
    'eos': 4,
    'pad': 0,
  }
  for wrong in ('1', [1, None], True):
    with pytest.raises(ValueError, match='must be an id or a list of ids'):
      ids(wrong, {})
  folder = folder_of(tmp_path, generation_config={'eos_token_id': [3, 60]})
  assert read(folder).ends == (3, 60)
  assert 60 not in read(folder).encode('.')  # what ends a text is in none


@pytest.mark.slow
def test_templates_and_generation_come_back_in_an_export(tmp_path):
  generation = {'eos_token_id': [2, 4], 'temperature': 0.6, 'top_p': 0.9}
  template = '{% for m in messages %}{{ m.content }}\n{% endfor %}'
  source = folder_of(
    tmp_path / 'in',
    model='llama',
    generation_config=generation,
    tokenizer_config={'chat_template': template},
  )
  run, out = tmp_path / 'run', tmp_path / 'out'
  importer.import_model(source, run)
  (tmp_path / 'text.txt').write_text('the cat sat. ' * 20)
  export.main(
    [
      'huggingface',
      f'--workdir={run}',
      f'--output={out}',
      f'--text={tmp_path / "text.txt"}',
    ]
  )

  def content(name):
    return json.loads((out / name).read_text())

  assert content('generation_config.json') == generation
  assert content('tokenizer_config.json')['chat_template'] == template
  assert content('config.json')['eos_token_id'] == [2, 4]
  assert not {'lm_ids', 'lm_chat_template'} & content('tokenizer.json').keys()
  # It is imported again as it was, with a template in a file of its own.
  (out / 'tokenizer_config.json').write_text('{}')
  (out / 'chat_template.jinja').write_text(template)
  importer.import_model(out, tmp_path / 'again')
  again = json.loads((tmp_path / 'again/tokenizer.json').read_text())
  assert again['lm_chat_template'] == template
  assert again['lm_generation_config'] == generation


def test_named_templates_are_read(tmp_path):
  folder = folder_of(tmp_path)
  (folder / 'chat_template.json').write_text('{"chat_template": "a"}')
  assert vocabulary.read(folder, {})['lm_chat_template'] == 'a'
  (folder / 'chat_template.jinja').write_text('b\n')
  assert vocabulary.read(folder, {})['lm_chat_template'] == 'b\n'
  (folder / 'additional_chat_templates').mkdir()
  (folder / 'additional_chat_templates/tools.jinja').write_text('c')
  assert vocabulary.read(folder, {})['lm_chat_template'] == [
    {'name': 'tools', 'template': 'c'},
    {'name': 'default', 'template': 'b\n'},
  ]
