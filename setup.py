"""Installs `lm`; configs/ and tools/ are used from the checkout."""

import setuptools

INTEROP = [
  'flatbuffers>=24',
  'gguf>=0.17,<1',
  'safetensors>=0.5,<1',
  'tokenizers>=0.22,<0.24',
]
GCS = ['gcsfs>=2025.3']
LMEVAL = ['lm-eval==0.4.13']
PRIVACY = ['jax-privacy>=2,<3']
QUANT = ['qwix>=0.1.8,<0.2']
TASKS = [
  'rouge-score>=0.1.2,<0.2',
  'sacrebleu>=2.4,<3',
  'scikit-learn>=1.5,<2',
  'seqeval>=1.2.2,<2',
  'vaderSentiment>=3.3.2,<4',
]
TEST = [
  *GCS,
  *INTEROP,
  *LMEVAL,
  *PRIVACY,
  *QUANT,
  *TASKS,
  'hypothesis>=6.100,<7',
  # drives the Chromium of the system, if there is one
  'playwright>=1.65,<2',
  'pyarrow>=17',
  'pytest>=9,<10',
  'pytest-xdist>=3.6,<4',
]

setuptools.setup(
  name='lm',
  version='0.1.0',
  description='Language-model pretraining in JAX, as pure functions.',
  license='Apache-2.0',
  python_requires='>=3.11',
  packages=setuptools.find_packages(include=['lm', 'lm.*']),
  package_data={'lm': ['*.html']},
  install_requires=[
    'absl-py>=2.1',
    # 0.10.2 is the last jax for Python 3.11; later Pythons get 0.12
    'jax>=0.10.2,<0.13',
    'etils>=1.10',
    'flax>=0.12.8,<0.13',
    'grain>=0.2.18,<0.3',
    'matplotlib>=3.9,<4',
    'ml_collections>=1.1,<2',
    'numpy>=2,<3',
    'optax>=0.2.8,<0.3',
    'orbax-checkpoint>=0.12.4,<1',
    'scipy>=1.14,<2',
    # older ones read past the end of a broken model file
    'sentencepiece>=0.2.1,<0.3',
  ],
  extras_require={
    'data': ['pyarrow>=17'],
    'gcs': GCS,
    'interop': INTEROP,
    'lmeval': LMEVAL,
    'privacy': PRIVACY,
    'quant': QUANT,
    # what judges tuned models
    'tasks': TASKS,
    'tensorboard': ['tensorboardX>=2.6,<3'],
    # to run on TPUs, and for lm.plan to compile for them elsewhere
    'tpu': [*GCS, 'jax[tpu]>=0.10.2,<0.13'],
    'test': TEST,
    # a new minor version of these may find new faults in old code
    'dev': [
      *TEST,
      'basedpyright>=1.40,<1.41',
      'import-linter>=2.16,<2.17',
      'ruff>=0.17.6,<0.18',
    ],
  },
)
