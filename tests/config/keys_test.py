"""Every key has a type: a wrong value of a file, a flag or JSON is a line."""

import importlib
import json
import sys
import typing
from typing import Any

from ml_collections import config_dict
import pytest

from configs import base
from lm import config
from lm.config import hints, keys, sources, untrusted

WRONG = (0, 1.5, 'word', True, (1, 'a'), ('a', 2), ((1,),), ({'a': 1},))


def whole() -> Any:
  """The base config, with every part that declares keys of its own."""
  c = base.get_config().unlock()
  c.parts = {
    'modern': base.modern(),
    'encoder': base.encoder(),
    'transformer': base.transformer(),
    't5': base.t5(),
    'recurrent': base.recurrent(),
    'experts': base.experts(),
    'masked': base.masked(),
    'muon': base.muon(),
    'delta': {'fn': 'lm.layers.delta:make', 'key_width': None},
  }
  return c.lock()


FLAT = config.flatten(whole())
for _name in untrusted.FACTORIES:  # a source is read again for each config
  importlib.import_module(_name.partition(':')[0])


def hint(key: str) -> Any:
  """Finds the type of a key, as an override does."""
  if found := keys.find(key):
    return found.hint
  *parents, name = key.split('.')
  tree = whole()
  for part in parents:
    tree = tree[part]
  return sources.hints(tree).get(name, Any)


def refused(call) -> str:
  with pytest.raises(config.ConfigError) as error:
    call()
  text = str(error.value)
  assert '\n' not in text and len(text) <= 200
  return text


def write(folder, c: dict[str, Any]) -> None:
  """Writes a config as a Python file and, what JSON knows, as JSON."""
  (folder / 'c.py').write_text(f'def get_config():\n  return {c!r}\n')
  (folder / 'config.json').write_text(json.dumps(c))


def put(c: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
  *parents, name = key.split('.')
  tree = c
  for part in parents:
    tree = tree[part]
  tree[name] = value
  return c


OPEN = [key for key, value in FLAT.items() if value is None or value == ()]


@pytest.mark.parametrize('key', sorted({*OPEN, *(keys.TYPES.keys() & FLAT)}))
def test_a_wrong_value_is_one_line_that_names_the_key(
  tmp_path, monkeypatch, key
):
  monkeypatch.setenv(untrusted.VARIABLE, '/')
  monkeypatch.chdir(tmp_path)  # a long path would cut the message
  kind, name = hint(key), key.rpartition('.')[2]
  assert kind is not Any, 'without a type any value would go through'
  wrong = [value for value in WRONG if not hints.fits(value, kind)]
  assert len(wrong) >= 3
  for value in wrong[:4]:
    write(tmp_path, put(config.plain(whole()), key, value))
    for file in ('c.py', 'config.json'):
      assert name in refused(lambda file=file: config.load(file))
    if value != 'word':  # which a flag may read as text
      assert key in refused(
        lambda value=value: config.override(whole(), key, value)
      )


@pytest.mark.parametrize(
  ('key', 'text'),
  [
    ('init_paths', '((1,),)'),
    ('init_from', '((1,),)'),
    ('mesh.data', 'all'),
    ('mesh.data', '1.5'),
    ('fit', 'word'),
    ('privacy', 'word'),
    ('evaluate.steps', 'first'),
    ('plan.vocab', 'True'),
    ('data.lengths', '3'),
    ('data.lengths', '100,64'),
    ('data.changes', 'word'),
    ('loss.chunks', '1.5'),
    ('model.blocks.main.mixer.window', 'all'),
    ('model.blocks.main.mixer.scores.scale', 'True'),
    ('optim.warmup', 'word'),
  ],
)
def test_a_wrong_flag_is_one_line(key, text):
  said = refused(lambda: config.override(whole(), key, text))
  assert said.startswith((f'{key}: {text!r}', f'{key}: {text}'))
  assert 'must be' in said


@pytest.mark.parametrize('name', sorted(untrusted.FACTORIES))
def test_a_source_names_the_types_that_an_import_finds(name):
  """Before a module is imported, what its source says is all that is known."""
  module, function = name.split(':')
  found = sources.hints({'fn': name})
  assert module in sys.modules
  source = sources._hints('not imported', function, sources._source(module))
  assert source.keys() == found.keys() - {'return'}
  for key, kind in source.items():
    assert kind in (Any, found[key]) or Any in typing.get_args(kind)


@pytest.mark.parametrize(
  ('key', 'text', 'want'),
  [
    ('init_from', '2024', '2024'),
    ('init_from', 'None', None),
    ('early.metric', 'valid/loss_nats', 'valid/loss_nats'),
    ('init_paths', '=body', ('=body',)),
    ('allow', 'data,optim', ('data', 'optim')),
    ('allow', '2024', ('2024',)),
    ('mesh.data', '4', 4),
    ('mesh.data', 'None', None),
    ('evaluate.steps', 'last', 'last'),
    ('evaluate.steps', '500', 500),
    ('evaluate.steps', '500,1000', (500, 1000)),
    ('evaluate.workdirs', 'runs/a,runs/b-*', ('runs/a', 'runs/b-*')),
    ('sharding.vocab', 'None', None),
    ('sharding.vocab', 'fsdp,tensor', ('fsdp', 'tensor')),
    ('plan.vocab', '50_304', 50_304),
    ('data.lengths', '((0, 64), (500, 256))', ((0, 64), (500, 256))),
    ('data.changes', "((5, {'a': 1.5}),)", ((5, {'a': 1.5}),)),
    ('loss.chunks', '4', 4),
    ('model.blocks.main.mixer.scores.scale', '2', 2),
    ('optim.warmup', '0.05', 0.05),
    ('optim.warmup', '100', 100.0),
  ],
)
def test_a_flag_is_read_as_its_key_says(key, text, want):
  c = whole()
  config.override(c, key, text)
  have = config.flatten(c)[key]
  assert (have, type(have)) == (want, type(want))


@pytest.mark.parametrize(
  ('key', 'value', 'say'),
  [
    ('keep', 0, 'keep: 0 must be an int from 1 to 2147483647'),
    ('mesh.fsdp', 0, 'mesh.fsdp: 0 must be an int from 1 to'),
    ('mesh.data', 0, 'mesh.data: 0 must be an int from 1 to 2147483647 or N'),
    ('early.patience', 0, 'early.patience: 0 must be an int from 1'),
    ('plan.vocab', 0, 'plan.vocab: 0 must be an int from 1'),
    ('logical_shards', 0, 'logical_shards: 0 must be an int from 1'),
    ('seed', 2**32, 'seed: 4294967296 must be an int from 0 to 4294967295'),
    ('numerics', 'exact', "numerics: 'exact' must be 'fast' or 'determin"),
    ('sharding.vocab', 'tensr', "sharding.vocab: 'tensr' must be one of data"),
    ('privacy', 'gaussian', "privacy: 'gaussian' must be a dict with a functi"),
    ('privacy', {'clip': 1.0}, "privacy: {'clip': 1.0} must be a dict with a"),
    ('evals', {'valid': 3}, 'evals.valid: 3 must be a dict with a function'),
    ('mesh', 8, 'mesh: 8 must be a dict'),
    ('data', None, 'data: None must be a dict with a function'),
    ('data.changes', ((5, {'a': 'b'}),), "data.changes: a='b' is refused"),
  ],
)  # fmt: skip
def test_a_value_out_of_range_is_one_line(
  tmp_path, monkeypatch, key, value, say
):
  monkeypatch.setenv(untrusted.VARIABLE, '/')
  write(tmp_path, put(config.plain(base.get_config()), key, value))
  for file in ('c.py', 'config.json'):
    assert say in refused(lambda file=file: config.load(tmp_path / file))


def test_what_is_0_is_off_or_nothing():
  """Keys of which 0 is a meaning, as configs/base.py says."""
  c = base.get_config()
  for key in ('keep_every', 'eval_every', 'max_skipped', 'threads', 'prefetch'):
    config.override(c, key, '0')
    assert c[key] == 0
  config.check(c)


def test_a_missing_or_unknown_key_of_a_section_is_named(tmp_path, monkeypatch):
  monkeypatch.setenv(untrusted.VARIABLE, '/')
  c = config.plain(base.get_config())
  config.check_complete(c)
  del c['mesh']['fsdp']
  say = 'mesh.fsdp: is missing: configs/base.py declares it'
  assert refused(lambda: config.check_complete(c)) == say
  c['mesh']['fdsp'] = 1
  write(tmp_path, c)
  for file in ('c.py', 'config.json'):
    assert refused(lambda file=file: config.load(tmp_path / file)) == (
      'unknown key mesh.fdsp; did you mean mesh.fsdp?'
    )


def test_overrides_are_text_or_values():
  """In a notebook a number is a number."""
  given = [
    ('steps', 200),
    ('optim.peak', 1),
    ('optim.rule.b2', 0.99),
    ('model.head.tied', False),
    ('init_from', None),
    ('init_paths', ['=body']),
    ('data.lengths', ((0, 64),)),
    ('privacy', {'fn': 'lm.training.privacy:gaussian', 'clip': 1.0}),
  ]
  c = config.load('configs/gpt/tiny.py', given)
  assert config.load('configs/gpt/tiny.py', dict(given)) == c
  assert (c.steps, c.init_paths, c.data.lengths) == (
    200,
    ('=body',),
    ((0, 64),),
  )
  assert (c.optim.peak, type(c.optim.peak)) == (1.0, float)
  assert c.privacy.clip == 1.0 and c.model.head.tied is False
  for key, value, say in (
    ('steps', 2.0, 'steps: 2.0 must be an int'),
    ('steps', True, 'steps: True must be an int'),
    ('optim.peak', None, 'optim.peak: None is wrong; must be a float'),
    ('model', {}, 'model: a dict is not set whole'),
    ('privacy', {'clip': 1.0}, 'privacy: '),
    ('init_from', object(), 'init_from: '),
  ):
    assert say in refused(
      lambda key=key, value=value: config.load(
        'configs/gpt/tiny.py', [(key, value)]
      )
    )


def test_an_old_int_may_become_a_share(tmp_path, monkeypatch):
  """A run of before stores warmup as an int, and an import as a share."""
  monkeypatch.setenv(untrusted.VARIABLE, '/')
  c = config.plain(base.get_config())
  for stored, text, want in ((100, '0.05', 0.05), (0.03, '100', 100.0)):
    write(tmp_path, put(c, 'optim.warmup', stored))
    new = config.load(tmp_path / 'config.json', [('optim.warmup', text)])
    assert new.optim.warmup == want
  whole_number = put(config.plain(base.get_config()), 'optim.warmup', 100)
  assert config.diff(whole_number, base.get_config()) == []


@pytest.mark.parametrize(
  ('word', 'ours'),
  [
    ('optim.lr', 'optim.peak'),
    ('learning_rate', 'optim.peak'),
    ('optim.learning_rate', 'optim.peak'),
    ('weight_decay', 'optim.decay'),
    ('max_grad_norm', 'optim.clip'),
    ('warmup_steps', 'optim.warmup'),
    ('num_layers', 'model.depth'),
    ('model.n_layer', 'model.depth'),
    ('d_model', 'model.width'),
    ('n_embd', 'model.width'),
    ('hidden_size', 'model.width'),
    ('n_head', 'model.blocks.main.mixer.heads'),
    ('model.num_attention_heads', 'model.blocks.main.mixer.heads'),
    ('num_key_value_heads', 'model.blocks.main.mixer.kv_heads'),
    ('intermediate_size', 'model.blocks.main.mlp.width'),
    ('seq_len', 'data.length'),
    ('model.max_seq_len', 'model.length'),
    ('block_size', 'data.length'),
    ('max_steps', 'steps'),
    ('num_epochs', 'steps'),
    ('train_batch_size', 'batch_size'),
    ('gradient_accumulation_steps', 'microbatches'),
    ('save_steps', 'save_every'),
    ('random_seed', 'seed'),
    ('tensor_parallel_size', 'mesh.tensor'),
    ('layers', 'model.depth'),
    ('heads', 'model.blocks.main.mixer.heads'),
    ('widht', 'model.width'),
    ('peak', 'optim.peak'),
  ],
)
def test_a_hint_knows_the_words_of_others(word, ours):
  c = base.get_config()
  assert ours in config.flatten(c)
  text = refused(lambda: config.override(c, word, '1'))
  assert text == f'unknown key {word}; did you mean {ours}?'


def test_a_hint_names_only_what_is_there():
  c = config_dict.ConfigDict({'optim': {'clip': 1.0}, 'rate': 1.0})
  text = refused(lambda: config.override(c, 'optim.lr', '1'))
  assert 'peak' not in text
  spec = {'fn': 'lm.optim.optimizers:make', 'peak': 1e-3, 'learning_rate': 1.0}
  text = refused(lambda: config.build(spec, steps=3))
  assert text.endswith('has no parameter learning_rate; did you mean peak?')


def test_an_older_run_gets_the_keys_that_it_lacks():
  """They stand for what configs/base.py says."""
  want = base.get_config()
  flat = config.flatten(want)
  assert {key: flat[key] for key in keys.NEWER} == keys.NEWER
  old = want.copy_and_resolve_references().unlock()
  for key in ('log', 'profile', 'watchdog'):
    del old[key]
  config.complete(old)
  assert config.to_json(old) == config.to_json(want)
  del old['log']['to'], old['steps']
  config.complete(old)  # it is no run's
  assert 'to' not in old['log']
