"""The keys of a DeText model as a deep fixed effect of ours.

DeText is the deep ranking model that LinkedIn's GDMix trains as its fixed effect. Its keys had two
generations: features named by what their names begin with (``feature_names``: ``doc_title``,
``usr_headline``, ``wide_ftrs_sp_idx``), and later by kind (``doc_text_column_names``, …).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gdmix.errors import did_you_mean

MODEL_TYPE = "detext"

# Keys that say something here, and what they hold.
MAPPED: dict[str, type | tuple[type, ...]] = {
    "train_file": str,
    "dev_file": str,
    "vocab_file": str,
    "ftr_ext": str,
    "num_units": int,
    "num_units_for_id_ftr": int,
    "num_filters": int,
    "filter_window_sizes": (int, list, str),
    "num_layers": int,
    "bidirectional": bool,
    "max_len": int,
    "emb_sim_func": (str, list),
    "sim_func_name": (str, list),
    "num_hidden": (int, list, str),
    "sp_emb_size": int,
    "sparse_embedding_size": int,
    "ltr_loss_fn": str,
    "task_type": str,
    "num_classes": int,
    "optimizer": str,
    "use_bias_correction_for_adamw": bool,
    "use_lr_schedule": bool,
    "learning_rate": float,
    "num_train_steps": int,
    "num_epochs": int,
    "num_warmup_steps": int,
    "train_batch_size": int,
    "max_gradient_norm": float,
    "random_seed": int,
    "feature_names": (str, list),
    "query_column_name": str,
    "doc_text_column_names": (str, list),
    "user_text_column_names": (str, list),
    "doc_id_column_names": (str, list),
    "user_id_column_names": (str, list),
    "dense_ftrs_column_names": (str, list),
    "sparse_ftrs_column_names": (str, list),
    "shallow_tower_sparse_ftrs_column_names": (str, list),
}
# Keys that nothing here depends on: sizes that the rows tell, how often it reports, where it runs.
WITHOUT_MEANING = (
    *("num_wide", "num_wide_sp", "nums_dense_ftrs", "nums_sparse_ftrs", "use_deep", "min_len"),
    *("nums_shallow_tower_sparse_ftrs", "pmetric", "all_metrics", "steps_per_stats"),
    *("steps_per_eval", "num_eval_rounds", "num_eval_steps", "test_file", "test_batch_size"),
    *("keep_checkpoint_max", "resume_training", "out_dir", "metadata_path", "metadata_file"),
    *("distribution_strategy", "all_reduce_alg", "num_gpu", "run_eagerly", "use_horovod"),
    *("explicit_allreduce", "PAD", "UNK", "CLS", "SEP", "MASK", "PAD_FOR_ID_FTR"),
    *("UNK_FOR_ID_FTR", "we_trainable", "we_trainable_for_id_ftr", "tokenization", "unit_type"),
    *("label_column_name", "uid_column_name", "weight_column_name"),
)
# Keys that would change the model, by what happens instead.
UNSUPPORTED: dict[str, str] = {
    "l1": "not applied: the network has no L1 penalty",
    "l2": "not applied: the weights decay by 0.01 as with DeText's AdamW (training.weight_decay)",
    "elem_rescale": "no scale of its own per number: numbers are standardized",
    "rescale_dense_ftrs": "no scale of its own per number: numbers are standardized",
    "std_file": "not read: numbers are standardized by the training rows",
    "init_weight": "weights begin as PyTorch's layers do",
    "we_file": "not read: word vectors are learned from the rows",
    "we_file_for_id_ftr": "not read: vectors of ids are learned from the rows",
    "embedding_hub_url": "not read: word vectors are learned from the rows",
    "embedding_hub_url_for_id_ftr": "not read: vectors of ids are learned from the rows",
    "vocab_hub_url": "not read: the words are those of the training rows",
    "vocab_hub_url_for_id_ftr": "not read: the ids are those of the training rows",
    "vocab_file_for_id_ftr": "not read: the ids are those of the training rows",
    "explicit_empty": "an empty text is the zero vector",
    "add_doc_projection": "a side's texts and ids always become one vector",
    "use_doc_projection": "a side's texts and ids always become one vector",
    "add_user_projection": "a side's texts and ids always become one vector",
    "use_usr_projection": "a side's texts and ids always become one vector",
    "sparse_embedding_cross_ftr_combiner": "vectors of wide features are summed",
    "sparse_embedding_same_ftr_combiner": "vectors of wide features are summed",
    "rnn_dropout": "not applied between the steps of the LSTM",
    "forget_bias": "the forget gate begins as PyTorch's",
    "num_residual_layers": "the LSTM has no residual layers",
    "normalized_lm": "there is no language model",
    "score_rescale": "scores are not rescaled",
    "lambda_metric": "no ranking loss goes ahead of random effects",
    "use_tfr_loss": "no ranking loss goes ahead of random effects",
    "tfr_loss_fn": "no ranking loss goes ahead of random effects",
    "tfr_lambda_weights": "no ranking loss goes ahead of random effects",
    "lr_bert": "there is no BERT among its encoders here",
    "use_bert_dropout": "there is no BERT among its encoders here",
    "bert_config_file": "there is no BERT among its encoders here",
    "bert_checkpoint": "there is no BERT among its encoders here",
    "bert_hub_url": "there is no BERT among its encoders here",
    "add_first_dim_for_query_placeholder": "nothing is exported to TensorFlow",
    "add_first_dim_for_usr_placeholder": "nothing is exported to TensorFlow",
}
REFUSED: dict[str, str] = {
    "task_ids": "several tasks in one model are not trained here",
    "task_weights": "several tasks in one model are not trained here",
    "task_id_column_name": "several tasks in one model are not trained here",
}
KNOWN = (*MAPPED, *WITHOUT_MEANING, *UNSUPPORTED, *REFUSED)

_SIMILARITIES = {
    "inner": "cosine",
    "hadamard": "hadamard",
    "concat": "concat",
    "diff": "difference",
}
# What a pair of columns of a sparse feature is called.
_PAIRS = (("_indices0", "_values"), ("_indices", "_values"), ("_idx", "_val"))
_NOTHING: tuple[Any, ...] = (None, "", 0, False, [], "None", "0")


@dataclass(frozen=True)
class Detext:
    """A DeText model in our keys.

    Attributes
    ----------
    spec
        The coordinate's keys and values.
    bags
        Feature bags that it needs, by name.
    label
        Column of the response.
    """

    spec: dict[str, Any]
    bags: dict[str, dict[str, Any]]
    label: str


@dataclass
class _Features:
    """Which columns play which part."""

    query: list[str]
    document: list[str]
    user: list[str]
    document_ids: list[str]
    user_ids: list[str]
    dense: list[str]
    sparse: list[str]
    shallow: list[str]


def translate(
    keys: Mapping[str, Any],
    columns: Sequence[str],
    label: str,
    place: str,
    mistake: Callable[[str], None],
    note: Callable[[str], None],
) -> Detext:
    """Return what DeText's keys say in ours.

    Parameters
    ----------
    keys
        Of the coordinate, checked.
    columns
        Of the training rows.
    label
        The response's name, by the configuration.
    place
        Where the keys stand, for what is said of them.
    mistake, note
        Called with what can't be run, and with what is done another way.
    """
    for key, why in REFUSED.items():
        if keys.get(key) not in _NOTHING:
            mistake(f"{place}.{key}: {why}")
    for key, why in UNSUPPORTED.items():
        if keys.get(key) not in _NOTHING:
            note(f"{place}.{key}: {why}")
    _check_loss(keys, place, mistake)
    features = _features(keys, columns)
    if not any(vars(features).values()):
        mistake(f"{place}: the rows have no features with DeText's names, and none are named")
    for name in [n for names in vars(features).values() for n in names]:
        if name not in columns and _pair(name, columns) is None:
            mistake(f"{place}: the rows have no column '{name}'{did_you_mean(name, columns)}")
    spec: dict[str, Any] = {"type": "deep", **_inputs(features, keys)}
    if features.query or features.document or features.user:
        spec["encoder"] = _encoder(keys, place, mistake)
    spec |= {
        "hidden": [size for size in _numbers(keys.get("num_hidden", [])) if size],
        "activation": "tanh",
        "skip": False,  # its wide features reach the score through the layers alone
        "training": _training(keys, place, note),
    }
    wide = [*features.sparse, *features.shallow]
    if wide:
        spec["wide"] = wide
        spec["wide_dim"] = keys.get("sparse_embedding_size", keys.get("sp_emb_size", 1))
        spec["skip"] = bool(features.shallow)
    if features.shallow and features.sparse:
        note(f"{place}: wide features reach both the shallow tower and the other layers")
    bags = {name: {"columns": _pair(name, columns) or [name]} for name in wide}
    if features.dense:
        spec["dense"] = features.dense
        bags |= {name: {"columns": [name]} for name in features.dense}
    return Detext(spec, bags, "label" if label not in columns and "label" in columns else label)


def _check_loss(keys: Mapping[str, Any], place: str, mistake: Callable[[str], None]) -> None:
    if int(keys.get("num_classes", 1)) > 1:
        mistake(f"{place}.num_classes: {keys['num_classes']} classes are not trained here, only 1")
    loss = keys.get("ltr_loss_fn", "pairwise")
    is_binary = str(keys.get("task_type", "")).startswith("binary")
    if loss != "pointwise" and not is_binary:
        mistake(
            f"{place}.ltr_loss_fn: '{loss}' compares rows, and its scores are no log-odds for "
            "random effects to add to; 'pointwise' is"
        )


def _features(keys: Mapping[str, Any], columns: Sequence[str]) -> _Features:
    named = {key: _names(keys.get(key)) for key in MAPPED if "column_name" in key}
    if any(named.values()):
        return _Features(
            named["query_column_name"],
            named["doc_text_column_names"],
            named["user_text_column_names"],
            named["doc_id_column_names"],
            named["user_id_column_names"],
            named["dense_ftrs_column_names"],
            named["sparse_ftrs_column_names"],
            named["shallow_tower_sparse_ftrs_column_names"],
        )
    # As DeText had it first: a name's beginning tells.
    names = _names(keys.get("feature_names")) or list(columns)

    def beginning(*starts: str) -> list[str]:
        return [name for name in names if name.startswith(starts)]

    sparse = [
        name.removesuffix(ending)
        for name in beginning("wide_ftrs_sp")
        for ending, _ in _PAIRS
        if name.endswith(ending)
    ]
    return _Features(
        [name for name in names if name == "query"],
        beginning("doc_"),
        beginning("usr_"),
        beginning("docId_"),
        beginning("usrId_"),
        [name for name in names if name == "wide_ftrs"],
        list(dict.fromkeys(sparse)),
        [],
    )


def _inputs(features: _Features, keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return texts and ids: of sides, if there are several that can meet."""
    size = keys.get("num_units_for_id_ftr", 128)
    sides = {
        "document": _side(features.document, features.document_ids, size),
        "user": _side(features.user, features.user_ids, size),
        "query": _side(features.query, [], size),
    }
    sides = {name: side for name, side in sides.items() if side}
    if len(sides) < 2:
        return next(iter(sides.values()), {})
    windows = _numbers(keys.get("filter_window_sizes", [3]))
    is_cnn = keys.get("ftr_ext", "cnn") == "cnn"
    similarities = _names(keys.get("emb_sim_func", keys.get("sim_func_name"))) or ["inner"]
    return {
        "sides": sides,
        "dim": len(windows) * keys.get("num_filters", 100)
        if is_cnn
        else keys.get("num_units", 128),
        # DeText's `inner` scales the vectors to length 1.
        "interaction": [_SIMILARITIES.get(name, name) for name in similarities],
    }


def _side(texts: list[str], ids: list[str], size: int) -> dict[str, Any]:
    side: dict[str, Any] = {"text": texts} if texts else {}
    return side | ({"categorical": {name: {"dim": size} for name in ids}} if ids else {})


def _encoder(keys: Mapping[str, Any], place: str, mistake: Callable[[str], None]) -> dict[str, Any]:
    kind = keys.get("ftr_ext", "cnn")
    words: dict[str, Any] = {
        "tokenizer": "whitespace",
        "lowercase": False,
        "max_length": keys.get("max_len", 32),
        "word_dim": keys.get("num_units", 128),
    }
    if keys.get("vocab_file"):
        words["vocabulary"] = keys["vocab_file"]
    if kind == "cnn":
        own = {"windows": _numbers(keys.get("filter_window_sizes", [3]))}
        return {"type": "cnn", **own, "filters": keys.get("num_filters", 100), **words}
    if kind == "lstm":
        own = {
            "layers": keys.get("num_layers", 1),
            "bidirectional": keys.get("bidirectional", False),
        }
        return {"type": "lstm", "units": keys.get("num_units", 128), **own, **words}
    known = ("cnn", "lstm")
    what = (
        "is TensorFlow's; with a configuration of ours: encoder: {type: hf, model: FOLDER}"
        if kind == "bert"
        else f"is none of {', '.join(known)}{did_you_mean(str(kind), known)}"
    )
    mistake(f"{place}.ftr_ext: '{kind}' {what}")
    return {"type": "cnn"}


def _training(keys: Mapping[str, Any], place: str, note: Callable[[str], None]) -> dict[str, Any]:
    optimizer = keys.get("optimizer", "sgd")
    as_bert = optimizer in ("adamw", "bert_adam")
    if optimizer in ("sgd", "lamb"):
        note(f"{place}.optimizer: AdamW instead of '{optimizer}': mind the learning rate")
    epochs = keys.get("num_epochs")
    length = {"epochs": epochs} if epochs else {"steps": keys.get("num_train_steps", 1)}
    return {
        **length,
        "batch_size": keys.get("train_batch_size", 32),
        "learning_rate": keys.get("learning_rate", 1.0),
        "schedule": "linear" if keys.get("use_lr_schedule", True) else "constant",
        "warmup": float(keys.get("num_warmup_steps", 0)),
        "weight_decay": 0.01 if as_bert else 0.0,
        "epsilon": 1e-6 if as_bert else 1e-8,
        "bias_correction": bool(keys.get("use_bias_correction_for_adamw", not as_bert)),
        "clip": keys.get("max_gradient_norm", 1.0),
        "seed": keys.get("random_seed", 1234),
    }


def _pair(name: str, columns: Sequence[str]) -> list[str] | None:
    """Return the two columns of a sparse feature."""
    pairs = ([name + index, name + value] for index, value in _PAIRS)
    return next((pair for pair in pairs if set(pair) <= set(columns)), None)


def _names(value: Any) -> list[str]:
    return list(_split(value))


def _numbers(value: Any) -> list[int]:
    return [int(item) for item in _split(value)]


def _split(value: Any) -> Iterator[Any]:
    """Yield the items of a list, or of a text with commas."""
    if isinstance(value, str):
        yield from (item.strip() for item in value.split(",") if item.strip())
    elif isinstance(value, list | tuple):
        yield from value
    elif value is not None:
        yield value
