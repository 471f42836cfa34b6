"""One causal language model of the LLaMA family and its tokenizer: load, save, loss, generate, score."""

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
from workbench.backbone.encoding import Encoder, TextPolicy, end_with
from workbench.backbone.generation import Room, greedy, has_plain_cache, option_nats
from workbench.backbone.loading import agree_on_ends, extend_rows, load_tokenizer, load_weights
from workbench.errors import refuse_bare_strings
from workbench.model_folder import check_folder, locate
from workbench.runtime.files import sync_folder, sync_tree

__all__ = ["Backbone", "Batch", "Output"]


class Backbone(nn.Module):
    """A transformers model and its tokenizer behind the few operations that learning in sequence needs.

    Args:
        reload: Gives the model as it was before anything changed it; `restore` calls it.
        tokenizer: Its tokenizer, with an end token.
        text: Limits, truncation and template of every prompt and answer.
        eval_batch_size: The most prompts that are generated from, or scored, at once.
        eval_batch_tokens: The most tokens, of prompts and of the answers to come, that are generated from at once;
            None: not limited.

    Raises:
        ValueError: The tokenizer or the policy cannot serve this model.
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
        self.model = reload().train()
        self.tokenizer = tokenizer
        self.eval_batch_size, self.eval_batch_tokens = eval_batch_size, eval_batch_tokens
        self.encoder = Encoder(tokenizer, self.model.config.max_position_embeddings, text or TextPolicy())
        loaded, self._encoder = copy.deepcopy(tokenizer), self.encoder
        self._reload_tokenizer: Callable[[], PreTrainedTokenizerBase] = lambda: copy.deepcopy(loaded)
        self._check_rows()

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
        """Loads any LLaMA-family folder or hub id; "mini" and "micro" are the shipped ones.

        Safetensors only, no remote code, and every weight has to be there: transformers would fill
        a missing one with random numbers and go on.

        Args:
            path: A folder, a hub id, "mini" or "micro".
            dtype: Of the weights, such as "bfloat16". None: float32, whatever the file holds, because
                small steps are lost in half precision; a lower one is a choice to be made.
            end_token: What ends an answer, where it is not to be the tokenizer's own end token.
            activation_checkpointing: Whether each block keeps its input alone and computes the rest again for the
                gradients.
            text: Limits, truncation and template.
            eval_batch_size: The most prompts that are generated from, or scored, at once.
            eval_batch_tokens: The most tokens, of prompts and of the answers to come, that are generated from at once.

        Raises:
            ValueError: Names what is wrong with the folder, the weights or the tokenizer.
        """
        if problems := check_folder(path):
            raise ValueError("\n".join(problems))
        source = locate(path)
        torch_dtype = getattr(torch, dtype or "float32", None)
        if not isinstance(torch_dtype, torch.dtype) or not torch_dtype.is_floating_point or torch_dtype.itemsize < 2:
            raise ValueError(f"dtype={dtype!r}: choose 'float32', 'bfloat16' or 'float16'.")
        try:
            tokenizer = load_tokenizer(source)
            end_with(tokenizer, end_token)
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
        """Back to the weights, the structure and the tokenizer that were loaded, on the device where it is."""
        device = self.device
        del self.model
        self.model = self._reload().train().to(device)
        self.tokenizer = self._reload_tokenizer()
        self.encoder = self._encoder
        self.encoder.restore(self.tokenizer)

    def save(self, folder: str | Path) -> None:
        """Writes a folder that plain transformers loads: adapters folded in, and beside them as they are.

        Adapters go to `folder/adapters/<name>`, for plain peft. The folder appears whole, in place of an older one.
        """
        folder = Path(folder)
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        agree_on_ends(self.model, self.tokenizer)
        with self.merged():
            self.model.save_pretrained(partial, state_dict=adapters.plain_state_dict(self.model))
        self.tokenizer.save_pretrained(partial)
        adapters.save_adapters(self.model, partial / "adapters")
        sync_tree(partial)
        if folder.is_dir():
            shutil.rmtree(folder)
        os.replace(partial, folder)
        sync_folder(folder.parent)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return cast(torch.device, self.model.device)

    @property
    def decoder(self) -> nn.Module:
        """The stack without its head: embeddings, `layers`, final norm."""
        return cast(nn.Module, getattr(self.model, self.model.base_model_prefix))

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that train, by name."""
        return {key: value for key, value in self.model.named_parameters() if value.requires_grad}

    def freeze(self) -> None:
        """Nothing trains until a strategy says what does."""
        adapters.freeze(self)

    def add_tokens(self, tokens: Sequence[str], special: bool = False) -> list[int]:
        """Adds tokens to the tokenizer, and a row for each to the embeddings and the head.

        A method calls it in `setup` or `before_task`, for which a run seeds what the new rows are drawn from
        (`loading.extend_rows`). They train where the embeddings and the head do; nothing else changes. The
        rows of the task that comes are encoded with the new tokens.

        Args:
            tokens: Their texts; one that the tokenizer knows stays what it is.
            special: Whether `generate` leaves them out of its answers, as it does an end token.

        Returns:
            The id of each.

        Raises:
            ValueError: The model is a composition, or its embeddings or its head carry an adapter.
        """
        ends = self.model.get_input_embeddings(), self.model.get_output_embeddings()
        if isinstance(self.model, composition.CalmForCausalLM) or [*map(type, ends)] != [nn.Embedding, nn.Linear]:
            told = "Tokens cannot be added to a composition, nor where the embeddings or the head carry an adapter."
            raise ValueError(f"{told} Add them before that.")
        known = len(self.tokenizer)
        tokens = [tokens] if isinstance(tokens, str) else list(tokens)
        self.tokenizer.add_tokens(tokens, special_tokens=special)
        if len(self.tokenizer) > known:
            extend_rows(self.model, known, len(self.tokenizer))
        return cast(list[int], self.tokenizer.convert_tokens_to_ids(tokens))

    def add_adapter(self, name: str, **settings: Any) -> None:
        """Adds a low-rank adapter that alone trains from here on; `settings` are `LoraConfig`'s."""
        adapters.inject(self.model, name, settings)

    def fold_adapters(self) -> None:
        """Folds all adapters into the weights for good."""
        adapters.fold_in(self.model)

    @property
    def adapter_names(self) -> list[str]:
        """The adapters that are in place, oldest first."""
        return adapters.adapter_names(self.model)

    def merged(self) -> AbstractContextManager[None]:
        """Adapters folded in while the context lasts, and the very same bits after it."""
        return adapters.merged(self.model)

    def encode(self, rows: Dataset, max_new_tokens: int | None = None, packed: bool = False) -> Dataset:
        """Tokens and label positions of rows of text; arguments and columns are `Encoder.encode`'s.

        Raises:
            ValueError: The tokenizer has tokens that the model has no embeddings for.
        """
        self._check_rows()
        return self.encoder.encode(rows, max_new_tokens, packed)

    def _check_rows(self) -> None:
        tokens, rows = len(self.tokenizer), self.model.get_input_embeddings().num_embeddings
        if tokens > rows:
            told = f"The tokenizer has {tokens} tokens and the model only {rows} embeddings. Give the tokenizer of this"
            raise ValueError(f"{told} model; a method adds tokens by Backbone.add_tokens.")

    def collate(self, rows: Sequence[Any]) -> Batch:
        """Encoded rows to one batch, padded on the right."""
        return collate(rows, self.pad_id)

    @property
    def pad_id(self) -> int:
        """The token that fills a batch; it is never attended to nor learnt."""
        pad, end = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        return int(end if pad is None else pad)

    def forward(self, batch: Batch) -> Output:
        """The loss where a label is; prompt logits are never computed.

        The head and the cross-entropy are most of a small model's time, and a prompt has no label. Rows are
        padded on the right, so that the causal mask alone keeps padding out.

        Returns:
            An Output; `loss_sum` and `count` add up over batches and processes.
        """
        asked = getattr(self.model.config, "encoder", False)  # a composition whose augmenting models read prompts only
        given = {"prompt_mask": batch.attention_mask * (batch.labels == IGNORED)} if asked else {}
        states = self.decoder(input_ids=batch.input_ids, use_cache=False, **given).last_hidden_state
        sample, position = (batch.labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
        states = states[sample, position]
        targets = batch.labels[sample, position + 1]
        head = self.model.get_output_embeddings()
        nats = token_nats(head, states, targets, self.model.get_input_embeddings().num_embeddings)
        return Output(nats, states, targets, sample, head)

    @torch.inference_mode()  # less work around each kernel than no_grad
    def generate(self, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
        """Greedy answers, in the order of the prompts, each ending before the end token.

        What a model's own generation config says (sampling, penalties) is not used: scores must be comparable.

        Args:
            prompts: As in a task's rows: the template is added here, and what is too long is cut as the policy says.
            max_new_tokens: The longest answer in tokens.

        Raises:
            ValueError: `prompts` is one string.
        """
        refuse_bare_strings(prompts=prompts)
        begun, new_tokens = self._prompts(prompts, max_new_tokens)
        end = self.tokenizer.eos_token_id
        room = Room(self.eval_batch_size, self.eval_batch_tokens)
        with self.evaluating():
            answers = greedy(self.model, begun, new_tokens, room, end)
        return [self.encoder.decode(tokens) for tokens in answers]

    @torch.no_grad()
    def likeliest(self, prompts: Sequence[str], options: Sequence[str], max_new_tokens: int) -> list[str]:
        """Which of a few answers begins what follows each prompt likeliest: the first of equals.

        Args:
            prompts: As in `generate`.
            options: The answers, taken without the end token, which a reason may precede.
            max_new_tokens: The longest answer in tokens.

        Raises:
            ValueError: `prompts` or `options` is one string.
        """
        refuse_bare_strings(prompts=prompts, options=options)
        if self.encoder.policy.joint:
            nats = self.nats(self._options(prompts, options, max_new_tokens))[0].view(len(prompts), len(options))
            return [options[index] for index in nats.argmin(1).tolist()]
        begun, new_tokens = self._prompts(prompts, max_new_tokens)
        parts = [self.encoder.answer(text, new_tokens) for text in options]
        answers = [tokens if cut else tokens[:-1] for tokens, cut in parts]
        if has_plain_cache(self.model) and min(map(len, begun), default=0) > 1:
            room = Room(self.eval_batch_size, self.eval_batch_tokens)
            with self.evaluating():
                nats = option_nats(self.model, begun, answers, room)
        else:
            rows = [{"input_ids": one + two, "prompt_length": len(one), "row": 0} for one in begun for two in answers]
            nats = self.nats(Dataset.from_list(rows))[0].view(len(begun), len(answers))
        return [options[index] for index in nats.argmin(1).tolist()]

    @torch.no_grad()
    def log_likelihood(self, prompts: Sequence[str], answers: Sequence[str]) -> Tensor:
        """Teacher-forced log-likelihood of each answer and its end token.

        Args:
            prompts: As in `generate`.
            answers: One for each prompt.

        Returns:
            (rows,) in nats, at most 0.

        Raises:
            ValueError: One of them is one string, or they differ in length.
        """
        refuse_bare_strings(prompts=prompts, answers=answers)
        if len(prompts) != len(answers):
            raise ValueError(f"{len(prompts)} prompts and {len(answers)} answers were given. Give one for each.")
        rows = Dataset.from_dict({"prompt": list(prompts), "answer": list(answers)})
        return -self.nats(self.encode(rows))[0]

    @torch.no_grad()
    def nats(self, encoded: Dataset) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood and number of labelled tokens of each encoded row.

        Returns:
            (rows,) nats in float64 and (rows,) counts.
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
        """Evaluation mode, and each module's own mode again afterwards."""
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training

    def _prompts(self, prompts: Sequence[str], max_new_tokens: int) -> tuple[list[list[int]], int]:
        """Tokens of each, and the most of an answer."""
        rows = Dataset.from_dict({"prompt": list(prompts)})
        encoded = self.encode(rows, max_new_tokens)  # which is kept, for the next time that these are scored
        new_tokens = self.encoder.limits(max_new_tokens)[1]
        return [tokens or [self.tokenizer.eos_token_id] for tokens in encoded["input_ids"][:]], new_tokens

    def _options(self, prompts: Sequence[str], options: Sequence[str], max_new_tokens: int) -> Dataset:
        """Each prompt with each option as one text, encoded as in training; the end token carries no label."""
        pairs = [{"prompt": prompt, "answer": option} for prompt in prompts for option in options]
        rows = self.encode(Dataset.from_list(pairs), max_new_tokens).to_list()
        for row in rows:
            if row["input_ids"][-1] == self.tokenizer.eos_token_id:
                row["input_ids"].pop()
            else:  # a row without room for an end token labels one token more
                row["prompt_length"] += 1
        return Dataset.from_list(rows)
