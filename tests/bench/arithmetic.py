"""The arithmetic that training usefully does: what MFU divides by the machine's best product.

Per token that is no padding, with N parameters in the frozen linear layers, Hd in the head, f the share of positions whose
logits are needed, L LoRA parameters, T the mean attended length, a the width of all heads and l layers:

    4 N + 4 f Hd + 6 L + 6 T a l                           (reference: performance notes, section 3)

Forward is 2 N + 2 f Hd + 2 L + 2 T a l (causal: half of T is attended); backward has the gradient of the input only for
what is frozen, of input and weight for LoRA, and twice the forward of attention. What is done again (checkpointing) or
only to unpack 4-bit weights is overhead and counts nothing.
"""

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Shape:
    """What the arithmetic of a model follows from.

    Args:
        linear: N, parameters of all linear layers but the head.
        head: Hd, vocabulary times hidden.
        lora_per_rank: inputs plus outputs of all linear layers but the head.
        layers, attention: l and a, the width of all query heads together.
    """

    linear: int
    head: int
    lora_per_rank: int
    layers: int
    attention: int

    def flop(self, rank: int, lengths: Iterable[int], learned: int) -> float:
        """Useful floating-point operations of training on rows of these lengths, with so many learned tokens in all."""
        lengths = list(lengths)
        per_token = 4 * self.linear + 6 * rank * self.lora_per_rank
        # T weighted by tokens, times tokens, is the sum of squares.
        attended = sum(length * length for length in lengths)
        return per_token * sum(lengths) + 4 * learned * self.head + 6 * attended * self.attention * self.layers


def skeleton(base_dir: str | Path):
    """The model's structure without memory for its weights."""
    from transformers import AutoConfig

    return of_config(AutoConfig.from_pretrained(base_dir, local_files_only=True))


def of_config(config):
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    with init_empty_weights():
        return AutoModelForCausalLM.from_config(config)


def _linears(model) -> list:
    from torch import nn

    head = model.get_output_embeddings()
    return [module for module in model.modules() if isinstance(module, nn.Linear) and module is not head]


def shape_of(model) -> Shape:
    """The numbers of a model, counted from its layers and not from what its config's fields are called."""
    head, config = model.get_output_embeddings(), model.config.get_text_config()
    linears = _linears(model)
    return Shape(
        linear=sum(its.in_features * its.out_features for its in linears), head=head.in_features * head.out_features,
        lora_per_rank=sum(its.in_features + its.out_features for its in linears), layers=config.num_hidden_layers,
        attention=config.num_attention_heads * (getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads),
    )


def layer_shapes(model) -> list[tuple[int, int]]:
    """Each different (inputs, outputs) among the linear layers and the head."""
    return sorted({(its.in_features, its.out_features) for its in [*_linears(model), model.get_output_embeddings()]})


def mfu(flop: float, seconds: float, best_gflops: float) -> float:
    """The share of the best product's speed that was useful."""
    return flop / seconds / (best_gflops * 1e9)


def main() -> None:
    """Count the numbers of a base model and write them down."""
    base_dir, out_path = sys.argv[1:]
    Path(out_path).write_text(json.dumps(asdict(shape_of(skeleton(base_dir)))), "utf-8")


if __name__ == "__main__":
    main()
