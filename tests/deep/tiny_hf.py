"""Small Hugging Face models with random weights, made on the spot."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5Model,
)

WORDS = ["the", "cat", "sat", "on", "a", "dog", "barked", "at", "it", "good", "bad", "not"]
_SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def _tokenizer(special: dict[str, str], around: str | None) -> PreTrainedTokenizerFast:
    """`special` is in the order of numbers, by what each is for."""
    names = [*special.values(), *WORDS]
    numbers = {name: number for number, name in enumerate(names)}
    unknown = special["unk_token"]
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token=unknown))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if around:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=around, special_tokens=[(name, numbers[name]) for name in special.values()]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=24, **special)


def save_tiny(kind: str, folder: Path) -> str:
    """Write a bert; roberta, whose padding is 1; gpt2, which has none; or t5, with a decoder."""
    torch.manual_seed(0)
    feed = {**_SIZES, "intermediate_size": 32, "max_position_embeddings": 32}
    if kind == "bert":
        names = ("pad_token", "[PAD]"), ("unk_token", "[UNK]"), ("cls_token", "[CLS]")
        tokenizer = _tokenizer(dict([*names, ("sep_token", "[SEP]")]), "[CLS] $A [SEP]")
        model = BertModel(BertConfig(vocab_size=len(tokenizer), **feed))
    elif kind == "roberta":
        names = ("bos_token", "<s>"), ("pad_token", "<pad>"), ("eos_token", "</s>")
        tokenizer = _tokenizer(dict([*names, ("unk_token", "<unk>")]), "<s> $A </s>")
        model = RobertaModel(RobertaConfig(vocab_size=len(tokenizer), **feed))
    elif kind == "gpt2":
        tokenizer = _tokenizer({"unk_token": "<unk>", "eos_token": "<end>"}, None)
        model = GPT2Model(
            GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=2, n_head=2, n_positions=32)
        )
    else:
        names = ("pad_token", "<pad>"), ("eos_token", "</s>"), ("unk_token", "<unk>")
        tokenizer = _tokenizer(dict(names), "$A </s>")
        model = T5Model(
            T5Config(
                vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2
            )
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
