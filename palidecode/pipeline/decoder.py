"""PaliDecoder: pictures and prompts in, detections with scores out.

The only room where the runtime (torch) and the decode layer meet.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from PIL import Image

from palidecode.codec.protocol import MaskCodec
from palidecode.codec.weights import GOOGLE_ID
from palidecode.detections import Detections
from palidecode.errors import InputError
from palidecode.files import Picture, open_picture
from palidecode.geometry.boxes import DEFAULT_DIVISOR
from palidecode.pipeline.reading import Generated, read_answers
from palidecode.pipeline.scoring import DEFAULT_SCORE, Score, check_score
from palidecode.runtime.grammar import Grammar, GrammarOptions, asked_labels
from palidecode.runtime.image import ImageConfig, Resample, to_pixels
from palidecode.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    import torch

    from palidecode.runtime.generate import Answer, GenerateOptions
    from palidecode.runtime.paligemma import PaliGemma

__all__ = ["Generated", "PaliDecoder", "UnreadablePictureWarning"]

Pictures: TypeAlias = Picture | Sequence[Picture]
OnToken: TypeAlias = Callable[[int, int, float], None]

DEFAULT_TOKENS = 256
_KEPT_FEATURES = 8  # pictures whose image tokens are kept for the next prompt


class UnreadablePictureWarning(UserWarning):
    """A picture of a batch can't be read: the others go on without it."""


class PaliDecoder:
    """A PaliGemma and everything around it; made by `from_pretrained`.

    Parameters
    ----------
    model : PaliGemma
    tokenizer : Tokenizer
    image_config : ImageConfig
    codec : MaskCodec, optional
        Decodes the masks of `segment`; without it `load_codec()` is used when they are needed.
    codes_id : str
        The mask codec whose codes the model writes.
    classes : sequence of str
        What the model is known to find, where its folder says so.
    source : str
        Where the model came from, for messages.
    """

    def __init__(
        self,
        model: PaliGemma,
        tokenizer: Tokenizer,
        image_config: ImageConfig,
        *,
        codec: MaskCodec | None = None,
        codes_id: str = GOOGLE_ID,
        classes: Sequence[str] = (),
        source: str = "",
    ) -> None:
        self.model, self.tokenizer, self.image_config = model, tokenizer, image_config
        self.codec, self.codes_id, self.source = codec, codes_id, source
        self.classes = tuple(classes)
        self._features: dict[bytes, torch.Tensor] = {}
        self._grammars: dict[tuple[str, GrammarOptions], Grammar | None] = {}

    @classmethod
    def from_pretrained(
        cls,
        folder_or_id: str | os.PathLike[str],
        dtype: str = "bfloat16",
        device: str | None = None,
        quantize: Literal["int8", "int4"] | None = None,
        *,
        codec: MaskCodec | None = None,
        tokenizer: str | os.PathLike[str] | None = None,
        resample: Resample | None = None,
        final_softcap: float | Literal["config"] | None = "config",
        revision: str | None = None,
    ) -> PaliDecoder:
        """Load a checkpoint.

        Parameters
        ----------
        folder_or_id : str or path
            ``demo``, the tiny model in this package; a folder as transformers saves it; a
            big_vision ``.npz``; or a name on the Hugging Face hub, which is downloaded (needs
            the network and, for Google's, an accepted licence).
        dtype : {"bfloat16", "float32", "float16"}
        device : str, optional
            A torch device; by default the first there is of cuda, mps and cpu.
        quantize : {"int8", "int4"}, optional
            Smaller, faster weights on a CPU; what that costs is in
            ``benchmarks/results.md``.
        codec : MaskCodec, optional
            For masks; by default the codec that the model's codes belong to.
        tokenizer : str or path, optional
            A ``tokenizer.json``; by default the checkpoint's own.
        resample : {"bicubic", "bilinear", "big_vision"}, optional
            How pictures are squeezed; by default what the checkpoint says.
        final_softcap : float or None
            PaliGemma 2's cap on logits. It changes probabilities, and so scores, but not
            which token is likeliest. Its report says that fine-tuning went without: None.
        revision : str, optional
            Of a hub model.

        Raises
        ------
        InputError
            For a folder, dtype or device that can't be used, and too little memory.
        WeightsError
            For weights that are missing, damaged or of other shapes.
        """
        from palidecode.pipeline.checkpoint import load_decoder

        return load_decoder(
            folder_or_id,
            dtype,
            device,
            quantize,
            codec=codec,
            tokenizer=tokenizer,
            resample=resample,
            final_softcap=final_softcap,
            revision=revision,
        )

    def generate(
        self,
        images: Pictures,
        prompts: str | Sequence[str],
        max_new_tokens: int = DEFAULT_TOKENS,
        grammar: bool | GrammarOptions = False,
        *,
        batch_size: int = 8,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        over: Literal["vocabulary", "allowed"] = "vocabulary",
        loc_probabilities: bool = False,
        on_token: OnToken | None = None,
    ) -> list[Generated]:
        """Answers to prompts about pictures.

        Parameters
        ----------
        images : picture or sequence of pictures
            PIL images, paths, or uint8 arrays (H, W), (H, W, 3) or (H, W, 4). One picture
            goes with every prompt, and is looked at once.
        prompts : str or sequence of str
            One prompt goes with every picture.
        max_new_tokens : int
            The longest answer, ``<eos>`` included.
        grammar : bool or GrammarOptions
            Answers to ``detect`` and ``segment`` prompts can't but be well-formed; other
            prompts are answered freely.
        batch_size : int
            Answers made at once.
        temperature, top_p, seed
            0 takes the likeliest token; otherwise tokens are drawn.
        over : {"vocabulary", "allowed"}
            What probabilities are relative to; see `GenerateOptions`.
        loc_probabilities : bool
            Keep the distribution over the bins of every loc token.
        on_token : callable, optional
            Called with (number of the answer, token id, log-probability) as they come.

        Returns
        -------
        list of Generated
            In order. A picture that can't be read has an `error` and warns; the others go on.

        Raises
        ------
        InputError
            For numbers of pictures and prompts that don't fit, prompts the model can't read,
            and options out of range.
        """
        from palidecode.runtime.generate import GenerateOptions, cache_length

        pictures, asked = _pair(images, prompts)
        options = GenerateOptions(max_new_tokens, temperature, top_p, seed, over, loc_probabilities)
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {batch_size}")
        encoded = [self.tokenizer.encode_prompt(prompt) for prompt in asked]
        # Before anything is computed.
        cache_length(self.model, max(map(len, encoded), default=0), max_new_tokens)
        grammars = [self._grammar(prompt, grammar) for prompt in asked]
        found: list[Generated] = []
        unreadable: dict[int, InputError] = {}
        for start in range(0, len(asked), batch_size):
            part = slice(start, start + batch_size)
            opened = _open_all(pictures[part], unreadable)
            found += self._batch(
                opened, asked[part], encoded[part], grammars[part], options, on_token, start
            )
        return found

    def detect(self, images: Pictures, prompt: str | Sequence[str], **options: Any) -> Detections:
        """Boxes, labels and scores of what a prompt names.

        Parameters
        ----------
        images : picture or sequence of pictures
            See `generate`.
        prompt : str or sequence of str
            ``"cat ; dog"``; several prompts are all asked of every picture, and their objects
            put together.
        **options
            Those of `objects`, and of `generate`.

        Returns
        -------
        Detections
            One image per picture, in order.
        """
        return self.objects("detect", images, prompt, **options)

    def segment(self, images: Pictures, prompt: str | Sequence[str], **options: Any) -> Detections:
        """As `detect`, with masks."""
        return self.objects("segment", images, prompt, **options)

    def objects(
        self,
        task: Literal["detect", "segment"],
        images: Pictures,
        prompt: str | Sequence[str],
        *,
        grammar: bool | GrammarOptions = True,
        over: Literal["vocabulary", "allowed"] = "allowed",
        score: Score = DEFAULT_SCORE,
        sub_bin: bool = False,
        divisor: int = DEFAULT_DIVISOR,
        clip: bool = False,
        **options: Any,
    ) -> Detections:
        """Ask for objects and read the answers.

        Parameters
        ----------
        task : {"detect", "segment"}
        images, prompt
            See `detect`.
        grammar, over
            See `generate`; with the grammar only the rows of the output head that it allows
            are computed.
        score : {"product", "label", "box", "objectness", "mean"}
            The recipe of the scores; see `palidecode.pipeline.scoring`.
        sub_bin : bool
            Boxes from the mean of each loc token's distribution around its bin, not the bin
            itself.
        divisor, clip
            See `palidecode.decode`.
        **options
            Those of `generate`.

        Raises
        ------
        InputError
            As `generate`.
        """
        check_score(score)
        pictures = _as_list(images)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts:
            raise InputError(f"nothing to {task}: give a prompt, for instance 'cat ; dog'")
        asked = [_as_prompt(task, text) for text in prompts]
        for text in asked:
            asked_labels(text)  # refuses what asks for nothing, with the grammar or without
        answers = self.generate(
            [picture for picture in pictures for _ in asked],
            asked * len(pictures),
            grammar=grammar,
            over=over,
            loc_probabilities=sub_bin or bool(options.pop("loc_probabilities", False)),
            **options,
        )
        return self.read(
            answers, len(prompts), score=score, sub_bin=sub_bin, divisor=divisor, clip=clip
        )

    def read(
        self,
        answers: Sequence[Generated],
        per_picture: int = 1,
        *,
        score: Score = DEFAULT_SCORE,
        sub_bin: bool = False,
        divisor: int = DEFAULT_DIVISOR,
        clip: bool = False,
    ) -> Detections:
        """Answers to detections with scores; see `objects` for the options.

        `per_picture` answers in a row are about the same picture.
        """
        return read_answers(
            answers,
            per_picture,
            self.tokenizer,
            codec=self.codec,
            codes_id=self.codes_id,
            score=score,
            sub_bin=sub_bin,
            divisor=divisor,
            clip=clip,
        )

    def _grammar(self, prompt: str, wanted: bool | GrammarOptions) -> Grammar | None:
        if wanted is False:
            return None
        options = GrammarOptions() if wanted is True else wanted
        key = (prompt, options)
        if key not in self._grammars:
            if len(self._grammars) > 64:
                self._grammars.clear()
            self._grammars[key] = Grammar.of(self.tokenizer, prompt, options)
        return self._grammars[key]

    def _batch(
        self,
        opened: Sequence[Image.Image | InputError],
        prompts: Sequence[str],
        encoded: Sequence[list[int]],
        grammars: Sequence[Grammar | None],
        options: GenerateOptions,
        on_token: OnToken | None,
        start: int,
    ) -> list[Generated]:
        """One batch, from answer `start` on; pictures that can't be read are left out of it."""
        import torch

        from palidecode.runtime.generate import generate

        fine = [row for row, item in enumerate(opened) if not isinstance(item, InputError)]
        answers: list[Answer] = []
        if fine:
            features = self._encode([opened[row] for row in fine])  # type: ignore[misc]
            numbers = [start + row for row in fine]
            answers = generate(
                self.model,
                torch.stack(features),
                [encoded[row] for row in fine],
                self.tokenizer.vocabulary,
                [grammars[row] for row in fine],
                options,
                None if on_token is None else _renumbered(on_token, numbers),
                numbers,
            )
        made = iter(answers)
        found = []
        for prompt, item in zip(prompts, opened, strict=True):
            if isinstance(item, InputError):
                found.append(Generated(prompt, error=str(item)))
            else:
                answer = next(made)
                found.append(
                    Generated(
                        prompt,
                        self.tokenizer.decode(answer.token_ids),
                        answer.token_ids,
                        answer.logprobs,
                        answer.end_logprobs,
                        item.size,
                        answer.finished,
                        answer.distributions() if options.loc_probabilities else None,
                    )
                )
        return found

    def forget_pictures(self) -> None:
        """Look at every picture anew, also at those that were asked about last."""
        self._features.clear()

    def _encode(self, pictures: Sequence[Image.Image]) -> list[torch.Tensor]:
        """Image tokens of each picture; equal pictures are looked at once."""
        import hashlib

        import torch

        pixels = to_pixels(list(pictures), self.image_config)
        keys = [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in pixels]
        new = {key: row for row, key in enumerate(keys) if key not in self._features}
        if new:
            weight = self.model.vision.position
            batch = torch.from_numpy(pixels[list(new.values())]).to(weight.device)
            with torch.inference_mode():
                made = self.model.encode_image(batch)
            for key, features in zip(new, made, strict=True):
                self._features[key] = features
        found = [self._features[key] for key in keys]
        while len(self._features) > _KEPT_FEATURES:
            self._features.pop(next(iter(self._features)))
        return found


def _as_list(images: Pictures) -> list[Picture]:
    if isinstance(images, (list, tuple)):
        return list(images)
    one: Any = images  # a picture: a path, an image or an array is no list of pictures
    return [one]


def _pair(images: Pictures, prompts: str | Sequence[str]) -> tuple[list[Picture], list[str]]:
    pictures = _as_list(images)
    asked = [prompts] if isinstance(prompts, str) else list(prompts)
    if len(pictures) == 1:
        pictures = pictures * len(asked)
    elif len(asked) == 1:
        asked = asked * len(pictures)
    if len(pictures) != len(asked):
        raise InputError(
            f"{len(pictures)} pictures and {len(asked)} prompts: give as many, or one of either"
        )
    for prompt in asked:
        if not isinstance(prompt, str):
            raise InputError(f"a prompt must be text, got {type(prompt).__name__}")
    return pictures, asked


def _as_prompt(task: str, text: str) -> str:
    """``cat ; dog`` and ``detect cat ; dog`` are the same to `detect`."""
    verb = text.strip().partition(" ")[0]
    if verb in ("detect", "segment") and verb != task:
        raise InputError(f"{text!r} is no prompt to {task}: use .{verb}()")
    return text if verb == task else f"{task} {text}"


def _open_all(
    pictures: Sequence[Picture], unreadable: dict[int, InputError]
) -> list[Image.Image | InputError]:
    """Every picture opened once; one that can't be read warns and stands as its error.

    `unreadable` holds what earlier batches could not read: it is said once.
    """
    opened: list[Image.Image | InputError] = []
    same: dict[int, Image.Image | InputError] = {**unreadable}
    for picture in pictures:
        if id(picture) not in same:
            try:
                same[id(picture)] = open_picture(picture)
            except InputError as error:
                same[id(picture)] = unreadable[id(picture)] = error
                warnings.warn(str(error), UnreadablePictureWarning, stacklevel=3)
        opened.append(same[id(picture)])
    return opened


def _renumbered(on_token: OnToken, rows: Sequence[int]) -> OnToken:
    return lambda row, token, logprob: on_token(rows[row], token, logprob)
