"""The loop of a training, its state on disk, and what it writes."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from palidecode.codec import load_codec
from palidecode.codec.protocol import MaskCodec
from palidecode.codec.weights import GOOGLE_ID
from palidecode.errors import InputError
from palidecode.files import replacing
from palidecode.pipeline.checkpoint import NOTES, Place, find, read_notes, tokenizer_path
from palidecode.pipeline.decoder import PaliDecoder
from palidecode.pipeline.text_length import TextLength
from palidecode.prompts import asked_names
from palidecode.runs.stopping import StopAsked
from palidecode.runtime.config import config_to_hf
from palidecode.runtime.memory import peak_bytes
from palidecode.runtime.tokenizer import Tokenizer
from palidecode.runtime.torch_engine import TorchEngine
from palidecode.runtime.torch_loading import find_device
from palidecode.runtime.torch_weights import load_weights, state_to_hf
from palidecode.runtime.weights import SINGLE
from palidecode.trainer.examples import (
    Batch,
    Example,
    Examples,
    Pixels,
    make_batches,
    open_pixels,
    read_examples,
)
from palidecode.trainer.lora import Adapted, add_adapters, write_adapter
from palidecode.trainer.loss import answer_loss
from palidecode.trainer.ranks import join_ranks, own_device
from palidecode.trainer.record import CARD, LOG, Data, Record
from palidecode.trainer.settings import Settings
from palidecode.trainer.validation import DECIDING, check_validation, validate
from palidecode.trainer.variation import Varying
from palidecode.trainer.weights import Weights, recompute_layers, thaw

STATE = "checkpoint.safetensors"
_ROWS = 5  # that are named
Report = Callable[[Mapping[str, float]], None]


class Training:
    """A training of a model on rows.

    Parameters
    ----------
    model : str
        As for `PaliDecoder.from_pretrained`, but no adapter.
    rows : Path
        See `read_examples`.
    out : Path
        The folder to write. A training in it with the same settings and rows is resumed.
    images : Path, optional
    val : Path, optional
        Rows to evaluate on; the weights with the best AP are kept.
    settings : Settings, optional
    device : str, optional
    tokenizer : str, optional

    Attributes
    ----------
    step, total : int
        Steps done, and of the whole training.
    examples, held_back : Examples
        The rows to train on, and to evaluate on.
    best : dict of str to float
        Numbers of the evaluation whose weights are kept.
    ranks : Ranks
        The processes that train; each has its share of the batches, and the first one writes.
    unread : dict of int to str
        Lines whose pictures could not be read when their turn came, and why.

    Raises
    ------
    InputError, WeightsError
        For a model, rows or a folder that can't be used.
    """

    def __init__(
        self,
        model: str,
        rows: Path,
        out: Path,
        images: Path | None = None,
        val: Path | None = None,
        settings: Settings | None = None,
        *,
        device: str | None = None,
        tokenizer: str | None = None,
    ) -> None:
        settings = settings or Settings()
        self.settings, self.out = settings, out
        self._place = _whole_model(model)
        checkpoint = self._place.open()
        if checkpoint.source is None:
            raise InputError(f"{model}: is an export; train the model that it was made from")
        self.tokenizer = Tokenizer.from_file(
            tokenizer_path(self._place, tokenizer), checkpoint.config.eos
        )
        self._codes, self._classes = read_notes(self._place.file(NOTES))
        longest = settings.longest
        read = (self.tokenizer, longest, self._codes, checkpoint.config.vision.tokens)
        self.examples = read_examples(rows, images, *read)
        self.held_back = Examples() if val is None else read_examples(val, images, *read)
        check_validation(self.held_back.rows)
        self._warn_of_long_texts()
        self._device = find_device(own_device(device))
        self.ranks = join_ranks(self._device)
        self.unread: dict[int, str] = {}
        self.total = settings.total(len(self.examples.rows), self.ranks.count)
        self._record = Record(
            out,
            self._place.name,
            settings,
            self.total,
            Data.of(rows, len(self.examples.rows)),
            None if val is None else Data.of(val, len(self.held_back.rows)),
        )
        self._refuse_finished()
        dtype: torch.dtype = getattr(torch, settings.dtype)
        self.model = load_weights(checkpoint.source, checkpoint.config, dtype, self._device)
        self._adapted = self._prepare()
        self.weights = Weights(self.model)
        self._optimizer = torch.optim.AdamW(
            self.weights.values, lr=settings.peak, betas=(0.9, 0.999), weight_decay=settings.decay
        )
        self._image_config = checkpoint.image_config
        self._varying = self._make_varying()
        self._decoder = self._make_decoder()
        self.step, self.best = 0, dict[str, float]()
        if self.ranks.first:
            out.mkdir(parents=True, exist_ok=True)
        self._resume()

    def _warn_of_long_texts(self) -> None:
        """Warn, once, of rows that are longer than the text that the model was trained with."""
        length = TextLength(self._place.text_length())
        for example in self.examples.rows:
            length.check(len(example.prompt), len(example.answer))

    def _prepare(self) -> list[Adapted]:
        """Choose what is trained, with factors that the seed gives."""
        settings = self.settings
        torch.manual_seed(settings.seed)
        adapted: list[Adapted] = []
        if settings.full:
            thaw(self.model, settings.targets)
        else:
            adapted = add_adapters(self.model, settings.targets, settings.rank, settings.weight)
        recompute_layers(self.model, settings.recompute)
        return adapted

    def _codec_for(self, rows: Sequence[Example]) -> MaskCodec | None:
        """Load the model's codec, if any of the rows has masks."""
        masks = any("<seg" in row.suffix for row in rows)
        return load_codec(None if self._codes == GOOGLE_ID else self._codes) if masks else None

    def _make_varying(self) -> Varying | None:
        variation = self.settings.variation
        if not variation.active:
            return None
        moves = variation.flip or variation.crop is not None
        codec = self._codec_for(self.examples.rows) if moves else None
        return Varying(variation, self.tokenizer, codec, self.settings.longest)

    def _make_decoder(self) -> PaliDecoder:
        return PaliDecoder(
            TorchEngine(self.model, static=False),  # graphs would keep memory
            self.tokenizer,
            self._image_config,
            codec=self._codec_for(self.held_back.rows),
            codes_id=self._codes,
            source=self._place.name,
        )

    # --- The loop -------------------------------------------------------------------------------

    def run(self, report: Report, check: Callable[[], None] = lambda: None) -> None:
        """Train to the last step, and write the result.

        Parameters
        ----------
        report : callable
            Called with the numbers of each step: step, loss, rate, seconds; and of evaluations.
        check : callable
            Called after each step; what it raises ends the training, with a checkpoint.

        Raises
        ------
        InputError
            If the loss is no number, or a file can't be written.
        """
        try:
            while self.step < self.total:
                line = self.update()
                if self.ranks.first:
                    self._after(line, report)
                self._check(check)
        except KeyboardInterrupt:
            if self.ranks.first:
                self.save()
            raise
        self.unread = self.ranks.gather(self.unread)
        if not self.ranks.first:
            return
        if not self.held_back.rows:
            self._keep()
        self._record.write_page(self.best)
        (self.out / STATE).unlink(missing_ok=True)

    def _after(self, line: dict[str, float], report: Report) -> None:
        """Evaluate, log and save after a step, where it is time to."""
        settings = self.settings
        if self.step % settings.evaluate_every == 0 or self.step == self.total:
            line |= self._evaluate()
        self._record.add(line)
        report(line)
        if self.step % settings.save_every == 0 and self.step < self.total:
            self.save()
            self._record.write_page(self.best)

    def _check(self, check: Callable[[], None]) -> None:
        """Stop all processes after the same step, whichever was asked to."""
        stopped: KeyboardInterrupt | None = None
        try:
            check()
        except KeyboardInterrupt as error:
            stopped = error
        (asked,) = self.ranks.sum(float(stopped is not None))
        if asked:
            raise stopped or StopAsked

    def update(self) -> dict[str, float]:
        """Train one step; return its numbers."""
        settings, began = self.settings, time.perf_counter()
        batches = self._batches()
        (count,) = self.ranks.sum(sum(batch.targets() for batch in batches))
        if not count:
            raise InputError(f"step {self.step + 1}: none of its pictures can be read")
        total = 0.0
        for batch in batches:
            loss = answer_loss(self.model, batch, self.tokenizer.vocabulary, settings.soft_loc)
            loss = loss / count
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        (total,) = self.ranks.sum(total)
        if not math.isfinite(total):
            self._refuse_loss(total)
        self.weights.collect()
        self.ranks.add_up(self.weights.gradients())
        norm = nn.utils.clip_grad_norm_(self.weights.values, settings.clip)
        rate = settings.rate_at(self.step, self.total)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self.weights.publish()
        self.step += 1
        seconds = time.perf_counter() - began
        return {
            "step": self.step,
            "loss": round(total, 5),
            "rate": rate,
            "norm": round(float(norm), 4),
            "seconds": round(seconds, 3),
            "memory": peak_bytes(self._device),
        }

    def _refuse_loss(self, total: float) -> None:
        """Name the rows whose loss is no number."""
        bad: dict[int, str] = {}
        for number in self.ranks.share(self.settings.accumulate):
            for example, pixels in self._readable(number):
                (batch,) = self._made([example], [pixels])
                with torch.no_grad():
                    loss = answer_loss(self.model, batch, self.tokenizer.vocabulary)
                if not bool(torch.isfinite(loss)):
                    bad[example.line] = f"line {example.line}, {example.name}"
        bad = self.ranks.gather(bad)
        rows = "; ".join(list(bad.values())[:_ROWS]) or "no row alone"
        more = f" and {len(bad) - _ROWS} more" if len(bad) > _ROWS else ""
        raise InputError(
            f"step {self.step + 1}: the loss is {total} ({rows}{more}): lower the rate (--rate), "
            "or train in float32"
        )

    def _batches(self) -> list[Batch]:
        """Return this process's batches of the step; pictures that can't be read are left out."""
        batches: list[Batch] = []
        for number in self.ranks.share(self.settings.accumulate):
            read = self._readable(number)
            batches += self._made([example for example, _ in read], [one for _, one in read])
        return batches

    def _made(self, examples: Sequence[Example], pixels: Sequence[Pixels]) -> list[Batch]:
        return make_batches(examples, pixels, self.model.config.pad, self._device)

    def _readable(self, number: int) -> list[tuple[Example, Pixels]]:
        """Open the pictures of a batch."""
        read: list[tuple[Example, Pixels]] = []
        for example in self._examples_of(number):
            try:
                read.append((example, open_pixels(example, self._image_config)))
            except InputError as error:
                self.unread[example.line] = str(error)
        return read

    def _examples_of(self, number: int) -> list[Example]:
        """Return the rows of a batch of this step: each epoch has its own order and versions."""
        settings, rows = self.settings, self.examples.rows
        before = self.step * settings.accumulate * self.ranks.count
        first = (before + number) * settings.batch_size
        places = [divmod(first + n, len(rows)) for n in range(settings.batch_size)]
        orders = {
            epoch: np.random.default_rng([settings.seed, epoch]).permutation(len(rows))
            for epoch, _ in places
        }
        chosen = [rows[int(orders[epoch][index])] for epoch, index in places]
        if self._varying is None:
            return chosen
        return [
            self._varying.vary(row, np.random.default_rng([settings.seed, epoch, index]))
            for row, (epoch, index) in zip(chosen, places, strict=True)
        ]

    def _evaluate(self) -> dict[str, float]:
        """Evaluate on the rows that are held back; keep the weights if they are the best."""
        rows = self.held_back.rows
        if not rows:
            return {}
        self._decoder.forget_pictures()
        numbers = validate(self._decoder, rows, self._decoder.codec, self.settings)
        kind = next(name for name in DECIDING if name in numbers)
        if not self.best or numbers[kind] > self.best[kind]:
            self.best = {"step": self.step, **numbers}
            self.save()  # a result without a checkpoint is a finished training
            self._keep()
        return numbers

    # --- Files ----------------------------------------------------------------------------------

    def _keep(self) -> None:
        """Write the weights as the result: an adapter, or a whole model."""
        place, settings = self._place, self.settings
        if settings.full:
            recompute_layers(self.model, False)
            tensors = {name: value.cpu() for name, value in state_to_hf(self.model).items()}
            recompute_layers(self.model, settings.recompute)
            with replacing(self.out / SINGLE, "wb") as file:
                file.write(save(tensors))
            with replacing(self.out / "config.json") as file:
                json.dump(config_to_hf(self.model.config), file, indent=1)
            for name in ("preprocessor_config.json", "processor_config.json", "tokenizer.json"):
                if place.file(name).exists():
                    with replacing(self.out / name, "wb") as file:
                        file.write(place.file(name).read_bytes())
        else:
            base = place.name if not os.path.exists(place.name) else os.path.abspath(place.name)
            write_adapter(self.out, self._adapted, base, settings.rank, settings.weight)
        notes: dict[str, object] = {}
        if self._classes or self._codes != GOOGLE_ID:
            notes = {"codes": self._codes, "classes": self._known()}
        known = place.text_length()
        if known is not None:
            rows = self.examples.rows
            notes["text_length"] = max(known, *(len(r.prompt) + len(r.answer) for r in rows))
        if notes:
            with replacing(self.out / NOTES) as file:
                json.dump(notes, file, indent=1)
        self._record.write_card(self.step, self.best)

    def _known(self) -> list[str]:
        """Return the classes that the model lists, and those that the rows ask for."""
        found = dict.fromkeys(self._classes)
        if self._classes:
            for example in self.examples.rows:
                asked = asked_names(example.prefix) if example.suffix else None
                found |= dict.fromkeys(asked[1] if asked else ())
        return list(found)

    def _facts(self) -> str:
        """Return what a checkpoint belongs to, as JSON."""
        record = self._record
        files = [record.rows, *([] if record.val is None else [record.val])]
        settings = {**asdict(self.settings), "targets": list(self.settings.targets)}
        settings["accumulate"] *= self.ranks.count  # more processes do the same with fewer batches
        return json.dumps(
            {
                "settings": settings,
                "model": self._place.name,
                "rows": [file.sha256 for file in files],
            },
            sort_keys=True,
        )

    def save(self) -> None:
        """Write a checkpoint: weights, the optimizer's moments, the step and the best numbers."""
        tensors: dict[str, Tensor] = {}
        moments = self._optimizer.state_dict()["state"]
        for number, value in enumerate(self.weights.values):
            tensors[f"value.{number}"] = value.detach().cpu().contiguous()
            for name, moment in moments.get(number, {}).items():
                tensors[f"moment.{number}.{name}"] = moment.cpu().contiguous()
        state = {"step": str(self.step), "best": json.dumps(self.best), "facts": self._facts()}
        with replacing(self.out / STATE, "wb") as file:
            file.write(save(tensors, metadata=state))

    def _refuse_finished(self) -> None:
        """Refuse a folder with a result, and no checkpoint to go on from."""
        if not (self.out / STATE).exists() and (self.out / CARD).exists():
            raise InputError(f"{self.out}: holds a finished training; name a new folder")

    def _resume(self) -> None:
        path = self.out / STATE
        if not path.exists():
            if self.ranks.first:
                (self.out / LOG).unlink(missing_ok=True)
            return
        try:
            with safe_open(path, "pt") as file:
                state = file.metadata()
            tensors = load_file(path)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: can't be read ({error}); delete it to begin anew") from error
        if state["facts"] != self._facts():
            raise InputError(
                f"{self.out}: holds a training with other settings, rows or model; name a new "
                "folder"
            )
        self.step, self.best = int(state["step"]), json.loads(state["best"])
        moments: dict[int, dict[str, Tensor]] = {}
        with torch.no_grad():
            for key, value in tensors.items():
                kind, number, *name = key.split(".")
                if kind == "value":
                    self.weights.values[int(number)].copy_(value)
                else:
                    moments.setdefault(int(number), {})[name[0]] = value
        self.weights.publish()
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": moments, "param_groups": groups})
        if self.ranks.first:
            self._record.cut(self.step)


def _whole_model(model: str) -> Place:
    place = find(model)
    if place.adapter is not None:
        raise InputError(
            f"{model}: is an adapter; train from its base, or merge it first (palidecode merge)"
        )
    return place
