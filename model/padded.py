"""Every other encoder that `transformers` loads: its own forward over texts of about one length, padded.

Slower than `model.packed`, which computes BERT's family; imports transformers only when it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from model.errors import ModelCorrupt, ModelUnavailable
from model.pooling import Pooling


class Padded:
    """The model of a folder, read with `AutoModel`; of an encoder-decoder, its encoder.

    Raises:
        ModelUnavailable: transformers does not know the architecture.
        ModelCorrupt: the weights can't be read, or some are missing.
    """

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        import transformers

        transformers.utils.logging.disable_progress_bar()  # a worker's stderr is a log
        try:
            config = transformers.AutoConfig.from_pretrained(folder)
        except (OSError, ValueError, KeyError) as error:
            raise ModelUnavailable(
                f"{folder / 'config.json'} is of no model that transformers loads: {error}"
            ) from None
        text_encoders = transformers.models.auto.modeling_auto.MODEL_FOR_TEXT_ENCODING_MAPPING
        family = transformers.AutoModelForTextEncoding if type(config) in text_encoders else transformers.AutoModel
        try:
            model, report = family.from_pretrained(
                folder, config=config, dtype=dtype, local_files_only=True, output_loading_info=True
            )
        except Exception as error:  # safetensors' own class, OSError, RuntimeError for shapes, ValueError
            raise ModelCorrupt(f"{folder}: the weights can't be read: {error}; fetch the model again") from error
        if absent := sorted(name for name in report["missing_keys"] if "pooler" not in name):
            raise ModelCorrupt(
                f"{folder / 'model.safetensors'} has no weight {absent[0]} ({len(absent)} are missing): it is not the "
                f"model that config.json says"
            )
        if config.is_encoder_decoder and hasattr(model, "get_encoder"):
            model = model.get_encoder()
        self._model = model.eval().to(device)
        self.words: torch.Tensor = model.get_input_embeddings().weight.detach()
        self.default_pooling: Pooling = "last" if _is_causal(config) else "mean"
        self.max_tokens = _positions(config)
        self._pad = int(config.pad_token_id or 0)

    def hidden(self, ids: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """States of the last layer, [tokens, dim], of token ids [tokens] of texts end to end, without padding's."""
        batch, mask = _padded(ids, lengths, self._pad)
        return self._forward(mask, input_ids=batch)

    def forward_from_embeddings(self, x: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """`hidden` from word embeddings [tokens, dim]; differentiable in them."""
        batch, mask = _padded(x, lengths, 0)
        return self._forward(mask, inputs_embeds=batch)

    def _forward(self, mask: torch.Tensor, **batch: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = self._model(attention_mask=mask.long(), **batch).last_hidden_state
        return states[mask]


def _padded(rows: torch.Tensor, lengths: Sequence[int], value: int) -> tuple[torch.Tensor, torch.Tensor]:
    """[texts, longest, ...] of rows [tokens, ...] of texts end to end, and where it holds them."""
    texts = list(rows.split_with_sizes(list(lengths)))
    batch = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=value)
    return batch, torch.arange(max(lengths), device=rows.device) < torch.tensor(lengths, device=rows.device)[:, None]


def _is_causal(config: Any) -> bool:
    """Whether a token sees only those before it: families that are trained to go on, and never to fill gaps."""
    from transformers.models.auto import modeling_auto as auto

    return type(config) in auto.MODEL_FOR_CAUSAL_LM_MAPPING and type(config) not in auto.MODEL_FOR_MASKED_LM_MAPPING


def _positions(config: Any) -> int | None:
    """Longest row that the position embeddings allow; None without a limit."""
    limit = getattr(config, "max_position_embeddings", None)
    # RoBERTa's kin count positions from behind the padding index; two rows less harm no other.
    return None if limit is None or limit <= 0 else int(limit) - 2
