"""Directories with tokenizers small enough to train in a test, one of each kind that the library reads."""

import io
import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

CORPUS = [
    "Once upon a time there was a little griffin who lived on a hill.",
    "  The  griffin had 12 friends,\nand 345 toys.\n\nShe said: <b>no</b> to <start> and <end>!",
    "Жила-была маленькая птица. 昔々、あるところに鳥がいました。 user model assistant",
    "def end_of_turn(bos): return bos > 0  # of turn, start of turn",
] * 20
NAMES = {"bos": "<bos>", "eos": "<eos>", "pad": "<pad>", "unk": "<unk>"}
TURNS = ["<start_of_turn>", "<end_of_turn>"]
CONTROL = [*NAMES.values(), *TURNS]


def write_config(directory: Path, **values: object) -> None:
    """Write `tokenizer_config.json`: the names of the special tokens, and `values`."""
    config = {f"{role}_token": name for role, name in NAMES.items()} | values
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


def byte_level_pipeline(**options: bool) -> Tokenizer:
    """A byte-level BPE as the bundled model has it; `options` go to the pre-tokenizer."""
    pipeline = Tokenizer(models.BPE())
    pipeline.pre_tokenizer = pre_tokenizers.ByteLevel(**{"add_prefix_space": False} | options)
    pipeline.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=CONTROL,
        show_progress=False,
    )
    pipeline.train_from_iterator(CORPUS, trainer)
    return pipeline


def byte_fallback_pipeline() -> Tokenizer:
    """A BPE over characters with byte tokens and marked spaces, as Gemma's `tokenizer.json`.

    Like Gemma's it has added tokens that are plain text: line breaks and HTML tags.
    """
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "\u2581")
    trainer = trainers.BpeTrainer(vocab_size=200, show_progress=False)
    trained.train_from_iterator(CORPUS, trainer)
    model = json.loads(trained.to_str())["model"]
    tokens = [*CONTROL, *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]
    merges = [tuple(pair) for pair in model["merges"]]
    vocabulary = {token: token_id for token_id, token in enumerate(tokens)}
    pipeline = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    pipeline.normalizer = normalizers.Replace(" ", "\u2581")
    pipeline.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    pipeline.add_special_tokens(CONTROL)
    pipeline.add_tokens([AddedToken(text, normalized=False, special=False) for text in ("\n\n", "<b>")])
    return pipeline


def sentencepiece_model(**options: object) -> bytes:
    """A SentencePiece model like Gemma's: byte fallback, text as it is, turn markers as user-defined symbols."""
    import sentencepiece

    model = io.BytesIO()
    settings: dict[str, object] = {
        "vocab_size": 480,
        "model_type": "bpe",
        "byte_fallback": True,
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "normalization_rule_name": "identity",
        "split_digits": True,
        "user_defined_symbols": [*TURNS, "\n\n", "<b>"],
        **{f"{role}_id": token_id for role, token_id in zip(("pad", "eos", "bos", "unk"), range(4), strict=True)},
        **{f"{role}_piece": name for role, name in NAMES.items()},
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(CORPUS), model_writer=model, **(settings | options))
    return model.getvalue()
