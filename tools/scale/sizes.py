"""What a step is counted from: a model's sizes, read off its config; what is sampled and learned; GPUs and links."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PretrainedConfig

FP32, BF16 = 4, 2  # bytes of a number: weights, gradients and moments are kept in float32, products made in bfloat16


@dataclass(frozen=True)
class Model:
    """A decoder of Llama's kind (RMSNorm, gated MLP, no biases), dense or with routed experts in all layers."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int  # width of the MLP, or of one expert
    vocab: int
    tied: bool = False
    experts: int = 0
    active: int = 0  # experts of a token
    head_norms: bool = False  # norms of queries and keys

    @classmethod
    def of(cls, config: PretrainedConfig) -> Model:
        """Of a config of transformers. Raises ValueError for one of another kind."""
        if config.model_type not in ("llama", "mistral", "qwen3", "qwen3_moe"):
            raise ValueError(f"model_type {config.model_type}: expected llama, mistral, qwen3 or qwen3_moe")
        moe = config.model_type == "qwen3_moe"
        if moe and (config.mlp_only_layers or config.decoder_sparse_step != 1):
            raise ValueError("mlp_only_layers, decoder_sparse_step: expected experts in all layers")
        heads = config.num_attention_heads
        return cls(
            hidden=config.hidden_size,
            layers=config.num_hidden_layers,
            heads=heads,
            kv_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            inner=config.moe_intermediate_size if moe else config.intermediate_size,
            vocab=config.vocab_size,
            tied=config.tie_word_embeddings,
            experts=config.num_experts if moe else 0,
            active=config.num_experts_per_tok if moe else 0,
            head_norms=config.model_type.startswith("qwen3"),
        )

    @property
    def attention(self) -> int:
        """Weights of the four products around a layer's attention."""
        return self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)

    @property
    def expert(self) -> int:
        """Weights of a layer's MLP, or of one expert: gate, up and down."""
        return 3 * self.hidden * self.inner

    @property
    def routed(self) -> int:
        """Weights of all experts of all layers."""
        return self.layers * self.experts * self.expert

    @property
    def parameters(self) -> int:
        router = self.hidden * self.experts
        norms = 2 * self.hidden + 2 * self.head_dim * self.head_norms
        layer = self.attention + (self.experts or 1) * self.expert + router + norms
        return self.layers * layer + self.hidden + (1 if self.tied else 2) * self.vocab * self.hidden

    @property
    def used(self) -> int:
        """Weights of the layers that a token is multiplied with."""
        return self.layers * (self.attention + (self.active or 1) * self.expert + self.hidden * self.experts)

    @property
    def cached(self) -> int:
        """Bytes of keys and values of one token."""
        return BF16 * 2 * self.layers * self.kv_heads * self.head_dim

    def flops(self, tokens: float, context: float, predicted: float) -> float:
        """Of a forward of `tokens` that attend to `context` tokens on average, with `predicted` rows of logits."""
        attended = 2 * self.layers * self.heads * self.head_dim * context  # the scores, and as much for the values
        return 2 * (tokens * (self.used + attended) + predicted * self.vocab * self.hidden)


@dataclass(frozen=True)
class Batch:
    """What a step samples and learns from; lengths are means, in tokens."""

    prompts: int = 256
    samples: int = 16  # completions of a prompt
    prompt: int = 512
    completion: int = 4096
    longest: int = 16384  # of the completions
    updates: int = 4  # optimizer steps on it
    micro: int = 32768  # tokens that a GPU sends through the model at once

    @property
    def completions(self) -> int:
        return self.prompts * self.samples

    @property
    def learned(self) -> int:
        return self.completions * self.completion

    @property
    def tokens(self) -> int:
        """Tokens through the model: a prompt goes through once for all its completions (`shared_prompts.py`)."""
        return self.prompts * self.prompt + self.learned

    @property
    def context(self) -> float:
        """Tokens that a token attends to, on average, itself among them."""
        completions = self.learned * (self.prompt + (self.completion + 1) / 2)
        return (completions + self.prompts * self.prompt * (self.prompt + 1) / 2) / self.tokens


@dataclass(frozen=True)
class Machine:
    """A GPU and its links, one way: bytes, bytes/s, FLOP/s in bfloat16 without sparsity. All inputs, none measured."""

    name: str
    memory: float
    bandwidth: float
    flops: float = 989e12  # H100 SXM and H200 SXM: 1,979e12 with sparsity on the datasheet
    nvlink: float = 450e9  # NVLink 4: 900e9 both ways
    network: float = 50e9  # a 400 Gbit/s InfiniBand NDR port for each GPU, as in a DGX H100
    node: int = 8  # GPUs that share NVLink
    reached: float = 0.4  # of the FLOP/s: Llama 3's 38 to 43 % on H100 (arXiv 2407.21783, table 4)
    usable: float = 0.9  # of the memory: an assumption
    latency: float = 10e-6  # of a small all-reduce between the GPUs of a node: an assumption


H100 = Machine("H100", memory=80e9, bandwidth=3.35e12)
H200 = Machine("H200", memory=141e9, bandwidth=4.8e12)
