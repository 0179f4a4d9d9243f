"""The hybrid decoder: embeddings, blocks of Mamba-2 / attention / MoE / MLP, and the language head.

Parameter names and shapes are those of transformers' `NemotronHForCausalLM`, so weights go both
ways with `load_state_dict(strict=True)`. The config is transformers' `NemotronHConfig`.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import GenerationMixin, NemotronHConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput

from omni.backbone.attention import Attention, Mask, causal_mask
from omni.backbone.cache import MIN_CAPACITY, HybridCache, KeyValueState, LayerState, MambaState
from omni.backbone.layers import MLP, ResidualLinear, RMSNorm, upcast
from omni.backbone.mamba import CausalConv, MambaMixer
from omni.backbone.moe import Experts, MoE, Router
from omni.backbone.native.step import NativeStep, try_steps
from omni.backbone.products import Linear
from omni.backbone.rows import Rows
from omni.backbone.ssd import number_runs
from omni.errors import AlignmentError, ConfigError, RequestError

Mixer = MambaMixer | Attention | MoE | MLP


@dataclass
class HybridOutput(ModelOutput):
    """What a forward call returns.

    Attributes:
        last_hidden_state: (batch, kept, hidden) after the last norm; kept as in `logits`.
        logits: (batch, kept, vocab) at least float32, None from `HybridModel`.
        hidden_states: If asked for: the input of every block and the normed end, each
            (batch, seq, hidden).
        cache: The cache that was given, brought up to date.
    """

    last_hidden_state: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    cache: HybridCache | None = None


def check_config(config: NemotronHConfig) -> None:
    """Refuse settings that the decoder would have to ignore.

    Raises:
        ConfigError: A field asks for something that is not implemented, or fields contradict.
    """
    unsupported = {
        "num_nextn_predict_layers": (config.num_nextn_predict_layers, 0),
        "sliding_window": (config.sliding_window, None),
        "attention_bias": (config.attention_bias, False),
        "hidden_dropout": (config.hidden_dropout, 0.0),
    }
    for name, (found, expected) in unsupported.items():
        if found != expected:
            raise ConfigError(
                f"{name} is {found}, but the hybrid decoder supports only {expected}; "
                f"set {name} to {expected} to load the model without it."
            )
    divisions = {
        "mamba_num_heads": "n_groups",
        "num_attention_heads": "num_key_value_heads",
    }
    for total, part in divisions.items():
        if getattr(config, total) % getattr(config, part):
            raise ConfigError(
                f"{total} is {getattr(config, total)}, which {part} {getattr(config, part)} does "
                "not divide; heads are shared out in groups of equal size."
            )


def build_mixer(config: NemotronHConfig, kind: str) -> Mixer:
    """Build the mixer of one block from its layer type.

    Raises:
        ConfigError: The layer type is unknown.
    """
    match kind:
        case "linear_attention":
            return MambaMixer(config)
        case "full_attention":
            return Attention(config)
        case "moe":
            return MoE(config)
        case "mlp":
            return MLP(
                config.hidden_size,
                config.intermediate_size,
                bias=config.mlp_bias,
                activation=config.mlp_hidden_act,
            )
    raise ConfigError(
        f"Unknown layer type {kind!r}; known are linear_attention (M), full_attention (*), "
        "moe (E) and mlp (-)."
    )


class HybridBlock(GradientCheckpointingLayer):
    """Residual + mixer(norm(x))."""

    def __init__(self, config: NemotronHConfig, kind: str) -> None:
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.mixer = build_mixer(config, kind)

    def forward(
        self,
        hidden_states: Float[Tensor, "batch seq hidden"],
        *,
        mask: Bool[Tensor, "batch seq"] | None = None,
        attention_mask: Mask | None = None,
        segment_ids: Int[Tensor, "batch seq"] | None = None,
        state: LayerState = None,
    ) -> Float[Tensor, "batch seq hidden"]:
        """Mix and add; `mask`, `segment_ids` and `state` are as in the mixers."""
        normed = self.norm(hidden_states)
        if isinstance(self.mixer, MambaMixer):
            assert state is None or isinstance(state, MambaState)
            mixed = self.mixer(normed, mask, segment_ids, state)
        elif isinstance(self.mixer, Attention):
            assert state is None or isinstance(state, KeyValueState)
            mixed = self.mixer(normed, attention_mask, state)
        else:
            mixed = self.mixer(normed)
        return hidden_states + mixed


class HybridPreTrainedModel(PreTrainedModel):
    """What both classes share with transformers: loading, initialisation, checkpointing."""

    config: NemotronHConfig
    config_class = NemotronHConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["HybridBlock"]  # noqa: RUF012 (transformers' attribute)
    _skip_keys_device_placement = ["cache"]  # noqa: RUF012
    _keep_in_fp32_modules_strict = ["e_score_correction_bias"]  # noqa: RUF012
    _supports_sdpa = True
    _is_stateful = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise one module, as Mamba-2 and GPT-2 do.

        Linear layers and embeddings are normal with `initializer_range`; set that near
        1 / sqrt(hidden_size) for small models. Layers that write to the residual stream are scaled
        down by the square root of their number.

        transformers calls this only for modules that own parameters, children first.
        """
        super()._init_weights(module)
        config = self.config
        depth = len(config.layer_types) if config.rescale_prenorm_residual else 1
        residual_std = config.initializer_range / math.sqrt(depth)
        if isinstance(module, MambaMixer):
            heads = module.num_heads
            init.copy_(module.A_log, torch.arange(1, heads + 1).float().log())
            init.ones_(module.D)
            log_min, log_max = math.log(config.time_step_min), math.log(config.time_step_max)
            dt = torch.exp(log_min + torch.rand(heads) * (log_max - log_min))
            dt = dt.clamp(min=config.time_step_floor)
            init.copy_(module.dt_bias, dt + torch.log(-torch.expm1(-dt)))  # inverse of softplus
        elif isinstance(module, CausalConv):
            bound = module.weight.shape[-1] ** -0.5  # fan-in of a depthwise filter
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, ResidualLinear):
            init.normal_(module.weight, std=residual_std)
        elif isinstance(module, Router):
            init.normal_(module.weight, std=config.initializer_range)
            init.zeros_(module.e_score_correction_bias)
        elif isinstance(module, Experts):
            init.normal_(module.up_proj, std=config.initializer_range)
            init.normal_(module.down_proj, std=residual_std)


class HybridModel(HybridPreTrainedModel):
    """The decoder without its language head.

    1. Embed the ids, or take embeddings as they are.
    2. Bring padding behind the real positions (`rows.py`).
    3. Run the blocks; each keeps its own state in the cache.
    4. Normalise and put the positions back.

    On a CPU a step of one row does 3 and the norm in one call, where it can (`native`).
    """

    block_type = HybridBlock

    def __init__(self, config: NemotronHConfig) -> None:
        super().__init__(config)
        check_config(config)
        self.embeddings: nn.Module = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([HybridBlock(config, kind) for kind in config.layer_types])
        self.norm_f = RMSNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.native = NativeStep()
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the embedding table."""
        return self.embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embedding table."""
        self.embeddings = value

    def new_cache(self, capacity: int = MIN_CAPACITY) -> HybridCache:
        """Return an empty cache for this model; see `HybridCache`."""
        return HybridCache(self.config.layer_types, capacity)

    def forward(
        self,
        input_ids: Int[Tensor, "batch seq"] | None = None,
        *,
        inputs_embeds: Float[Tensor, "batch seq hidden"] | None = None,
        attention_mask: Tensor | None = None,
        segment_ids: Tensor | None = None,
        cache: HybridCache | None = None,
        logits_to_keep: int = 0,
        output_hidden_states: bool = False,
    ) -> HybridOutput:
        """Read a batch of sequences.

        Args:
            input_ids: Token ids; give these or `inputs_embeds`.
            inputs_embeds: Embeddings in place of ids.
            attention_mask: (batch, seq), True at real positions; padding may be anywhere. With a
                cache also (batch, past + seq), of which the end is read.
            segment_ids: (batch, seq), packed sequences: a new value, at padding too, starts a new
                sequence, which sees nothing of the one before. Not together with `cache`.
            cache: Memory of earlier positions, brought up to date in place. It carries no
                gradients, so the call runs without them.
            logits_to_keep: Return only the last so many positions; 0 returns all.
            output_hidden_states: Also return the input of every block.

        Raises:
            RequestError: Both or none of `input_ids` and `inputs_embeds`; `segment_ids` together
                with `cache`; no position at all.
            AlignmentError: `attention_mask` or `segment_ids` do not fit the input.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise RequestError("Give exactly one of input_ids and inputs_embeds.")
        with torch.set_grad_enabled(torch.is_grad_enabled() and cache is None):
            if inputs_embeds is None:
                inputs_embeds = self.embeddings(input_ids)
            rows, segments = self._arrange(inputs_embeds, attention_mask, segment_ids, cache)
            hidden = rows.sort(inputs_embeds)
            if self.config.residual_in_fp32:
                hidden = upcast(hidden)
            past = 0
            if cache is not None:
                past = cache.get_seq_length()
                cache.advance(hidden.shape[1], rows.mask)
            visible = causal_mask(
                hidden.shape[1],
                past,
                key_mask=cache.key_mask if cache is not None else None,
                segment_ids=segments,
            )

            def run_blocks() -> Tensor:
                x = hidden
                for index, layer in enumerate(self.layers):
                    if output_hidden_states:
                        collected.append(rows.restore(x))
                    x = layer(
                        x,
                        mask=rows.mask,
                        attention_mask=visible,
                        segment_ids=segments,
                        state=cache.layers[index] if cache is not None else None,
                    )
                normed: Tensor = self.norm_f(x)
                return normed

            collected: list[Tensor] = []
            normed = None
            is_step = cache is not None and not output_hidden_states
            if is_step and self.native.takes(hidden, rows.mask, visible, past):
                assert cache is not None
                normed = self.native.step(self, hidden, cache, run_blocks)
            if normed is None:
                normed = run_blocks()
            hidden = normed
            if output_hidden_states:
                collected.append(rows.restore(hidden))
        return HybridOutput(
            last_hidden_state=rows.restore(hidden, logits_to_keep),
            hidden_states=tuple(collected) if output_hidden_states else None,
            cache=cache,
        )

    def _arrange(
        self,
        inputs_embeds: Float[Tensor, "batch seq hidden"],
        attention_mask: Tensor | None,
        segment_ids: Tensor | None,
        cache: HybridCache | None,
    ) -> tuple[Rows, Int[Tensor, "batch seq"] | None]:
        batch, seq, _ = inputs_embeds.shape
        if seq == 0:
            raise RequestError("The input has no positions; give at least one token.")
        past = cache.get_seq_length() if cache is not None else 0
        rows = Rows.from_mask(attention_mask, batch=batch, seq=seq, past=past)
        if segment_ids is None:
            return rows, None
        if cache is not None:
            raise RequestError(
                "segment_ids and cache exclude each other: a cache continues one sequence per row."
            )
        if segment_ids.shape != (batch, seq):
            raise AlignmentError(
                f"segment_ids has shape {tuple(segment_ids.shape)}, but the input is "
                f"{(batch, seq)}: give one id per position."
            )
        # Numbered first: sorting brings together equal ids that padding of another id kept apart.
        return rows, number_runs(rows.sort_ids(number_runs(segment_ids)))


class HybridForCausalLM(HybridPreTrainedModel, GenerationMixin):
    """The decoder with its language head."""

    _tied_weights_keys = {"lm_head.weight": "model.embeddings.weight"}  # noqa: RUF012

    def __init__(self, config: NemotronHConfig) -> None:
        super().__init__(config)
        self.model = HybridModel(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def new_cache(self, capacity: int = MIN_CAPACITY) -> HybridCache:
        """Return an empty cache for this model; see `HybridCache`."""
        return self.model.new_cache(capacity)

    def forward(
        self,
        input_ids: Int[Tensor, "batch seq"] | None = None,
        *,
        inputs_embeds: Float[Tensor, "batch seq hidden"] | None = None,
        attention_mask: Tensor | None = None,
        segment_ids: Tensor | None = None,
        cache: HybridCache | None = None,
        logits_to_keep: int = 0,
        output_hidden_states: bool = False,
        return_dict: bool = True,
    ) -> HybridOutput | tuple[Any, ...]:
        """Read a batch of sequences and score the next token.

        Arguments and errors are those of `HybridModel.forward`; `return_dict=False` gives a tuple,
        as in transformers. `logits` are at least float32.
        """
        past = 0 if cache is None else cache.get_seq_length()
        output = self.model(
            input_ids,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            segment_ids=segment_ids,
            cache=cache,
            logits_to_keep=logits_to_keep,
            output_hidden_states=output_hidden_states,
        )
        with torch.set_grad_enabled(torch.is_grad_enabled() and cache is None):
            hidden = output.last_hidden_state
            assert hidden is not None
            # The last position of a longer prompt looks the same, but is not a step.
            is_step = cache is not None and cache.get_seq_length() == past + 1
            native = self.model.native
            if is_step and native.takes(hidden, None, None, past):
                output.logits = native.score(self.lm_head, hidden)
            if output.logits is None:
                output.logits = upcast(self.lm_head(hidden))
        return output if return_dict else output.to_tuple()

    def compile_step(self, *, is_wanted: bool = True) -> bool:
        """Decode by native steps from now on; see `omni.backbone.native.step.try_steps`.

        Args:
            is_wanted: False leaves all steps to PyTorch.
        """
        self.model.native = NativeStep(is_wanted=is_wanted)
        return is_wanted and try_steps(self)

    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:
        """Choose what `forward` gets in one step of transformers' `generate`."""
        inputs = super().prepare_inputs_for_generation(input_ids, **kwargs)
        return to_forward_arguments(inputs)

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any
    ) -> None:
        if generation_config.use_cache and model_kwargs.get("cache") is None:
            model_kwargs["cache"] = self.new_cache()


def to_forward_arguments(inputs: dict[str, Any]) -> dict[str, Any]:
    """Leave out of the inputs which transformers prepares for a step what is not ours."""
    inputs.pop("use_cache", None)
    return inputs
