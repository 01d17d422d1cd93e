# %% [markdown]
# # Build a mixer and run its laws
#
# This notebook adds a new kind of layer in one file, looks at what it sees, and
# runs the tests that every model of the library has to pass. It takes about
# three minutes on a CPU with two cores.

# %%
import glob
import importlib.util
import os
import shutil
import subprocess
import sys

REPOSITORY = 'https://example.org/exactlm/lm.git'
SOURCE = os.environ.get('LM_SOURCE', 'lm-source')
if importlib.util.find_spec('lm') is None:  # Colab, Kaggle, or a new machine
  extra = '[tpu]' if glob.glob('/dev/vfio/[0-9]*') else ''
  extra = '[cuda]' if shutil.which('nvidia-smi') else extra
  install = [sys.executable, '-m', 'pip', 'install', '--quiet']
  subprocess.run(['git', 'clone', '--depth=1', REPOSITORY, SOURCE], check=True)
  subprocess.run([*install, f'./{SOURCE}{extra}'], check=True)
QUICK = bool(os.environ.get('QUICK'))  # a test runs this notebook shortened

# %% [markdown]
# The laws are tests. They are not in the package but in the repository, and
# they need pytest.

# %%
if importlib.util.find_spec('pytest') is None:
  subprocess.run([sys.executable, '-m', 'pip', 'install', 'pytest'], check=True)
if os.path.exists('../../tests/laws'):  # this notebook lies in a checkout
  SOURCE = '../..'
sys.path.append(SOURCE)  # at the end: the installed lm stays the one in use

# %% [markdown]
# ## The mixer
#
# A *mixer* moves information along a text; attention is one. Ours is the token
# shift of RWKV (Peng et al. 2023, arXiv 2305.13048): each feature of a token is
# mixed with that of the token before it. It is one file, with two functions
# that matter: `see` says what the layers have to know of the text, and the
# module computes.

# %%
# %%writefile shift.py
"""A mixer that mixes each token with the one before it."""

from functools import partial

from flax import linen as nn
import jax
import jax.numpy as jnp

from lm.layers import initializers, linear, parts

# The axes of a matrix, for meshes, Muon, LoRA and int8.
ROWS = (parts.Row(r'output$', ('embed', 'mlp'), summed=1, out=1),)


def make(*, shared: parts.Shared, share: float = 0.5) -> parts.Mixer:
  """Makes the mixer; `share` of a token comes from the one before at first."""

  def see(text, initializing):
    del initializing
    return text.positions == 0, text.segments > 0

  def start(params, text, room):
    del params, room
    return {'last': jnp.zeros((len(text.segments), shared.width))}

  build = partial(Shift, share, shared)
  return parts.Mixer(
    'shift', build, see, start, ROWS, lambda length: 2 * shared.width**2
  )


class Shift(nn.Module):
  """Mixes, then multiplies by a matrix."""

  share: float
  shared: parts.Shared

  @nn.compact
  def __call__(self, x_BLD, seen, cache):
    """Returns [B, L, D] and the last token that is no padding."""
    D = x_BLD.shape[-1]
    share_D = self.param('share_bias', initializers.constant(self.share), (D,))

    def step(last_BD, now):
      x_BD, start_B1, live_B1 = now
      before_BD = jnp.where(start_B1, 0, last_BD)  # another document begins
      return jnp.where(live_B1, x_BD, last_BD), before_BD

    first_BD = jnp.zeros_like(x_BLD[:, 0]) if cache is None else cache['last']
    along = (x_BLD, seen[0][..., None], seen[1][..., None])
    along = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), along)
    last_BD, before_LBD = jax.lax.scan(step, first_BD, along)
    before_BLD = jnp.moveaxis(before_LBD, 0, 1)
    kernel_DF = self.param('output', self.shared.output(D), (D, D))
    y_BLF = linear.contract(
      'BLD,DF->BLF',
      x_BLD + share_D[None, None] * (before_BLD - x_BLD),
      kernel_DF,
      self.shared.compute_dtype,
      self.shared.dtype,
    )
    return y_BLF, None if cache is None else {'last': last_BD}


# %% [markdown]
# ## A config
#
# A config names the function, as `module:function`. Nothing has to be
# registered, and its settings become keys of the config.

# %%
# %%writefile shifted.py
"""A small GPT with shifts instead of attention."""

from configs import base


def get_config():
  """Returns the config."""
  c = base.get_config()
  mixer = {'fn': 'shift:make', 'share': 0.5}
  main = base.block(mixer, base.mlp(activation='relu2'), base.rmsnorm())
  c.model = base.modern(
    blocks={'main': main}, width=64, depth=3, length=128, dtype='float32'
  )
  c.optim = base.muon()
  return c.lock()


# %%
import lm

c = lm.config.load('shifted.py')
model = lm.config.build(c.model, vocab=256)

# %% [markdown]
# ## What does a token see?
#
# We change one token of a text after the other, and look at which outputs
# change. Three layers of shifts reach three tokens back, and no output changes
# to the left of a change: the mixer is *causal*. The row holds two documents,
# and the second does not see the first.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np

from lm import types

L = 12
rng = np.random.default_rng(0)
tokens = rng.integers(0, 256, (1, L + 1)).astype(np.int32)
segments = np.array([[1] * 7 + [2] * 5], np.int32)
positions = np.array([[*range(7), *range(5)]], np.int32)
batch = types.Batch(
  tokens[:, :-1],
  tokens[:, 1:],
  np.ones((1, L), np.float32),
  positions,
  segments,
)
params = jax.tree.map(
  lambda x: x + 0.1 * rng.normal(size=x.shape).astype('float32'),
  model.init(0, batch),  # where last kernels are zero: nothing would be seen
)
apply = jax.jit(lambda batch: model.apply(params, batch).logits)
before = apply(batch)
changed = np.zeros((L, L))
for n in range(L):
  other = batch.tokens.copy()
  other[0, n] = (other[0, n] + 1) % 256
  difference = np.abs(apply(batch._replace(tokens=other)) - before)
  changed[:, n] = difference.max(axis=(0, 2)) > 1e-5
plt.figure(figsize=(3, 3))
plt.imshow(changed, cmap='Greys')
plt.xlabel('changed token')
plt.ylabel('output that changes')
plt.show()

# %% [markdown]
# ## Its row in the laws
#
# The laws live in one table, `MODELS` of `tests/laws/laws_test.py`. A model
# joins them by a row. Here we add the row in memory and call some of the laws.
# They say that no token sees a later one, another document or padding, and that
# decoding token by token with a cache equals one pass over the text.

# %%

from tests.laws import laws_test as laws

spec = lm.config.plain(c.model) | laws.TINY
laws.MODELS['shift'] = laws.Family(spec)
laws.test_a_position_sees_nothing_to_its_right('shift')
laws.test_a_packed_document_reads_as_if_alone('shift')
laws.test_what_stands_in_padding_does_not_matter('shift')
laws.test_prefill_and_decoding_equal_one_pass('shift', scan=False)
laws.test_prefill_and_decoding_equal_one_pass('shift', scan=True)
laws.test_a_model_tells_the_arithmetic_of_a_token('shift')
print('it keeps the laws')

# %% [markdown]
# A law that cannot fail is worth nothing. We break the mixer: it forgets that
# another document begins.

# %%
from pathlib import Path

code = Path('shift.py').read_text()
right = 'jnp.where(start_B1, 0, last_BD)'
assert code.count(right) == 1
Path('leaky.py').write_text(code.replace(right, 'last_BD'))
leaky = lm.config.plain(c.model) | laws.TINY
leaky['blocks']['main']['mixer']['fn'] = 'leaky:make'
laws.MODELS['leaky'] = laws.Family(leaky)
try:
  laws.test_a_packed_document_reads_as_if_alone('leaky')
except AssertionError as error:
  print('caught:', next(x for x in str(error).splitlines() if x))
else:
  raise RuntimeError('the law did not see it')

# %% [markdown]
# ## Is it any good?
#
# Laws say that a mixer is right, not that it is useful. We train it beside
# attention, with the same data, width, depth and steps.

# %%
import json
from pydoc_data.topics import topics

from lm.corpus import prepare
from lm.reporting import metrics_log

with open('text.jsonl', 'w') as file:
  for text in topics.values():
    for paragraph in text.split('\n\n'):
      print(json.dumps({'text': paragraph}), file=file)
prepare.train_tokenizer(['text.jsonl'], 'data/tokenizer.model', vocab=512)
written = prepare.write_dataset(
  'text.jsonl', 'data', 'data/tokenizer.model', split_valid=0.1
)
print(f'{written["train"].manifest.tokens:,} tokens to train on')

# %%
steps = 40 if QUICK else 200
changes = {'steps': steps, 'save_every': steps, 'data.length': 128}
changes['optim.warmup'] = 10.0
for name, path, more in (
  ('shift', 'shifted.py', {}),
  (
    'attention',
    'configs/gpt/tiny.py',
    {
      'batch_size': 16,
      'model.width': 64,
      'model.depth': 3,
      'model.length': 128,
      'model.compute_dtype': 'float32',
    },
  ),
):
  c = lm.config.load(path, changes | more, data='data')
  lm.train.train(c, f'runs/{name}')

# %%
plt.figure(figsize=(6, 3))
for name in ('shift', 'attention'):
  lines = metrics_log.read(Path('runs', name, 'metrics.jsonl'))
  plt.plot(
    [x['step'] for x in lines], [x['loss_nats'] for x in lines], label=name
  )
plt.xlabel('step')
plt.ylabel('loss, nats a token')
plt.legend()
plt.grid(alpha=0.3)
plt.show()

# %% [markdown]
# After so few steps the shift is ahead: what the next token owes to the last
# few is learned first, and the shift sees nothing else. That says little about
# a longer training, and one seed of one size proves nothing: see
# [compare two runs](6_compare_two_runs.ipynb). The page *Extending* of the
# documentation has another mixer, with a longer reach.
