"""Tokenizers and models small enough to build in a test, and real enough to be wrong with.

A tokenizer is a BPE trained on a few lines, byte-level (ChatML, Llama) or in SentencePiece's manner (Gemma, Mistral),
with its family's control tokens. A model has two layers and random weights.
"""

import importlib.util
import json
from functools import lru_cache
from pathlib import Path

TEMPLATES = Path(__file__).parent / "templates"

# tokenizer family -> begin, end, padding, further control tokens, further added tokens without power, byte-level?
_FAMILIES = {
    "chatml": ("<|im_start|>", "<|im_end|>", "<|endoftext|>", [], ["<think>", "</think>", "<tool_call>", "</tool_call>"], True),
    "qwen": (None, "<|im_end|>", "<|endoftext|>", ["<|im_start|>"], ["<think>", "</think>", "<tool_call>", "</tool_call>"], True),
    "llama3": (
        "<|begin_of_text|>", "<|eot_id|>", "<|finetune_right_pad_id|>",
        ["<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|python_tag|>"], [], True,
    ),
    "gemma": ("<bos>", "<eos>", "<pad>", ["<start_of_turn>", "<end_of_turn>"], ["<start_of_image>"], False),
    "mistral": (
        "<s>", "</s>", None,
        ["[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"],
        [], False,
    ),
}
# model family -> its tokenizer's family, its chat template, whether head and embedding are one
_MODELS = {
    "llama": ("chatml", "smollm2", True),
    "smollm3": ("chatml", "smollm2", True),
    "qwen2": ("qwen", "qwen2_5", True),
    "qwen3": ("qwen", "qwen3", True),
    "gemma3_text": ("gemma", "gemma3", True),
    "mistral": ("mistral", "mistral_v0_3", False),
}
_TEMPLATE_OF = {
    "chatml": "smollm2", "qwen": "qwen2_5", "llama3": "llama3", "gemma": "gemma3", "mistral": "mistral_v0_3",
}
# How Llama 3 and Qwen cut a text into words.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LINES = [
    "The cat sat on the mat and the dog ran after the ball.", "What is the capital of France? Paris is the capital.",
    "You are a helpful assistant. Hello, how are you today?", "0123456789 + - * / = ( ) [ ] { } < > | _ # . , : ; ! ?",
    "<|im_start|>user\nuser assistant system model tool", "def add(a, b):\n    return a + b\n\n",
] * 4


def real_template(name: str) -> str:
    """A chat template that a model is published with: one in tests/templates, else one that TRL carries."""
    own = TEMPLATES / f"{name}.jinja"
    if own.is_file():
        return own.read_text("utf-8")
    trl = Path(importlib.util.find_spec("trl").origin).parent  # found without importing it, which would take seconds
    return (trl / "chat_templates" / f"{name}.jinja").read_text("utf-8")


@lru_cache(maxsize=8)
def _backend(family: str) -> str:
    """The tokenizer's JSON; see `small_tokenizer`."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    begin, end, padding, special, plain, byte_level = _FAMILIES[family]
    names = [name for name in (padding, end, begin, *special) if name]
    if byte_level:
        tokenizer = Tokenizer(models.BPE())
        words = pre_tokenizers.ByteLevel(add_prefix_space=False)
        if family != "chatml":  # SmolLM2 cuts words as GPT-2 did; the others keep line breaks together
            split = pre_tokenizers.Split(Regex(_WORDS), "isolated")
            words = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        tokenizer.pre_tokenizer = words
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=360, special_tokens=names, initial_alphabet=sorted(alphabet), show_progress=False
        )
        tokenizer.train_from_iterator(_LINES, trainer)
    else:
        # SentencePiece: a space is a letter, one is put before the text (Mistral), unknown letters fall to bytes.
        trained = Tokenizer(models.BPE())
        trained.normalizer = normalizers.Replace(" ", "▁")
        trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
        trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>", *names], show_progress=False)
        trained.train_from_iterator(_LINES, trainer)
        learned = json.loads(trained.to_str())["model"]
        vocab = dict(learned["vocab"])
        for byte in range(256):
            vocab.setdefault(f"<0x{byte:02X}>", len(vocab))
        tokenizer = Tokenizer(
            models.BPE(vocab, [tuple(pair) for pair in learned["merges"]], byte_fallback=True, unk_token="<unk>", fuse_unk=True)
        )
        if family == "mistral":
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        else:
            tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in ["<unk>", *names]])
        ends = [decoders.Strip(" ", 1, 0)] if family == "mistral" else []
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *ends]
        )
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in plain])
    return tokenizer.to_str()


def small_tokenizer(folder: Path, template: str | None = None, family: str = "chatml"):
    """Write a tokenizer into the folder and give it back as `tuner.encode.load_tokenizer` loads it.

    Args:
        template: the chat template's text; None for the family's own, "" for none at all.
        family: "chatml" (SmolLM2), "qwen", "llama3", "gemma" or "mistral".
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    begin, end, padding, _, _, byte_level = _FAMILIES[family]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    extra = {} if byte_level else {"unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_backend(family)), bos_token=begin, eos_token=end, pad_token=padding,
        clean_up_tokenization_spaces=False, **extra,
    )
    tokenizer.chat_template = real_template(_TEMPLATE_OF[family]) if template is None else template or None
    tokenizer.save_pretrained(folder)
    from tuner.encode import load_tokenizer

    load_tokenizer.cache_clear()  # the same folder may hold another tokenizer by now
    return load_tokenizer(str(folder))


def small_base(folder: Path, family: str = "llama", template: str | None = None) -> Path:
    """Write a base model into the folder: two layers of random weights (always the same), tokenizer and template.

    Args:
        family: "llama" (as SmolLM2 is), "qwen2", "qwen3", "gemma3_text", "mistral" or "smollm3".
        template: the chat template's text; None for the family's own.

    Returns:
        The folder, in which `tuner.models.load_base` finds all it needs.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = Path(folder)
    tokens, name, tied = _MODELS[family]
    tokenizer = small_tokenizer(folder, real_template(name) if template is None else template, tokens)
    further = {"head_dim": 16} if family in ("qwen3", "gemma3_text") else {}
    config = AutoConfig.for_model(
        family, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=128,
        vocab_size=-(-len(tokenizer) // 32) * 32, max_position_embeddings=2048, tie_word_embeddings=tied,
        initializer_range=0.1, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, **further,
    )
    state = torch.get_rng_state()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    torch.set_rng_state(state)
    model.save_pretrained(folder)
    return folder


def small_encoder(folder: Path, family: str = "bert") -> Path:
    """Write an encoder without a head into the folder: two layers of random weights (always the same), and a tokenizer of words.

    Args:
        family: "bert" (as MiniLM is), "roberta", "deberta-v2" or "modernbert".
    """
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    words = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    words.normalizer, words.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words.train_from_iterator(_LINES, trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False))
    second = ":1" if family == "bert" else ""
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair=f"[CLS] $A [SEP] $B{second} [SEP]{second}", special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]", model_max_length=64,
    ).save_pretrained(folder)
    further = {"deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 32, "norm_rel_ebd": "layer_norm", "share_att_key": True, "type_vocab_size": 0}, "roberta": {"type_vocab_size": 1, "max_position_embeddings": 66}}
    config = AutoConfig.for_model(family, **{
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "vocab_size": 320, "max_position_embeddings": 64,
        "pad_token_id": 0, "initializer_range": 0.1, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3, **further.get(family, {}),
    })
    state = torch.get_rng_state()
    torch.manual_seed(0)
    model = AutoModel.from_config(config, dtype=torch.bfloat16)
    torch.set_rng_state(state)
    model.save_pretrained(folder)
    return folder


def base_entry(folder: Path, id: str = "test/small") -> dict:
    """What a run's base.json says of such a base model."""
    return {
        "id": id, "revision": "", "dir": str(Path(folder)), "what": "a random model of two layers",
        "licence": {"license": "apache-2.0"},
    }


# family -> its config besides the channels; how it sees pictures
_IMAGES = {
    "resnet": (dict(embedding_size=32, hidden_sizes=[32, 64], depths=[1, 1], layer_type="basic"), "ConvNextImageProcessor"),
    "resnet-bottleneck": (dict(embedding_size=32, hidden_sizes=[64, 128], depths=[2, 1], layer_type="bottleneck"), "ConvNextImageProcessor"),
    "convnextv2": (dict(hidden_sizes=[64, 128], depths=[1, 1], num_stages=2, image_size=32), "ConvNextImageProcessor"),
    "vit": (dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, image_size=32, patch_size=8), "ViTImageProcessor"),
    "dinov2": (dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, mlp_ratio=2, image_size=42, patch_size=8), "BitImageProcessor"),
}


def small_seer(folder: Path, family: str = "resnet", classes: int = 7) -> Path:
    """Write a model of pictures into the folder: random weights (always the same), moved batch-norm statistics, and how it sees.

    Args:
        family: "resnet", "resnet-bottleneck", "convnextv2", "vit" or "dinov2".
        classes: of the head that it comes with; 0 for a base without one, as DINOv2 is published.
    """
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    its, seen = _IMAGES[family]
    names = {number: f"class {number}" for number in range(classes)}
    config = AutoConfig.for_model(family.split("-")[0], **its, initializer_range=0.1, **({"id2label": names, "label2id": {name: number for number, name in names.items()}} if classes else {}))
    state = torch.get_rng_state()
    torch.manual_seed(0)
    model = (AutoModelForImageClassification if classes else AutoModel).from_config(config, dtype=torch.float32)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # as a trained one has them
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 1.5)
    torch.set_rng_state(state)
    model.save_pretrained(folder)
    size = {"ConvNextImageProcessor": {"size": {"shortest_edge": 32}, "crop_pct": 0.875}, "ViTImageProcessor": {"size": {"height": 32, "width": 32}},
            "BitImageProcessor": {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}, "do_center_crop": True}}[seen]
    (folder / "preprocessor_config.json").write_text(json.dumps({
        "image_processor_type": seen, "do_resize": True, "resample": 3, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25], **size,
    }))
    from tuner import seeing

    seeing.load.cache_clear()  # the same folder may hold another model by now
    return folder
