"""PaliDecoder: pictures and prompts in, detections with scores out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

from palidecode.answers.scoring import DEFAULT_SCORE, Score, check_score
from palidecode.codec import load_codec
from palidecode.codec.protocol import MaskCodec
from palidecode.codec.weights import GOOGLE_ID
from palidecode.detections import Detections
from palidecode.errors import InputError, warn
from palidecode.files import Picture, PictureBytes
from palidecode.geometry.boxes import DEFAULT_DIVISOR
from palidecode.pipeline.adapting import Adapters
from palidecode.pipeline.asking import Asker
from palidecode.pipeline.checkpoint import EngineName, LoadedModel, ModelOptions, find, load
from palidecode.pipeline.endpoint import KEY_VARIABLE, EndpointOptions, Server
from palidecode.pipeline.looking import DEFAULT_OVERLAP, LookOptions, look_closely
from palidecode.pipeline.past_end import PastEnd
from palidecode.pipeline.protocol import Answerer, Seen
from palidecode.pipeline.reading import (
    Answers,
    Found,
    Generated,
    UnreadablePictureWarning,
    read_answers,
)
from palidecode.pipeline.remote import RemoteAsker
from palidecode.pipeline.session import Session
from palidecode.pipeline.text_length import TextLength
from palidecode.prompts import Task, asked_names, in_groups, prompts_for, split_verb, with_verb
from palidecode.runtime.engine import Engine
from palidecode.runtime.image import ImageConfig, Resample, Shrunk
from palidecode.runtime.options import GenerateOptions, GrammarOptions, OnToken, Over, Quantize
from palidecode.runtime.tokenizer import Tokenizer
from palidecode.wording import many

Pictures: TypeAlias = Picture | Sequence[Picture | Seen | Sequence[Picture | Seen]]

DEFAULT_TOKENS = 256
_CLASSES_SHOWN = 20


@dataclass(frozen=True)
class AskOptions:
    """Options of asking for objects, see `PaliDecoder.detect`; plain values only."""

    grammar: bool | GrammarOptions = True
    over: Over = "allowed"
    score: Score = DEFAULT_SCORE
    sub_bin: bool = False
    divisor: int = DEFAULT_DIVISOR
    clip: bool = False
    max_new_tokens: int = DEFAULT_TOKENS
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    classes_per_prompt: int | None = None
    past_end: float | None = None
    tiles: str | None = None
    overlap: float = DEFAULT_OVERLAP
    zoom: bool = False
    samples: int = 1

    def __post_init__(self) -> None:
        check_score(self.score)
        if self.classes_per_prompt is not None and self.classes_per_prompt < 1:
            raise InputError(
                f"classes_per_prompt must be at least 1, got {self.classes_per_prompt}"
            )
        if self.past_end is not None:
            if not 0 <= self.past_end <= 1:
                raise InputError(f"past_end must be between 0 and 1, got {self.past_end}")
            if self.grammar is False:
                raise InputError("past_end is a rule of the grammar: it needs grammar=True")
        _ = self.generating, self.looks  # which check their numbers
        if self.samples < 1:
            raise InputError(f"samples must be at least 1, got {self.samples}")
        if self.samples > 1 and self.temperature == 0:
            raise InputError(
                f"samples are all equal at a temperature of 0: give {self.samples} of them one "
                "above 0, for instance 0.3"
            )

    @property
    def looks(self) -> LookOptions:
        """The options of looking more closely."""
        return LookOptions(self.tiles, self.overlap, self.zoom)

    @property
    def generating(self) -> GenerateOptions:
        """The options that `PaliDecoder.generate` has, too."""
        return GenerateOptions(
            self.max_new_tokens, self.temperature, self.top_p, self.seed, self.over, self.sub_bin
        )


class PaliDecoder:
    """A PaliGemma and everything around it; made by `from_pretrained`.

    Parameters
    ----------
    engine : Engine or Server
        What answers: a model that is loaded, or a server.
    tokenizer : Tokenizer, optional
    image_config : ImageConfig, optional
        None for a server, which has its own.
    codec : MaskCodec, optional
        Decodes the masks of `segment`; without it `load_codec()` is used when they are needed.
    codes_id : str
        Id of the mask codec whose codes the model writes.
    classes : sequence of str
        Names that the model is known to find, if its folder lists them.
    source : str
        Path or hub name of the model, for messages.
    text_length : int, optional
        Tokens of prompt and answer that the model was trained with, where that is known; longer
        ones warn once (`LongTextWarning`).
    """

    def __init__(
        self,
        engine: Engine | Server,
        tokenizer: Tokenizer | None = None,
        image_config: ImageConfig | None = None,
        *,
        codec: MaskCodec | None = None,
        codes_id: str = GOOGLE_ID,
        classes: Sequence[str] = (),
        source: str = "",
        text_length: int | None = None,
    ) -> None:
        self._text_length = TextLength(text_length)
        self._asker: Answerer
        if isinstance(engine, Server):
            self._asker = RemoteAsker(engine)
        else:
            assert tokenizer is not None
            shown = image_config or ImageConfig()
            self._asker = Asker(engine, tokenizer, shown, self._text_length)
        self.codec, self.codes_id, self.source = codec, codes_id, source
        self.classes = tuple(classes)
        self._adapters: Adapters | None = None

    def __repr__(self) -> str:
        shown = ", ".join(self.classes[:_CLASSES_SHOWN]) or "not listed"
        more = len(self.classes) - _CLASSES_SHOWN
        facts = {
            "model": self.source or "from memory",
            "engine": self._asker.name,
            "classes": f"{shown} and {more} more" if more > 0 else shown,
        }
        return "\n".join(["PaliDecoder", *(f"  {name:<8}{fact}" for name, fact in facts.items())])

    @classmethod
    def from_pretrained(
        cls,
        folder_or_id: str | os.PathLike[str],
        dtype: str | None = None,
        device: str | None = None,
        quantize: Quantize | None = None,
        *,
        codec: MaskCodec | None = None,
        tokenizer: str | os.PathLike[str] | None = None,
        resample: Resample | None = None,
        final_softcap: float | Literal["config"] | None = "config",
        revision: str | None = None,
        engine: EngineName = "auto",
        base: str | os.PathLike[str] | None = None,
        adapters: Mapping[str, str | os.PathLike[str]] | None = None,
    ) -> PaliDecoder:
        """Load a checkpoint.

        Parameters
        ----------
        folder_or_id : str or path
            ``demo``, the tiny model in this package; a folder as transformers saves it; a
            big_vision ``.npz``; or a name on the Hugging Face hub, which is downloaded (needs
            the network and, for Google's, an accepted licence). The folder or name of a LoRA
            adapter, as PEFT saves it, is merged into its base.
        dtype : {"bfloat16", "float32", "float16"}, optional
            By default bfloat16 in torch; ONNX Runtime computes in float32.
        device : str, optional
            A torch device; by default the first available of cuda, mps and cpu.
        quantize : {"int8", "int4"}, optional
            Smaller, faster weights on a CPU; ``benchmarks/results.md`` has the cost. ONNX Runtime,
            the only engine with int4, keeps them in the user's cache: only the first load
            quantises.
        codec : MaskCodec, optional
            For masks; by default the codec that the model's codes belong to.
        tokenizer : str or path, optional
            A ``tokenizer.json``; by default the checkpoint's own.
        resample : {"bicubic", "bilinear", "big_vision"}, optional
            Filter for resizing pictures; by default the checkpoint's.
        final_softcap : float or None
            PaliGemma 2's cap on logits. It changes probabilities, and so scores, but not
            which token is likeliest. According to its report fine-tuning had none: None.
        revision : str, optional
            Branch, tag or commit of a hub model.
        engine : {"auto", "torch", "onnx"}
            ``auto`` takes ONNX Runtime for exported folders, for int8 and int4 on a CPU and where
            torch isn't installed; otherwise torch.
        base : str or path, optional
            Base model of an adapter; by default the one that the adapter's config names.
        adapters : mapping of str to path, optional
            Folders of adapters of this model, by names for `use`.

        Raises
        ------
        InputError
            For a folder, dtype or device that can't be used, and too little memory.
        WeightsError
            For weights that are missing, damaged or of other shapes.
        """
        options = ModelOptions(
            os.fspath(folder_or_id),
            dtype,
            device,
            quantize,
            tokenizer=None if tokenizer is None else os.fspath(tokenizer),
            resample=resample,
            final_softcap=final_softcap,
            revision=revision,
            engine=engine,
            base=None if base is None else os.fspath(base),
        )
        return cls._loaded(options, load(options, codec), adapters)

    @classmethod
    def from_options(
        cls,
        options: ModelOptions | EndpointOptions,
        *,
        threads: int | None = None,
        adapters: Mapping[str, str | os.PathLike[str]] | None = None,
    ) -> PaliDecoder:
        """Load a checkpoint as `from_pretrained` does, or ask a server as `from_endpoint` does.

        `threads` are those of the mask codec.
        """
        if isinstance(options, EndpointOptions):
            return cls._asking(options, None, threads)
        return cls._loaded(options, load(options, threads=threads), adapters)

    @classmethod
    def _loaded(
        cls,
        options: ModelOptions,
        model: LoadedModel,
        adapters: Mapping[str, str | os.PathLike[str]] | None,
    ) -> PaliDecoder:
        decoder = cls(**model._asdict())
        if adapters:
            place = find(options.model, options.revision, options.base)
            decoder._adapters = Adapters(place, decoder.engine, adapters)
        return decoder

    @classmethod
    def from_endpoint(
        cls,
        endpoint: str,
        model: str,
        *,
        codec: MaskCodec | None = None,
        concurrency: int = 8,
        timeout: float = 120.0,
        retries: int = 5,
        pause: float = 0.5,
        top_logprobs: int = 20,
        api_key_env: str = KEY_VARIABLE,
        vllm_grammar: bool = False,
    ) -> PaliDecoder:
        """Ask a model on an OpenAI-compatible server: palidecode's own, vLLM, mlx-vlm …

        Pictures are sent with every prompt, and answers read as those of a model that is loaded.
        Scores come from the log probabilities that the server sends. The server decides over which
        tokens they are, and whether a grammar constrains answers.

        Parameters
        ----------
        endpoint : str
            Address of the API: ``http://host:8000/v1``.
        model : str
            Name of the model there.
        codec : MaskCodec, optional
            For masks; by default the codec that the server names, or else Google's.
        concurrency : int
            Requests at a time.
        timeout, retries, pause, top_logprobs, api_key_env, vllm_grammar
            See `EndpointOptions`.

        Raises
        ------
        InputError
            For options that can't be used.
        ServerError
            If the server isn't there, or hasn't that model.
        """
        options = EndpointOptions(
            endpoint,
            model,
            None,
            concurrency,
            timeout,
            retries,
            pause,
            top_logprobs,
            api_key_env,
            vllm_grammar,
        )
        return cls._asking(options, codec)

    @classmethod
    def _asking(
        cls, options: EndpointOptions, codec: MaskCodec | None, threads: int | None = None
    ) -> PaliDecoder:
        notes = options.describe()
        named = options.codec or (None if notes.codes_id == GOOGLE_ID else notes.codes_id)
        if codec is None and named is not None:
            codec = load_codec(named, threads=threads)
        return cls(
            Server(options),
            codec=codec,
            codes_id=notes.codes_id,
            classes=notes.classes,
            source=notes.source,
        )

    @property
    def _local(self) -> Asker:
        if not isinstance(self._asker, Asker):
            raise InputError(f"{self.source}: a server answers; no model is loaded here")
        return self._asker

    @property
    def engine(self) -> Engine:
        """The model that is loaded."""
        return self._local.engine

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the model that is loaded."""
        return self._local.tokenizer

    @property
    def image_config(self) -> ImageConfig:
        """The preprocessing of pictures for the model that is loaded."""
        return self._local.image_config

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the adapters given to `from_pretrained`, for `use`."""
        return () if self._adapters is None else self._adapters.names

    def classes_of(self, adapter: str | None) -> tuple[str, ...]:
        """Return the classes that an adapter lists, or with None the base, whichever is in use.

        Raises
        ------
        InputError
            For a name that isn't among `adapters`.
        """
        if self._adapters is None and adapter is None:
            return self.classes
        return self._given_adapters().classes(adapter)

    def use(self, adapter: str | None) -> None:
        """Switch to one of the adapters given to `from_pretrained`, or with None to the base.

        The weights that an adapter changes are merged from the base's file at its first use, and
        stay for the last two adapters, beside the base: with LoRA on a decoder's attention and
        MLP that is most of the model again. All other weights are shared.

        Raises
        ------
        InputError
            For a name that isn't among them.
        """
        engine, self.classes = self._given_adapters().use(adapter)
        self._asker = Asker(engine, self.tokenizer, self.image_config, self._text_length)

    def _given_adapters(self) -> Adapters:
        if self._adapters is None:
            raise InputError("there are no adapters: from_pretrained(base, adapters={'a': DIR})")
        return self._adapters

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
        over: Over = "vocabulary",
        loc_probabilities: bool = False,
        on_token: OnToken | None = None,
        box_image: int | None = None,
    ) -> Answers:
        """Answer prompts about pictures.

        Parameters
        ----------
        images : picture or sequence of pictures
            PIL images, paths, or uint8 arrays (H, W), (H, W, 3) or (H, W, 4). A single picture
            goes with every prompt, and is encoded once. A list in the list is several pictures
            for one prompt, whose image tokens follow each other: ``[["a.jpg", "b.jpg"]]``.
        prompts : str or sequence of str
            A single prompt goes with every picture.
        max_new_tokens : int
            The longest answer, ``<eos>`` included.
        grammar : bool or GrammarOptions
            Constrain answers to ``detect`` and ``segment`` prompts to be well-formed; other
            prompts are unconstrained.
        batch_size : int
            Number of answers generated together.
        temperature, top_p, seed
            A temperature of 0 takes the likeliest token; above 0 tokens are sampled.
        over : {"vocabulary", "allowed"}
            The tokens over which probabilities sum to 1: all, or those the grammar allows.
        loc_probabilities : bool
            Keep the distribution over the bins of every loc token.
        on_token : callable, optional
            Called with (index of the answer, token id, log-probability) for every token; if a
            server answers, once the whole answer is here.
        box_image : int, optional
            Index of the picture that boxes are measured in, of several pictures for one prompt;
            ``detect`` and ``segment`` prompts about several need it.

        Returns
        -------
        Answers
            A list of `Generated`, in order. A picture that can't be read has an `error` and warns.

        Raises
        ------
        InputError
            For numbers of pictures and prompts that don't fit, prompts the model can't read,
            and options out of range.
        """
        options = GenerateOptions(max_new_tokens, temperature, top_p, seed, over, loc_probabilities)
        pictures, asked = _pair(images, prompts)
        chosen = _box_image(pictures, asked, box_image)
        made = self._asker.generate(pictures, asked, grammar, options, batch_size, on_token, chosen)
        return Answers(made, self.read)

    def detect(
        self,
        images: Pictures,
        prompt: str | Sequence[str] | None = None,
        *,
        grammar: bool | GrammarOptions = True,
        over: Over = "allowed",
        score: Score = DEFAULT_SCORE,
        sub_bin: bool = False,
        divisor: int = DEFAULT_DIVISOR,
        clip: bool = False,
        max_new_tokens: int = DEFAULT_TOKENS,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        classes_per_prompt: int | None = None,
        past_end: float | None = None,
        tiles: str | None = None,
        overlap: float = DEFAULT_OVERLAP,
        zoom: bool = False,
        samples: int = 1,
        batch_size: int = 8,
        on_token: OnToken | None = None,
        box_image: int | None = None,
    ) -> Detections:
        """Detect the objects that a prompt names: boxes, labels and scores.

        Parameters
        ----------
        images : picture or sequence of pictures
            See `generate`.
        prompt : str or sequence of str, optional
            ``"cat ; dog"``; several prompts are all asked of every picture, and their objects
            put together. By default all `classes` that the model is known to find.
        grammar, max_new_tokens, temperature, top_p, seed, batch_size, on_token, box_image
            See `generate`.
        over : {"allowed", "vocabulary"}
            See `generate`; with "allowed" and a grammar fewer rows of the output head are
            computed.
        score : {"product", "label", "box", "objectness", "mean"}
            The recipe of the scores; see `palidecode.answers.scoring`.
        sub_bin : bool
            Boxes from the mean of each loc token's distribution around its bin, not the bin
            itself.
        divisor, clip
            See `palidecode.decode`.
        classes_per_prompt : int, optional
            Split prompts that ask for more names; each picture is encoded once for all.
        past_end : float, optional
            Where the model would end an answer, go on with its likeliest next object, as long as
            such objects score at least this; 0 goes on up to `max_new_tokens`. Objects that the
            model would rather give another label than those it may count as such. The first one
            that scores less ends the answer, and is dropped.
        tiles : str, optional
            Ask about the whole picture and its tiles, and merge: columns and rows as ``"2x2"``,
            or ``"auto"``: as many as show the picture to the model in its own size, at most 4 a
            side.
        overlap : float
            The share of a tile's side that the next one repeats, from 0 to 0.5.
        zoom : bool
            Ask a second time about the surroundings of each object.
        samples : int
            Ask each prompt so often, with a `temperature` above 0. Boxes of one label that
            overlap are one object; its score is the sum of the best score in each sample, or 1
            where scores are unknown, divided by `samples`.

        Returns
        -------
        Detections
            One image per picture, in order.

        Raises
        ------
        InputError
            As `generate`.
        """
        options = AskOptions(
            grammar,
            over,
            score,
            sub_bin,
            divisor,
            clip,
            max_new_tokens,
            temperature,
            top_p,
            seed,
            classes_per_prompt,
            past_end,
            tiles,
            overlap,
            zoom,
            samples,
        )
        return self.ask("detect", images, prompt, options, batch_size, on_token, box_image)

    def segment(
        self,
        images: Pictures,
        prompt: str | Sequence[str] | None = None,
        *,
        grammar: bool | GrammarOptions = True,
        over: Over = "allowed",
        score: Score = DEFAULT_SCORE,
        sub_bin: bool = False,
        divisor: int = DEFAULT_DIVISOR,
        clip: bool = False,
        max_new_tokens: int = DEFAULT_TOKENS,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        classes_per_prompt: int | None = None,
        past_end: float | None = None,
        tiles: str | None = None,
        overlap: float = DEFAULT_OVERLAP,
        zoom: bool = False,
        samples: int = 1,
        batch_size: int = 8,
        on_token: OnToken | None = None,
        box_image: int | None = None,
    ) -> Detections:
        """Segment the objects that a prompt names: `detect` with masks."""
        options = AskOptions(
            grammar,
            over,
            score,
            sub_bin,
            divisor,
            clip,
            max_new_tokens,
            temperature,
            top_p,
            seed,
            classes_per_prompt,
            past_end,
            tiles,
            overlap,
            zoom,
            samples,
        )
        return self.ask("segment", images, prompt, options, batch_size, on_token, box_image)

    def ask(
        self,
        task: Task,
        images: Pictures,
        prompt: str | Sequence[str] | None,
        options: AskOptions,
        batch_size: int = 8,
        on_token: OnToken | None = None,
        box_image: int | None = None,
    ) -> Detections:
        """Ask for objects and read the answers, as `detect` and `segment` do.

        Raises
        ------
        InputError
            As `generate`.
        """
        found = self.find(task, images, prompt, options, batch_size, on_token, box_image)
        for error in filter(None, found.errors if options.looks.closer else ()):
            warn(error, UnreadablePictureWarning)
        return found.detections

    def find(
        self,
        task: Task,
        images: Pictures,
        prompt: str | Sequence[str] | None,
        options: AskOptions,
        batch_size: int = 8,
        on_token: OnToken | None = None,
        box_image: int | None = None,
    ) -> Found:
        """Ask for objects, as `ask`; return also why a picture has no answer."""
        pictures = _as_list(images)
        if options.looks.closer:
            whole = [_one_picture(several) for several in pictures]
            return self.find_closely(task, whole, prompt, options, batch_size, on_token)
        answers = self.answers(task, images, prompt, options, batch_size, on_token, box_image)
        return self._found(answers, len(pictures), options)

    def find_closely(
        self,
        task: Task,
        pictures: Sequence[Picture | PictureBytes],
        prompt: str | Sequence[str] | None,
        options: AskOptions,
        batch_size: int = 8,
        on_token: OnToken | None = None,
    ) -> Found:
        """Ask for objects, as `find`, with the tiles or the second look of the options.

        Pictures that can't be read have an error, and don't warn.
        """
        looked = 0

        def ask(looks: Sequence[Seen], prompts: Sequence[str]) -> Found:
            nonlocal looked
            each = len(prompts) // max(1, len(looks))
            shown = [(look,) for look in looks for _ in range(each)]
            told = on_token and _numbered_from(looked, on_token)
            answers = self._answer(shown, prompts, options, batch_size, told, 0)
            looked += len(answers)
            return self._found(answers, len(looks), options)

        asked = self._asked(task, prompt, options)
        return look_closely(self._asker, ask, pictures, task, asked, options.looks)

    def _found(self, answers: Sequence[Generated], pictures: int, options: AskOptions) -> Found:
        """Read the answers about each picture."""
        each = max(1, len(answers) // max(1, pictures))
        detections = self.read(
            answers,
            each,
            score=options.score,
            sub_bin=options.sub_bin,
            divisor=options.divisor,
            clip=options.clip,
            samples=options.samples,
        )
        firsts = range(0, len(answers), each)
        errors = [[a.error for a in answers[first : first + each] if a.error] for first in firsts]
        return Found(detections, ["".join(reasons[:1]) for reasons in errors])

    def answers(
        self,
        task: Task,
        images: Pictures,
        prompt: str | Sequence[str] | None,
        options: AskOptions,
        batch_size: int = 8,
        on_token: OnToken | None = None,
        box_image: int | None = None,
    ) -> list[Generated]:
        """Ask for objects, as `ask`; return the answers to all prompts about each picture."""
        pictures, asked = _as_list(images), self._asked(task, prompt, options)
        return self._answer(
            [several for several in pictures for _ in asked],
            asked * len(pictures),
            options,
            batch_size,
            on_token,
            _box_image(pictures, asked, box_image),
        )

    def _asked(
        self, task: Task, prompt: str | Sequence[str] | None, options: AskOptions
    ) -> list[str]:
        """Return the prompts to ask of every picture."""
        if prompt is None:
            prompt = prompts_for(self.classes) if self.classes else ()
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts:
            raise InputError(f"nothing to {task}: give a prompt, for instance 'cat ; dog'")
        groups = [in_groups(task, text, options.classes_per_prompt) for text in prompts]
        asked = [with_verb(task, text) for group in groups for text in group]
        self._warn_of_unknown_classes(asked)
        return asked

    def _answer(
        self,
        pictures: Sequence[Sequence[Picture | Seen]],
        prompts: Sequence[str],
        options: AskOptions,
        batch_size: int,
        on_token: OnToken | None,
        box_image: int,
    ) -> list[Generated]:
        """Answer each prompt about its pictures, as often as samples are wanted."""
        times = range(options.samples)
        judge = None
        if options.past_end is not None:
            judge = PastEnd(options.past_end, options.score, self._asker.tokens)
        return self._asker.generate(
            [several for several in pictures for _ in times],
            [prompt for prompt in prompts for _ in times],
            options.grammar,
            options.generating,
            batch_size,
            on_token,
            box_image,
            judge,
        )

    def _warn_of_unknown_classes(self, prompts: Sequence[str]) -> None:
        """Warn of names that a model with known classes was never trained to find."""
        asked = [names for _, names in filter(None, map(asked_names, prompts))]
        unknown = [name for names in asked for name in names if name not in self.classes]
        if self.classes and unknown:
            warn(
                f"{', '.join(map(repr, dict.fromkeys(unknown)))}: not among the classes that "
                f"{self.source or 'the model'} knows ({', '.join(self.classes)}); what it answers "
                "is a guess",
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
        samples: int = 1,
    ) -> Detections:
        """Read answers as detections with scores; see `detect`.

        `per_picture` consecutive answers are about the same picture, and of these `samples`
        consecutive ones to the same prompt.
        """
        return read_answers(
            answers,
            per_picture,
            self._asker.tokens,
            codec=self.codec,
            codes_id=self.codes_id,
            score=score,
            sub_bin=sub_bin,
            divisor=divisor,
            clip=clip,
            samples=samples,
        )

    def check_length(self, pictures: int, prompts: Sequence[str], options: AskOptions) -> None:
        """Refuse prompts about so many pictures that a model that is loaded can't read them.

        Raises
        ------
        InputError
            If pictures, prompt and the longest answer exceed Gemma's context.
        """
        for prompt in prompts if isinstance(self._asker, Asker) else ():
            self._local.encode(prompt, pictures, options.max_new_tokens)

    def shrink(self, picture: Picture) -> Shrunk:
        """Open a picture and keep what the model that is loaded sees of it, for `ask`.

        Raises
        ------
        InputError
            If it can't be read.
        """
        return self._local.shrink(picture)

    def see(self, picture: Picture | PictureBytes) -> Seen:
        """Open a picture and keep what the model or the server is given of it, for `ask`.

        Raises
        ------
        InputError
            If it can't be read.
        """
        return self._asker.see(picture)

    def session(self) -> Session:
        """Return a `Session`, which writes answers token by token; questions join at any step.

        It stays with the adapter in use.
        """
        return Session(self._local)

    def forget_pictures(self) -> None:
        """Clear the cache of image tokens of the last pictures."""
        self._asker.forget_pictures()


def _as_list(images: Pictures) -> list[Sequence[Picture | Seen]]:
    """Return the pictures of each prompt: mostly one, several where a list is in the list."""
    listed = images if isinstance(images, (list, tuple)) else [cast(Picture, images)]
    return [item if isinstance(item, (list, tuple)) else (item,) for item in listed]


def _one_picture(several: Sequence[Picture | Seen]) -> Picture:
    if len(several) != 1:
        raise InputError(
            f"tiles and zoom are for prompts about one picture, got {len(several)} pictures"
        )
    if isinstance(several[0], Seen):
        raise InputError("tiles and zoom cut the picture itself: give it, not what a model sees")
    return several[0]


def _box_image(
    pictures: Sequence[Sequence[Picture | Seen]], prompts: Sequence[str], given: int | None
) -> int:
    """Return the index of the picture that boxes are measured in."""
    counts = [len(several) for several in pictures]
    if 0 in counts:
        raise InputError("a prompt is about no picture: an empty list")
    if given is not None:
        if not 0 <= given < min(counts, default=1):
            raise InputError(f"box_image must be below the number of pictures, got {given}")
        return given
    boxes = next((prompt for prompt in prompts if split_verb(prompt)[0]), None)
    if boxes is not None and max(counts, default=1) > 1:
        raise InputError(
            f"{boxes!r} is about several pictures: box_image=0 measures its boxes in the first"
        )
    return 0


def _pair(
    images: Pictures, prompts: str | Sequence[str]
) -> tuple[list[Sequence[Picture | Seen]], list[str]]:
    pictures = _as_list(images)
    asked = [prompts] if isinstance(prompts, str) else list(prompts)
    if len(pictures) == 1:
        pictures = pictures * len(asked)
    elif len(asked) == 1:
        asked = asked * len(pictures)
    if len(pictures) != len(asked):
        raise InputError(
            f"{many(len(pictures), 'picture')} and {many(len(asked), 'prompt')}: give as many, "
            "or one of either"
        )
    for prompt in asked:
        if not isinstance(prompt, str):
            raise InputError(f"a prompt must be text, got {type(prompt).__name__}")
    return pictures, asked


def _numbered_from(first: int, on_token: OnToken) -> OnToken:
    return lambda answer, token, logprob: on_token(first + answer, token, logprob)
