"""Package versatune_ds: dependencies, extras and the `versatune` command. Needs no compiler and no GPU."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (HERE / "versatune_ds/__init__.py").read_text(encoding="utf-8")).group(1)

DATA_FILES = (
    ("launcher", "*.py"),
    ("slurm", "*.sbatch"),
    ("ds_configs", "*.json"),
    *((str(folder.relative_to(HERE)), "*.yaml") for folder in sorted((HERE / "recipes").glob("**")) if folder.is_dir()),
)
"""Folder beside the package and pattern of the files that a wheel takes along."""

MPI = ["mpi4py>=4.0", "mpich>=4.1; sys_platform == 'linux'"]
LORA = ["peft>=0.17"]
QLORA = ["bitsandbytes>=0.46", "accelerate>=1.0"]
TENSORBOARD = ["tensorboard>=2.17"]
OPENAI = ["openai>=1.60"]
GGUF = ["gguf>=0.17"]

setup(
    name="versatune_ds",
    version=VERSION,
    description="Multi-domain fine-tuning on DeepSpeed with a data mixture that moves while the model trains",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["versatune_ds", "versatune_ds.*"]),
    package_data={
        "versatune_ds": [
            "py.typed",
            "kernels/csrc/*",
            "report/*.css",
            "report/*.js",
            "report/*.html",
            "cli/completion/versatune.*",
        ],
    },
    # Files that stand beside the package in a checkout; versatune_ds/paths.py finds them in either place.
    data_files=[
        (f"share/versatune_ds/{folder}", sorted(str(path.relative_to(HERE)) for path in (HERE / folder).glob(pattern)))
        for folder, pattern in DATA_FILES
    ],
    install_requires=[
        "torch>=2.8,<3",
        "deepspeed>=0.19.5,<0.20",
        "transformers>=5.0,<6",
        "tokenizers>=0.21",
        "datasets>=4.0,<6",
        "pyarrow>=18",
        "numpy>=1.26,<3",
        "numba>=0.61",
        "psutil>=5.9",
        "pydantic>=2.10,<3",
        "pyyaml>=6",
        "matplotlib>=3.8",
        "jinja2>=3.1",
        "markdown-it-py>=3",
        "scikit-learn>=1.5",
        "scipy>=1.11",
        "rich>=13",
        "wandb>=0.19",
        "ninja>=1.11",
        "zstandard>=0.22",
    ],
    extras_require={
        "mpi": MPI,
        "lora": LORA,
        "qlora": [*LORA, *QLORA],
        "tensorboard": TENSORBOARD,
        "openai": OPENAI,
        "gguf": GGUF,
        "s3": ["s3fs>=2025.3"],
        "gs": ["gcsfs>=2025.3"],
        "embedding": ["sentence-transformers>=5"],
        "8bit": ["bitsandbytes>=0.45"],
        "fused": ["liger-kernel>=0.6"],
        "harness": ["lm-eval[hf]>=0.4.13"],
        "trackio": ["trackio>=0.43"],
        "swanlab": ["swanlab>=0.10,<0.11"],
        "bench": ["trl>=1.16,<2", "liger-kernel>=0.6"],
        "dev": [
            *MPI,
            *LORA,
            *QLORA,
            *TENSORBOARD,
            *OPENAI,
            *GGUF,
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.5",
            "hypothesis>=6.100",
            "ruff>=0.9",
            "selenium>=4.20",
        ],
    },
    entry_points={"console_scripts": ["versatune = versatune_ds.cli:main"]},
)
