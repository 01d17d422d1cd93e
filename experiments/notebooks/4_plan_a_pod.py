# %% [markdown]
# # Plan a pod
#
# This notebook finds out what a model of 1.2 billion parameters needs on a TPU
# v5p slice of 64 chips that we do not have: memory, time, dollars, and a good
# layout. It takes about three minutes on a CPU with two cores, and needs no
# TPU.

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
# To compile for a TPU that is not there, jax needs the library `libtpu`
# (160 MB). Without it the first half of this notebook still works.

# %%
os.environ['JAX_PLATFORMS'] = 'cpu'  # the TPU is only planned for
if os.path.exists('/content') and not importlib.util.find_spec('libtpu'):
  install = [sys.executable, '-m', 'pip', 'install', '--quiet']  # on Colab
  subprocess.run([*install, f'./{SOURCE}[tpu]'], check=True)
LIBTPU = 'TPU_LIBRARY_PATH' in os.environ or importlib.util.find_spec('libtpu')
print('libtpu is', 'here' if LIBTPU else 'not here')

# %% [markdown]
# ## The run
#
# This config comes with the library: a model in the shape of Llama 3.2 1B, a
# million tokens a step, 100,000 steps.

# %%
import lm
from lm.planning import report

c = lm.config.load('configs/gpt/llama_1b.py')
CHIP = 'v5p:4x4x4'
print(c.model.depth, 'layers,', c.model.width, 'features')
print(f'{c.batch_size * c.data.length:,} tokens a step, {c.steps:,} steps')

# %% [markdown]
# ## With a data sheet alone
#
# Much is known without any compiler: the shapes of the parameters, what the
# optimizer keeps, and the arithmetic of a token. `shapes_only` builds the run
# and allocates nothing.

# %%
import jax

from lm import tree
from lm.planning import cost, flops, hardware, search, topology
from lm.training import setup

chip = next(x for x in hardware.CHIPS if x.name == 'v5p')
one = topology.Target(CHIP, chip, jax.devices()[:1], chip.memory_bytes)
filled = setup.fill(lm.config.load('configs/gpt/llama_1b.py', {'mesh.fsdp': 1}))
like = cost.assemble(filled, one, c.plan.vocab).program.like
state = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(like))
print(f'{tree.count(like.params):,} parameters')
print(f'{state / 2**30:.1f} GiB of state: parameters and two moments')
print(f'{chip.memory_bytes / 2**30:.0f} GiB of memory on each chip')

# %% [markdown]
# The rule of thumb is six FLOPs a token for each parameter that is multiplied,
# and more for attention. At half of the peak, which is good, 64 chips need:

# %%
per_token = flops.train_flops_per_token(
  flops.multiplied(like.params), c.model.depth, c.data.length, c.model.width
)
tokens = c.steps * c.batch_size * c.data.length
seconds = tokens * per_token / (64 * chip.flops * 0.5)
print(f'{per_token:.2e} FLOPs a token, {tokens * per_token:.2e} in all')
print(f'{seconds / 3600:.0f} hours, {64 * seconds / 3600:.0f} chip hours')

# %% [markdown]
# ## Layouts
#
# The 64 chips can cut the batch (`data`), the parameters (`fsdp`) or each
# product (`tensor`). `candidates` lists the layouts whose estimate of memory
# fits, the quickest first, by a rough formula. It needs nothing of the machine
# but the number of its chips.

# %%
pod = one._replace(devices=jax.devices()[:1] * 64)
layouts = search.candidates(filled, pod, c.plan.vocab)
print(len(layouts), 'layouts might fit; the first and the last three:')
for layout in layouts[:3] + layouts[-3:]:
  axes = {
    k[5:]: n for k, n in layout.items() if k.startswith('mesh.') and n > 1
  }
  print(axes, 'microbatches', layout['microbatches'], layout['model.remat'])

# %% [markdown]
# ## What the compiler says
#
# `search` takes the most promising of these layouts, compiles the training step
# itself for the slice, and reads memory, arithmetic and communication off the
# program. This is the step that a real run would execute. With `tries=4` it
# compiles four layouts and keeps the quickest that fits.

# %%
prices = {'dollars_per_device_hour': {'v5p': 4.2}}  # put your own price here
if LIBTPU:
  found = lm.plan.search(c, CHIP, prices=prices, tries=1)
  print(report.show(found))
else:
  print('libtpu is not here: this part is left out')

# %%
import matplotlib.pyplot as plt

if LIBTPU:
  parts = dict(found['memory_bytes'])
  limit = parts.pop('limit') / 2**30
  shown = {k: n / 2**30 for k, n in parts.items() if n > 2**24}
  plt.figure(figsize=(6, 2.5))
  plt.barh([*shown], [*shown.values()])
  plt.axvline(limit, color='C3', label='memory of a chip')
  plt.xlabel('GiB on each chip')
  plt.legend()
  plt.tight_layout()
  plt.show()

# %% [markdown]
# Seconds come from data sheets and assume that every chip reaches its peak, so
# a real run is slower: plan with twice the hours. The memory is the compiler's
# own figure. No plan for a TPU was compared with a real one yet.
#
# The same from a shell: `python -m lm.plan --config=configs/gpt/llama_1b.py
# --target=v5p:4x4x4 --search`. Next:
# [compare two runs](6_compare_two_runs.ipynb).
