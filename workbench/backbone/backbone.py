"""A causal language model of the LLaMA family and its tokenizer: load, save, loss, generate, score."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from workbench import composition
from workbench.backbone import adapters
from workbench.backbone.batch import IGNORED, Batch, Output, collate, passes, token_nats
from workbench.backbone.encoding import Encoder, TextPolicy, set_end_token
from workbench.backbone.generation import BatchLimit, greedy, greedy_with_nats, has_plain_cache, option_nats
from workbench.backbone.loading import agree_on_ends, extend_rows, load_tokenizer, load_weights
from workbench.backbone.prompts import Selector, add_prompt, filled, install_selector, soft_embedding
from workbench.backbone.unpadded import allow_unpadded, lay_end_to_end, unpadded_states
from workbench.errors import refuse_bare_strings
from workbench.model_folder import check_folder, locate
from workbench.runtime.files import sync_folder, sync_tree

__all__ = ["Backbone", "Batch", "Output"]


class Backbone(nn.Module):
    """A transformers model and its tokenizer, with the operations that continual learning needs.

    Args:
        reload: Returns the model as loaded, before any change; `restore` calls it.
        tokenizer: The model's tokenizer, with an end token.
        text: Length limits, truncation and template of all prompts and answers.
        eval_batch_size: Maximum number of prompts that are generated from, or scored, at once.
        eval_batch_tokens: Maximum number of tokens, of prompts and of the longest possible answers, in a batch that is
            generated from; None: no limit.

    Raises:
        ValueError: The tokenizer or the text policy does not fit the model.
    """

    model: PreTrainedModel

    def __init__(
        self,
        reload: Callable[[], PreTrainedModel],
        tokenizer: PreTrainedTokenizerBase,
        *,
        text: TextPolicy | None = None,
        eval_batch_size: int = 64,
        eval_batch_tokens: int | None = None,
    ) -> None:
        super().__init__()
        self._reload = reload
        self.model = allow_unpadded(reload()).train()
        self.tokenizer = tokenizer
        self.eval_batch_size, self.eval_batch_tokens = eval_batch_size, eval_batch_tokens
        self.encoder = Encoder(tokenizer, self.model.config.max_position_embeddings, text or TextPolicy())
        loaded, self._loaded_encoder = copy.deepcopy(tokenizer), self.encoder
        self._reload_tokenizer: Callable[[], PreTrainedTokenizerBase] = lambda: copy.deepcopy(loaded)
        self._check_vocabulary()

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        dtype: str | None = None,
        end_token: str | None = None,
        activation_checkpointing: bool = False,
        text: TextPolicy | None = None,
        eval_batch_size: int = 64,
        eval_batch_tokens: int | None = None,
    ) -> Backbone:
        """Load a model of the LLaMA family from a folder, a GGUF file or the hub; "mini" and "micro" are shipped.

        Only safetensors and GGUF are read, no remote code is executed, and no weight may be missing: transformers would
        initialise a missing weight at random without an error.

        Args:
            path: A folder, a GGUF file, whose weights are dequantised, a hub id, "mini", "micro", or "smollm2" after
                `lightning fetch smollm2`.
            dtype: Precision of the weights, such as "bfloat16". None: float32, whatever the files hold, because small
                optimizer steps are lost in half precision.
            end_token: The token that ends an answer, in place of the tokenizer's own end token.
            activation_checkpointing: Whether each transformer block stores only its input and recomputes its other
                activations in the backward pass.
            text: Length limits, truncation and template of all prompts and answers.
            eval_batch_size: Maximum number of prompts that are generated from, or scored, at once.
            eval_batch_tokens: Maximum number of tokens of prompts and longest possible answers in such a batch.

        Raises:
            ValueError: The folder, the weights or the tokenizer cannot be used; the message says why.
        """
        if problems := check_folder(path):
            raise ValueError("\n".join(problems))
        source = locate(path)
        torch_dtype = getattr(torch, dtype or "float32", None)
        if not isinstance(torch_dtype, torch.dtype) or not torch_dtype.is_floating_point or torch_dtype.itemsize < 2:
            raise ValueError(f"dtype={dtype!r}: choose 'float32', 'bfloat16' or 'float16'.")
        try:
            tokenizer = load_tokenizer(source)
            set_end_token(tokenizer, end_token)
            return cls(
                lambda: load_weights(source, torch_dtype, activation_checkpointing),
                tokenizer,
                text=text,
                eval_batch_size=eval_batch_size,
                eval_batch_tokens=eval_batch_tokens,
            )
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def restore(self) -> None:
        """Restore the weights, the structure and the tokenizer as loaded; the model stays on its device."""
        device = self.device
        del self.model
        self.model = allow_unpadded(self._reload()).train().to(device)
        self.tokenizer = self._reload_tokenizer()
        self.encoder = self._loaded_encoder
        self.encoder.restore(self.tokenizer)

    def save(self, folder: str | Path) -> None:
        """Write a folder that plain transformers loads: the weights with all adapters folded in.

        Each adapter is also written to `folder/adapters/<name>`, for plain peft; soft prompts, which the plain model
        lacks, to `folder/prompts`. An existing folder is replaced only once the new one is complete.

        Args:
            folder: Where to write.
        """
        folder = Path(folder)
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        agree_on_ends(self.model, self.tokenizer)
        with self.merged():
            self.model.save_pretrained(partial, state_dict=adapters.plain_state_dict(self.model))
        self.tokenizer.save_pretrained(partial)
        adapters.save_adapters(self.model, partial / "adapters")
        if (embedding := soft_embedding(self.model)) is not None:
            adapters.save_prompts(embedding, self.encoder.prefix, partial / "prompts")
        sync_tree(partial)
        if folder.is_dir():
            shutil.rmtree(folder)
        os.replace(partial, folder)
        sync_folder(folder.parent)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return cast(torch.device, self.model.device)

    @property
    def decoder(self) -> nn.Module:
        """The model without its head: embeddings, `layers`, final norm."""
        return cast(nn.Module, getattr(self.model, self.model.base_model_prefix))

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the trainable parameters by name."""
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def freeze(self) -> None:
        """Freeze all parameters."""
        adapters.freeze(self)

    def add_tokens(self, tokens: Sequence[str], special: bool = False) -> list[int]:
        """Add tokens to the tokenizer, and a row for each to the embeddings and the head.

        Call it in `setup` or `before_task`: a run seeds the initial values of the new rows there
        (`loading.extend_rows`), and encodes the task's rows afterwards. The new rows train where the embeddings and
        the head train.

        Args:
            tokens: Texts of the tokens; one that the vocabulary already has is not added again.
            special: Whether `generate` omits them from its answers, like the end token.

        Returns:
            The id of each token.

        Raises:
            ValueError: The model is a composition, or its embeddings or its head carry an adapter.
        """
        ends = self.model.get_input_embeddings(), self.model.get_output_embeddings()
        if isinstance(self.model, composition.CalmForCausalLM) or [*map(type, ends)] != [nn.Embedding, nn.Linear]:
            message = "Tokens cannot be added to a composition, nor where the embeddings or the head carry an adapter."
            raise ValueError(f"{message} Add them before that.")
        known = len(self.tokenizer)
        tokens = [tokens] if isinstance(tokens, str) else list(tokens)
        self.tokenizer.add_tokens(tokens, special_tokens=special)
        if len(self.tokenizer) > known:
            extend_rows(self.model, known, len(self.tokenizer))
        return cast(list[int], self.tokenizer.convert_tokens_to_ids(tokens))

    def add_prompt(self, name: str, vectors: Tensor, bottleneck: int = 0) -> list[int]:
        """Add trained vectors that are read like tokens, and return their token ids (`put_before`).

        Args:
            name: A new name.
            vectors: Initial values, (length, width).
            bottleneck: Width of a residual network in front of the vectors; 0: none.

        Raises:
            ValueError: The model is a composition, its embeddings carry an adapter, or the name exists.
        """
        return add_prompt(self.model, name, vectors, bottleneck)

    def choose_prompts(self, selector: Selector) -> None:
        """Let each row begin with soft tokens that a selector, a part of the model from now on, chooses for it."""
        self.put_before(install_selector(self.model, selector))

    def put_before(self, token_ids: Sequence[int]) -> None:
        """Put tokens before every row that is encoded from now on; they do not count towards `data.max_length`."""
        self.encoder.prefix = list(token_ids)

    def add_adapter(self, name: str, kind: Any = "LORA", **settings: Any) -> None:
        """Add an adapter and freeze all other parameters.

        Args:
            name: Name of the new adapter.
            kind: Kind of adapter as peft names it (`workbench.backbone.adapters.KINDS`), or a config of peft. Several
                of "LORA" add up; any other has to be alone.
            settings: Keyword arguments of the kind's config in peft.

        Raises:
            ValueError: The kind or the settings are not supported; the message says why.
        """
        adapters.inject_kind(self.model, name, kind, settings)

    def fold_adapters(self) -> None:
        """Fold all adapters into the weights permanently."""
        adapters.fold_in(self.model)

    @property
    def adapter_names(self) -> list[str]:
        """Names of the adapters in the model, oldest first."""
        return adapters.adapter_names(self.model)

    def merged(self) -> AbstractContextManager[None]:
        """Fold the adapters into the weights within the context; afterwards the weights are bitwise the same."""
        return adapters.merged(self.model)

    def encode(self, rows: Dataset, max_new_tokens: int | None = None, packed: bool = False) -> Dataset:
        """Encode rows of text as token ids and label positions.

        Args:
            rows: See `Encoder.encode`, also for the columns of the result.
            max_new_tokens: Longest answer in tokens; None: as long as the longest answer in `rows`.
            packed: Whether texts of a corpus are concatenated into rows of full length.

        Raises:
            ValueError: The tokenizer has tokens without a row in the model's embeddings.
        """
        self._check_vocabulary()
        return self.encoder.encode(rows, max_new_tokens, packed)

    def _check_vocabulary(self) -> None:
        tokens, rows = len(self.tokenizer), self.model.get_input_embeddings().num_embeddings
        if tokens > rows:
            message = f"The tokenizer has {tokens} tokens and the model only {rows} embeddings."
            remedy = "Give the tokenizer of this model; a method adds tokens by Backbone.add_tokens."
            raise ValueError(f"{message} {remedy}")

    def collate(self, rows: Sequence[Any]) -> Batch:
        """Make a batch of encoded rows, padded on the right."""
        return collate(rows, self.pad_id)

    @property
    def pad_id(self) -> int:
        """The token used for padding, which is neither attended to nor learnt."""
        pad, end = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        return int(end if pad is None else pad)

    def forward(self, batch: Batch) -> Output:
        """Compute the loss at the labelled positions; logits of the prompt are never computed.

        The head and the cross-entropy take most of a small model's time. Rows are padded on the right, so that the
        causal mask alone hides the padding.

        Args:
            batch: Token ids, mask and labels (batch, time).

        Returns:
            An Output; its `loss_sum` and `count` add up over batches and processes.
        """
        batch = self._with_chosen_prompts(batch)
        sample, position = (batch.labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
        states = self._states(batch, sample, position)
        targets = batch.labels[sample, position + 1]
        head = self.model.get_output_embeddings()
        nats = token_nats(head, states, targets, self.model.get_input_embeddings().num_embeddings)
        return Output(nats, states, targets, sample, head)

    def _states(self, batch: Batch, sample: Tensor, position: Tensor) -> Tensor:
        """Return the final states at some positions of a batch, (positions, width)."""
        if (rows := lay_end_to_end(batch, self.decoder)) is not None:
            order = batch.attention_mask.flatten().cumsum(0) - 1  # place in the padded batch to place end to end
            return unpadded_states(self.decoder, batch, rows)[order[sample * rows.longest + position]]
        prompts_only = getattr(self.model.config, "encoder", False)  # in a composition, for the augmenting models
        inputs = {"prompt_mask": batch.attention_mask * (batch.labels == IGNORED)} if prompts_only else {}
        states: Tensor = self.decoder(input_ids=batch.input_ids, use_cache=False, **inputs).last_hidden_state
        return states[sample, position]

    def _with_chosen_prompts(self, batch: Batch) -> Batch:
        """Fill the slots for soft tokens if there are any (`choose_prompts`)."""
        embedding = soft_embedding(self.model)
        if embedding is None or not embedding.has_slots(batch):
            return batch
        with torch.no_grad(), self.evaluating():
            bare, sample, position = embedding.without_slots(batch)
            return embedding.choose(batch, self._states(bare, sample, position), sample)

    def _with_prompts(self, rows: list[list[int]]) -> list[list[int]]:
        """Fill the slots in the token ids of prompts."""

        def fill(encoded: list[dict[str, Any]]) -> Tensor:
            return self._with_chosen_prompts(self.collate(encoded).to(self.device)).input_ids

        return filled(self.model, rows, fill, self.eval_batch_size)

    @torch.inference_mode()  # less overhead per kernel than no_grad
    def generate(self, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
        """Generate greedy answers.

        The model's own generation config (sampling, penalties) is ignored, so that scores are comparable.

        Args:
            prompts: As in a task's rows: the template is added here, and a prompt that is too long is cut.
            max_new_tokens: Longest answer in tokens.

        Returns:
            One answer per prompt, in their order, without the end token.

        Raises:
            ValueError: `prompts` is one string.
        """
        refuse_bare_strings(prompts=prompts)
        encoded, new_tokens = self._encode_prompts(prompts, max_new_tokens)
        with self.evaluating():
            answers = greedy(
                self.model, self._with_prompts(encoded), new_tokens, self.batch_limit, self.tokenizer.eos_token_id
            )
        return [self.encoder.decode(token_ids) for token_ids in answers]

    def reads_once(self, encoded: Dataset, prompts: Sequence[str], max_new_tokens: int) -> bool:
        """Return whether `generate_with_nats` can be used: `generate` would read the same prompts, into a plain cache.

        Args:
            encoded: Rows of prompt and answer as returned by `encode`.
            prompts: Their prompts.
            max_new_tokens: Longest answer in tokens, as given to `encode`.
        """
        if not len(prompts) or not has_plain_cache(self.model):
            return False
        before, right = _divided(encoded)
        return before == self._encode_prompts(prompts, max_new_tokens)[0] and all(right)

    @torch.inference_mode()
    def generate_with_nats(self, encoded: Dataset, max_new_tokens: int) -> tuple[list[str], tuple[Tensor, Tensor]]:
        """Return what `generate` and `nats` return, to within rounding, with one reading of each prompt instead of two.

        Args:
            encoded: Rows of prompt and answer as returned by `encode`, for which `reads_once` is true.
            max_new_tokens: Longest answer in tokens.

        Returns:
            One answer per row; and (rows,), the nats of the right answers in float64, with (rows,), their tokens.
        """
        prompts, right = _divided(encoded)
        new_tokens = self.encoder.limits(max_new_tokens)[1]
        with self.evaluating():
            answers, nats = greedy_with_nats(
                self.model,
                self._with_prompts(prompts),
                right,
                new_tokens,
                self.batch_limit,
                self.tokenizer.eos_token_id,
            )
        return [self.encoder.decode(token_ids) for token_ids in answers], (nats, torch.tensor(list(map(len, right))))

    @torch.no_grad()
    def likeliest(self, prompts: Sequence[str], options: Sequence[str], max_new_tokens: int) -> list[str]:
        """Return the most likely of a few answers after each prompt; of equally likely ones the first.

        Args:
            prompts: As in `generate`.
            options: The answers. Their end token is not counted, since a reason may follow the option.
            max_new_tokens: Longest answer in tokens.

        Returns:
            One option per prompt.

        Raises:
            ValueError: `prompts` or `options` is one string.
        """
        refuse_bare_strings(prompts=prompts, options=options)
        if self.encoder.policy.joint:
            nats = self.nats(self._joint_options(prompts, options, max_new_tokens))[0]
        else:
            encoded, new_tokens = self._encode_prompts(prompts, max_new_tokens)
            parts = [self.encoder.answer(text, new_tokens) for text in options]
            answers = [token_ids if cut else token_ids[:-1] for token_ids, cut in parts]
            if has_plain_cache(self.model) and min(map(len, encoded), default=0) > 1:
                with self.evaluating():
                    nats = option_nats(self.model, self._with_prompts(encoded), answers, self.batch_limit)
            else:
                pairs = [(prompt, answer) for prompt in encoded for answer in answers]
                rows = [
                    {"input_ids": prompt + answer, "prompt_length": len(prompt), "row": 0} for prompt, answer in pairs
                ]
                nats = self.nats(Dataset.from_list(rows))[0]
        return [options[index] for index in nats.view(len(prompts), len(options)).argmin(1).tolist()]

    @torch.no_grad()
    def log_likelihood(self, prompts: Sequence[str], answers: Sequence[str]) -> Tensor:
        """Return the teacher-forced log-likelihood of each answer including its end token.

        Args:
            prompts: As in `generate`.
            answers: One for each prompt.

        Returns:
            (rows,), in nats, at most 0.

        Raises:
            ValueError: An argument is one string, or the two differ in length.
        """
        refuse_bare_strings(prompts=prompts, answers=answers)
        if len(prompts) != len(answers):
            raise ValueError(f"{len(prompts)} prompts and {len(answers)} answers were given. Give one for each.")
        rows = Dataset.from_dict({"prompt": list(prompts), "answer": list(answers)})
        return -self.nats(self.encode(rows))[0]

    @torch.no_grad()
    def nats(self, encoded: Dataset) -> tuple[Tensor, Tensor]:
        """Return the negative log-likelihood and the number of labelled tokens of each encoded row.

        Args:
            encoded: Rows as returned by `encode`.

        Returns:
            (rows,), nats in float64; and (rows,), counts.
        """
        rows = encoded.to_list()
        nats = torch.zeros(len(rows), dtype=torch.float64)
        counts = torch.zeros(len(rows), dtype=torch.long)
        with self.evaluating():
            for indices in passes([len(row["input_ids"]) for row in rows], self.eval_batch_size):
                output = self(self.collate([rows[index] for index in indices]).to(self.device))
                place = torch.tensor(indices)[output.sample.cpu()]
                nats.index_add_(0, place, output.token_nats.double().cpu())
                counts.index_add_(0, place, torch.ones_like(place))
        return nats, counts

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Set evaluation mode within the context, and restore each module's own mode afterwards."""
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training

    @property
    def batch_limit(self) -> BatchLimit:
        """How much is decoded at once."""
        return BatchLimit(self.eval_batch_size, self.eval_batch_tokens)

    def _encode_prompts(self, prompts: Sequence[str], max_new_tokens: int) -> tuple[list[list[int]], int]:
        """Return the token ids of each prompt, and the maximum length of an answer in tokens."""
        rows = Dataset.from_dict({"prompt": list(prompts)})
        encoded = self.encode(rows, max_new_tokens)  # cached by the encoder for the next evaluation
        new_tokens = self.encoder.limits(max_new_tokens)[1]
        return [token_ids or [self.tokenizer.eos_token_id] for token_ids in encoded["input_ids"][:]], new_tokens

    def _joint_options(self, prompts: Sequence[str], options: Sequence[str], max_new_tokens: int) -> Dataset:
        """Encode each prompt with each option as one text, as in training, without a label on the end token."""
        pairs = [{"prompt": prompt, "answer": option} for prompt in prompts for option in options]
        rows = self.encode(Dataset.from_list(pairs), max_new_tokens).to_list()
        for row in rows:
            if row["input_ids"][-1] == self.tokenizer.eos_token_id:
                row["input_ids"].pop()
            else:  # a row without room for an end token has its first label on the prompt's last token
                row["prompt_length"] += 1
        return Dataset.from_list(rows)


def _divided(encoded: Dataset) -> tuple[list[list[int]], list[list[int]]]:
    """Return the token ids of each row's prompt and of its right answer."""
    rows = list(zip(encoded["input_ids"][:], encoded["prompt_length"][:], strict=True))
    return [token_ids[:end] for token_ids, end in rows], [token_ids[end:] for token_ids, end in rows]
