"""Every architecture that docs/production.md names, as a tiny random model of two blocks."""

import torch
import transformers

WIDTH, VOCABULARY = 16, 31
SIZES = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, intermediate_size=24)
SIZES |= dict(head_dim=8, max_position_embeddings=64)
GPT2_SIZES = dict(n_embd=16, n_layer=2, n_head=2)
OPT_SIZES = dict(hidden_size=16, word_embed_proj_dim=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=2)
GPT_NEO_SIZES = dict(hidden_size=16, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]])
PLAIN = {  # W_in and W_out
    "gpt2": GPT2_SIZES,
    "gpt_bigcode": GPT2_SIZES,
    "gpt_neo": GPT_NEO_SIZES | dict(intermediate_size=24),
    "gptj": GPT2_SIZES | dict(rotary_dim=4),
    "codegen": GPT2_SIZES | dict(n_head=4, rotary_dim=4),
    "gpt_neox": SIZES,
    "opt": OPT_SIZES,
    "bloom": dict(hidden_size=16, n_layer=2, n_head=2),
    "falcon": dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2),
    "mpt": dict(d_model=16, n_layers=2, n_heads=2, max_seq_len=64),
    "xglm": dict(d_model=16, ffn_dim=24, num_layers=2, attention_heads=2),
    "biogpt": SIZES,
    "phi": SIZES,
    "starcoder2": SIZES,
    "persimmon": SIZES,
    "nemotron": SIZES,
}
GATED = dict.fromkeys(
    ("llama", "mistral", "ministral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "olmo", "olmo2", "olmo3",
     "smollm3", "stablelm", "cohere", "cohere2", "granite", "exaone4", "ernie4_5", "hunyuan_v1_dense", "helium"),
    SIZES,
)  # fmt: skip
JOINED = dict.fromkeys(("phi3", "glm", "glm4"), SIZES)  # gate and up in one matrix
ARCHITECTURES = PLAIN | GATED | JOINED

EXPERTS = SIZES | dict(num_local_experts=2, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=8)
DEEPSEEK = EXPERTS | dict(n_routed_experts=2, n_group=1, topk_group=1, kv_lora_rank=8, q_lora_rank=8, v_head_dim=8)
DEEPSEEK |= dict(qk_nope_head_dim=8, qk_rope_head_dim=4, first_k_dense_replace=1)
MAMBA = dict(hidden_size=16, num_hidden_layers=2)
REFUSED = {  # architecture -> sizes, and what users call it
    "mixtral": (EXPERTS, "mixture-of-experts"),
    "qwen2_moe": (EXPERTS | dict(shared_expert_intermediate_size=8), "mixture-of-experts"),
    "qwen3_moe": (EXPERTS, "mixture-of-experts"),
    "olmoe": (EXPERTS, "mixture-of-experts"),
    "gpt_oss": (EXPERTS, "mixture-of-experts"),
    "phimoe": (EXPERTS, "mixture-of-experts"),
    "granitemoe": (EXPERTS, "mixture-of-experts"),
    "jetmoe": (SIZES, "mixture-of-experts"),
    "llama4_text": (EXPERTS | dict(intermediate_size_mlp=24), "mixture-of-experts"),
    "deepseek_v2": (DEEPSEEK, "mixture-of-experts"),
    "deepseek_v3": (DEEPSEEK, "mixture-of-experts"),
    "mamba": (MAMBA, "Mamba"),
    "mamba2": (MAMBA | dict(num_heads=4, head_dim=8, n_groups=1, state_size=8), "Mamba"),
    "falcon_mamba": (MAMBA, "Mamba"),
    "jamba": (SIZES, "Mamba"),
    "rwkv": (MAMBA | dict(attention_hidden_size=16), "Mamba"),
    "recurrent_gemma": (SIZES, "Mamba"),
}


def build(architecture: str, sizes: dict | None = None):
    """Return a random model without a parameter of 0, so that each edit shows. sizes: default the table's."""
    torch.manual_seed(0)
    special = dict(bos_token_id=0, eos_token_id=1, pad_token_id=2, vocab_size=VOCABULARY)
    sizes = sizes or ARCHITECTURES.get(architecture) or REFUSED[architecture][0]
    config = transformers.AutoConfig.for_model(architecture, **special, **sizes)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model
